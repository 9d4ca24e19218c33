//! Where tensors live: CPU or CUDA, found at run time; seeds and threads.
//!
//! The crate links the CPU half of libtorch only. Where `libtorch_cuda.so` lies beside it, it is opened
//! here, which registers the CUDA kernels: one binary serves machines with and without a GPU. libtorch
//! looks for its CUDA half once a process, so a process that means to use a GPU resolves
//! [`Device::Auto`] or [`Device::Cuda`] before it touches a tensor.
//! Leaves out several GPUs at once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Once, OnceLock};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::error::{Error, ErrorKind, Result};

/// The device asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first CUDA device where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU. Training is reproducible bit for bit here, for a fixed number of threads.
    Cpu,
    /// The CUDA device of this number, counted from 0.
    Cuda(usize),
}

impl Device {
    /// The device that is there.
    ///
    /// # Errors
    /// `Unsupported` where CUDA was asked for by name and libtorch has none, or has no device of that
    /// number; the text says why.
    pub(crate) fn resolve(self) -> Result<tch::Device> {
        choose_threads();
        match self {
            Device::Cpu => Ok(tch::Device::Cpu),
            Device::Auto => Ok(match usable_gpu() {
                Ok(()) => tch::Device::Cuda(0),
                Err(_) => tch::Device::Cpu,
            }),
            Device::Cuda(device_idx) => {
                let n_devices = cuda_devices().map_err(|reason| {
                    Error::new(ErrorKind::Unsupported(format!(
                        "no CUDA: {reason}; use the device cpu"
                    )))
                })?;
                if device_idx >= n_devices {
                    return Err(ErrorKind::Unsupported(format!(
                        "no device cuda:{device_idx}: libtorch sees {n_devices} CUDA devices"
                    ))
                    .into());
                }
                Ok(tch::Device::Cuda(device_idx))
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(device_idx) => write!(f, "cuda:{device_idx}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device> {
        let number = |digits: &str| digits.parse().ok().map(Device::Cuda);
        match text {
            "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| {
            Error::invalid(format!(
                "a device is auto, cpu, cuda or cuda:N, got {text:?}"
            ))
        })
    }
}

/// What an NVIDIA driver shows: on Linux itself, and on Linux under Windows.
const DRIVERS: [&str; 2] = ["/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"];

/// Why [`Device::Auto`] is the CPU on a machine that has an NVIDIA driver; `None` where it is the GPU, there is no driver, or
/// `CUDA_VISIBLE_DEVICES` hides all GPUs.
pub fn unused_gpu() -> Option<String> {
    let hidden =
        std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|gpus| gpus.is_empty() || gpus == "-1");
    if hidden || !DRIVERS.iter().any(|driver| Path::new(driver).exists()) {
        return None;
    }
    usable_gpu().err()
}

/// `Ok` if the first GPU computes: one that libtorch has no kernels for, that is full, or that is another process's alone is
/// counted like any other.
fn usable_gpu() -> Result<(), String> {
    cuda_devices()?;
    let compute = || -> Result<f64> {
        let one = Tensor::f_ones([1], (tch::Kind::Float, tch::Device::Cuda(0)))?;
        Ok(f64::try_from(one.f_add_scalar(1.0)?)?)
    };
    match compute() {
        Ok(2.0) => Ok(()),
        Ok(other) => Err(format!("the GPU adds 1 and 1 to {other}")),
        Err(error) => Err(format!("the GPU cannot be computed on: {error}")),
    }
}

/// The number of CUDA devices, at least 1, or why there is none. Opens the CUDA half of libtorch at the first call.
fn cuda_devices() -> Result<usize, String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load_cuda).clone()?;
    if !tch::Cuda::is_available() {
        return Err(
            "libtorch has its CUDA half, but sees no usable GPU, or computed on the CPU before it was asked for one"
                .into(),
        );
    }
    match usize::try_from(tch::Cuda::device_count()) {
        Ok(n_devices @ 1..) => Ok(n_devices),
        _ => Err("libtorch has its CUDA half, but counts no GPU".into()),
    }
}

#[cfg(target_os = "linux")]
fn load_cuda() -> Result<(), String> {
    let dir = libtorch_dir();
    let path = dir
        .as_ref()
        .map(|dir| dir.join("libtorch_cuda.so"))
        .filter(|path| path.exists())
        .ok_or("there is no libtorch_cuda.so beside libtorch_cpu.so")?;
    open_for_good(&path)?;
    // cuDNN compiles some of its kernels when it runs, and the compiler looks for this library by its bare name, which
    // finds it only where it is open. Without it cuDNN takes others.
    for builtins in dir.iter().flat_map(|dir| nvrtc_builtins(dir)) {
        let _ = open_for_good(&builtins);
    }
    Ok(())
}

/// Opens a library of libtorch's own folders, for as long as the process runs.
#[cfg(target_os = "linux")]
fn open_for_good(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

    // SAFETY: opening a library runs its static initializers. This file lies beside the libtorch_cpu.so
    // that this process already runs, or among the packages that were installed with it, so it is as trusted
    // as that one, and its initializers only register what it has. It is never closed: registrations point into it.
    #[allow(unsafe_code)]
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Where PyPI's packages have it, beside torch's own folder: `nvidia/*/lib/libnvrtc-builtins.so.*`.
#[cfg(target_os = "linux")]
fn nvrtc_builtins(libtorch_dir: &Path) -> Vec<PathBuf> {
    let entries = |folder: PathBuf| {
        let found = std::fs::read_dir(folder).into_iter().flatten().flatten();
        found.map(|entry| entry.path())
    };
    let packages = libtorch_dir.join("../../nvidia");
    let files = entries(packages).flat_map(|package| entries(package.join("lib")));
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so")
    };
    files.filter(is_it).collect()
}

#[cfg(not(target_os = "linux"))]
fn load_cuda() -> Result<(), String> {
    Err("CUDA is used on Linux only".into())
}

/// The folder of the `libtorch_cpu.so` of this process, symbolic links followed.
#[cfg(target_os = "linux")]
fn libtorch_dir() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let path = Path::new(&line[line.find('/')?..]);
    path.parent().map(Path::to_path_buf)
}

/// What a stream of random numbers is for. Streams of one seed are independent of each other, and none
/// depends on how much another was used: resuming needs the seed and the epoch, no generator state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    /// First values of the weights.
    Weights,
    /// The codebook.
    Centers,
    /// Order and augmentation of the pictures in this epoch.
    Epoch(usize),
    /// First values of the method's own tensors.
    Method,
    /// Which pictures are held back for validation.
    Validation,
    /// Order and augmentation of the pictures in this epoch of SHC's first stage.
    ClassifierEpoch(usize),
    /// What a method draws in this step.
    Step(usize),
}

/// The random numbers of `seed` for one purpose.
pub(crate) fn rng(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(match stream {
        Stream::Weights => 1,
        Stream::Centers => 2,
        Stream::Method => 3,
        Stream::Validation => 4,
        Stream::Epoch(epoch) => 1 << 32 | epoch as u64,
        Stream::ClassifierEpoch(epoch) => 2 << 32 | epoch as u64,
        Stream::Step(step) => 1 << 48 | step as u64,
    });
    rng
}

/// More threads than any machine has use for, and fewer than overflow OpenMP's stack.
const THREADS_MAX: usize = 1024;

/// Sets the number of threads that libtorch computes with, for the whole process. Sums are cut along
/// threads, so the last bits of a trained weight depend on it.
///
/// # Errors
/// `InvalidArgument` for none, or more than 1,024.
pub fn set_threads(n_threads: usize) -> Result<()> {
    if !(1..=THREADS_MAX).contains(&n_threads) {
        return Err(Error::invalid(format!(
            "threads are from 1 to {THREADS_MAX}, got {n_threads}; leave the option out for all cores"
        )));
    }
    THREADS_CHOSEN.call_once(|| {});
    tch::set_num_threads(n_threads as i32);
    Ok(())
}

/// The number of threads that libtorch computes with.
pub fn threads() -> usize {
    choose_threads();
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

static THREADS_CHOSEN: Once = Once::new();

/// Half of the cores, or all where `OMP_WAIT_POLICY` is `passive`, unless the caller or the environment
/// chose a number. libtorch's threads spin while they wait for each other, so one core that is busy with
/// something else (decoding pictures, another process) stalls all of them: on two shared cores, two
/// threads trained five times slower than one. With the passive policy they sleep instead.
fn choose_threads() {
    THREADS_CHOSEN.call_once(|| {
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            let n_cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            let passive = std::env::var("OMP_WAIT_POLICY")
                .is_ok_and(|policy| policy.eq_ignore_ascii_case("passive"));
            let n_threads = if passive {
                n_cores
            } else {
                (n_cores / 2).max(1)
            };
            tch::set_num_threads(i32::try_from(n_threads).unwrap_or(i32::MAX));
        }
    });
}

/// A tensor of the CPU on the device. To a GPU through page-locked memory, so that the copy does not wait for the work
/// before it.
pub(crate) fn moved(tensor: &Tensor, device: tch::Device) -> Result<Tensor> {
    Ok(match device.is_cuda() {
        false => tensor.shallow_clone(),
        true => {
            // The public `pin_memory` warns on every call that its device is deprecated.
            let locked = tensor.f_internal_pin_memory(device)?;
            locked.f_to_device_(device, tensor.f_kind()?, true, false)?
        }
    })
}

/// The values of a float32 tensor on any device, row-major.
pub(crate) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0f32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        assert!("cuda:x".parse::<Device>().is_err() && "gpu".parse::<Device>().is_err());
    }

    #[test]
    fn an_absent_gpu_is_refused_by_name() {
        let error = Device::Cuda(4096).resolve().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
        assert_eq!(Device::Cpu.resolve().unwrap(), tch::Device::Cpu);
        Device::Auto.resolve().unwrap();
    }
}
