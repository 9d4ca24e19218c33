//! A trained model as an [`Encoder`].
//!
//! One thread owns the network, so callers on any thread share it without a lock and a GPU sees one
//! stream of work; pictures are decoded and resized on rayon before they reach it. A picture that cannot
//! be decoded, or whose logits are not finite, is an error of its own and leaves its batch alone.
//! Leaves out caching and queues: those are the writer's.

use std::path::Path;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use tch::Tensor;

use crate::code::{CodeLen, Codes, HashCode, binarize};
use crate::data::{ExampleSet, IN_MEMORY_SIDE_MAX, PictureShape};
use crate::deep::augment::bytes_tensor;
use crate::deep::checkpoint::{Checkpoint, InputSpec, ModelConfig};
use crate::deep::device::{self, Device, floats, moved};
use crate::deep::network::BackboneMode;
use crate::encode::{EncodeError, EncodeStage, Encoder, Payload, PayloadKind, Prepared, on_pool};
use crate::error::{Error, ErrorKind, Result};
use crate::media::{self, Limits};

/// Examples that the network sees at once: enough to fill a GPU, or what a CPU's caches like.
fn batch_examples(input: &InputSpec, device: tch::Device) -> usize {
    let large = input
        .picture_side()
        .is_some_and(|side| side > IN_MEMORY_SIDE_MAX);
    match (device.is_cuda(), large) {
        (true, true) => input.batch(512),
        (true, false) => 2048,
        (false, true) => input.batch(64),
        (false, false) => 256,
    }
}

/// Batches that may wait for the network; enough to keep it busy while the next is decoded.
const QUEUED_BATCHES: usize = 4;

/// What one request is about.
enum Batch {
    /// N x side x side x channels bytes.
    Pixels(Vec<u8>),
    /// N x q numbers.
    Features(Vec<f32>),
}

/// Takes N x K code logits, row-major.
type Reply = Sender<Result<Vec<f32>>>;

/// Examples to encode, and where their logits go.
struct Request {
    batch: Batch,
    reply: Reply,
}

/// What a [`TorchEncoder`] accepts, and how it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EncoderOptions {
    /// For pictures.
    pub limits: Limits,
    /// The backbone computes in bfloat16: for GPUs and for CPUs with instructions for it, slower on others. Bits whose logit is near zero differ from those of float32, so an index and its
    /// queries do well to be encoded alike.
    pub half: bool,
}

/// Encodes pictures with a trained network, or vectors with a trained head, on the CPU or a GPU.
///
/// The normalization of the backbone is folded into its convolutions. The code of a picture does not
/// depend on the pictures beside it. Across devices and thread counts sums round differently, so a bit
/// whose logit is within rounding of zero can differ.
pub struct TorchEncoder {
    config: ModelConfig,
    code_len: CodeLen,
    /// q of the backbone.
    n_features: usize,
    batch: usize,
    limits: Limits,
    /// `None` only while the encoder is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl TorchEncoder {
    /// Opens the model file at `path` on `device`, with the default limits for pictures.
    ///
    /// # Errors
    /// `Io` if the file cannot be read; `Corrupt` or `UnsupportedVersion` if it is not exactly a model
    /// file of ours; `Unsupported` for an absent GPU; `Torch`.
    pub fn open(path: impl AsRef<Path>, device: Device) -> Result<TorchEncoder> {
        TorchEncoder::with_options(path, device, EncoderOptions::default())
    }

    /// As [`TorchEncoder::open`], with other limits for pictures, or in another precision.
    ///
    /// # Errors
    /// As [`TorchEncoder::open`].
    pub fn with_options(
        path: impl AsRef<Path>,
        device: Device,
        options: EncoderOptions,
    ) -> Result<TorchEncoder> {
        let mut checkpoint = Checkpoint::load(path.as_ref(), device.resolve()?)?;
        checkpoint.network.fold()?;
        checkpoint.network.set_backbone_mode(BackboneMode {
            half: options.half,
            ..BackboneMode::default()
        });
        let config = checkpoint.config.clone();
        let code_len = config.code_len()?;
        let n_features = checkpoint.network.n_features() as usize;
        let batch = batch_examples(&config.input, checkpoint.network.weights().device());
        let (requests, received) = bounded(QUEUED_BATCHES);
        let thread = std::thread::Builder::new()
            .name("tanhash-model".into())
            .spawn(move || serve(&checkpoint, &received))
            .map_err(|error| Error::io("thread of the model", error))?;
        Ok(TorchEncoder {
            config,
            code_len,
            n_features,
            batch,
            limits: options.limits,
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// What the model is: its method, its classes, how it was trained.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The shape of the pictures that the network reads; `None` for a model that reads vectors.
    pub fn picture_shape(&self) -> Option<PictureShape> {
        self.config.picture_shape()
    }

    /// Encodes a whole set, one code an example, in order: pictures of any size, or vectors. A model that
    /// reads pictures takes the features of its own backbone too, in their place. `progress` gets the
    /// number of examples done, after every batch.
    ///
    /// # Errors
    /// As [`TorchEncoder::logits_of`]; `Encoder` for an example whose logits are not finite (the text
    /// names it).
    pub fn encode_set(&self, set: &ExampleSet, progress: &mut dyn FnMut(usize)) -> Result<Codes> {
        let mut codes = Codes::with_capacity(self.code_len, set.len());
        self.each_batch(set, &mut |logits| {
            for code in self.binarized(&logits) {
                let code = code.map_err(|error| {
                    let example = codes.n_codes();
                    Error::new(ErrorKind::Encoder(format!("example {example}: {error}")))
                })?;
                codes.push(&code)?;
            }
            progress(codes.n_codes());
            Ok(())
        })?;
        Ok(codes)
    }

    /// The code logits of a whole set, N x K and row-major, before they are binarized: what
    /// [`quantization_error`](crate::eval::quantization_error) reads. They may be infinite or NaN.
    /// `progress` gets the number of examples done, after every batch.
    ///
    /// # Errors
    /// `InvalidArgument` for pictures where the model reads vectors, or vectors of another length;
    /// `Payload` for a picture file that can no longer be read; `Encoder` if the model failed.
    pub fn logits_of(&self, set: &ExampleSet, progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>> {
        let bits = self.code_len.bits();
        let mut all = Vec::with_capacity(set.len() * bits);
        self.each_batch(set, &mut |logits| {
            all.extend_from_slice(&logits);
            progress(all.len() / bits);
            Ok(())
        })?;
        Ok(all)
    }

    /// Hands on the logits of a set, batch by batch and in order.
    fn each_batch(
        &self,
        set: &ExampleSet,
        use_logits: &mut dyn FnMut(Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        let rows: Vec<usize> = (0..set.len()).collect();
        let mut chunks = rows.chunks(self.batch);
        let send = |rows: &[usize]| self.send(self.fetch(set, rows)?);
        // One batch ahead: the network works on it while the next is decoded and the last one used.
        let mut next = || chunks.next().map(|rows| (rows, send(rows)));
        let mut waiting = next();
        while let Some((rows, reply)) = waiting.take() {
            let reply = reply?;
            waiting = next();
            let logits = match receive(&reply) {
                Err(error) => halved(rows, error, &|rows| receive(&send(rows)?))?,
                logits => logits?,
            };
            use_logits(logits)?;
        }
        Ok(())
    }

    /// What the network reads of the examples `rows`.
    fn fetch(&self, set: &ExampleSet, rows: &[usize]) -> Result<Batch> {
        let model = &self.config.model_id;
        match (&self.config.input, set.n_features()) {
            (_, Some(found)) if found != self.n_features => Err(Error::invalid(format!(
                "the model {model} reads vectors of {} numbers, the set has {found}",
                self.n_features
            ))),
            (_, Some(_)) => Ok(Batch::Features(set.features(rows)?)),
            (InputSpec::Pictures(input), None) => {
                let pixels = set.pixels(rows, input.shape(), input.resize)?;
                Ok(Batch::Pixels(pixels))
            }
            (input, None) => Err(Error::invalid(format!(
                "the model {model} reads {input}, the set has pictures"
            ))),
        }
    }

    /// What the network reads of one payload.
    fn read(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        let failed = |reason| EncodeError {
            stage: EncodeStage::Preprocess,
            reason,
        };
        let model = &self.config.model_id;
        match (&self.config.input, payload) {
            (InputSpec::Pictures(input), Payload::Image(bytes)) => {
                media::decode_to_shape(bytes, &self.limits, input.shape(), input.resize)
                    .map(Prepared::Pixels)
            }
            (InputSpec::Features { features }, Payload::Vector(_)) => {
                payload.finite_vector(*features)?;
                Ok(Prepared::Payload(payload.clone()))
            }
            (InputSpec::Pictures(_), Payload::Vector(values)) => Err(failed(format!(
                "the model {model} reads pictures, got a vector of {} numbers",
                values.len()
            ))),
            (input, Payload::Image(_)) => Err(failed(format!(
                "the model {model} reads {input}, got a picture"
            ))),
        }
    }

    /// The codes of what [`TorchEncoder::read`] gave.
    fn encode_read(&self, read: &[&Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        if read.is_empty() {
            return Ok(Vec::new());
        }
        let input = &self.config.input;
        let mut batch = match input {
            InputSpec::Pictures(_) => Batch::Pixels(Vec::new()),
            InputSpec::Features { .. } => Batch::Features(Vec::new()),
        };
        for one in read {
            match (&mut batch, one, input) {
                (Batch::Pixels(all), Prepared::Pixels(pixels), InputSpec::Pictures(input))
                    if pixels.len() == picture_bytes(input.shape()) =>
                {
                    all.extend_from_slice(pixels);
                }
                (
                    Batch::Features(all),
                    Prepared::Payload(Payload::Vector(values)),
                    InputSpec::Features { features },
                ) if values.len() == *features => all.extend_from_slice(values),
                _ => {
                    return Err(Error::invalid(format!(
                        "expected what TorchEncoder::prepare makes for {input}, got something else"
                    )));
                }
            }
        }
        Ok(self.binarized(&receive(&self.send(batch)?)?))
    }

    /// Hands a batch to the model's thread.
    fn send(&self, batch: Batch) -> Result<Receiver<Result<Vec<f32>>>> {
        let (reply, receiver) = bounded(1);
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests
            .send(Request { batch, reply })
            .map_err(|_| stopped())?;
        Ok(receiver)
    }

    /// The codes of N x K logits.
    fn binarized(&self, logits: &[f32]) -> Vec<Result<HashCode, EncodeError>> {
        let codes = logits.chunks_exact(self.code_len.bits()).map(|logits| {
            binarize(self.code_len, logits).map_err(|error| EncodeError {
                stage: EncodeStage::Encode,
                reason: error.to_string(),
            })
        });
        codes.collect()
    }
}

/// The logits of examples of which `of` just failed with `error`: of each half, and so on, as long as the device's memory is
/// what fails, and there is more than one example.
fn halved(
    rows: &[usize],
    error: Error,
    of: &dyn Fn(&[usize]) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    if rows.len() < 2 || !matches!(error.kind(), ErrorKind::DeviceMemory(_)) {
        return Err(error);
    }
    let (first, second) = rows.split_at(rows.len() / 2);
    let mut logits = Vec::new();
    for rows in [first, second] {
        let of_half = of(rows).or_else(|error| halved(rows, error, of))?;
        logits.extend_from_slice(&of_half);
    }
    Ok(logits)
}

/// Waits for the logits.
fn receive(reply: &Receiver<Result<Vec<f32>>>) -> Result<Vec<f32>> {
    reply.recv().map_err(|_| stopped())?
}

impl Encoder for TorchEncoder {
    fn code_len(&self) -> CodeLen {
        self.code_len
    }

    fn model_id(&self) -> &str {
        &self.config.model_id
    }

    fn reads(&self) -> Option<PayloadKind> {
        Some(match self.config.input {
            InputSpec::Pictures(_) => PayloadKind::Image,
            InputSpec::Features { features: dim } => PayloadKind::Vector { dim },
        })
    }

    fn max_batch(&self) -> usize {
        self.batch
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let mut encoded = Vec::with_capacity(batch.len());
        for part in batch.chunks(self.batch) {
            let read: Vec<Result<Prepared, EncodeError>> =
                on_pool(|| part.par_iter().map(|payload| self.read(payload)).collect());
            let readable: Vec<&Prepared> = read.iter().flatten().collect();
            let mut codes = self.encode_read(&readable)?.into_iter();
            encoded.extend(read.into_iter().map(|one| match one {
                Ok(_) => codes.next().expect("a row of logits for every example"),
                Err(error) => Err(error),
            }));
        }
        Ok(encoded)
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        self.read(payload)
    }

    fn prepare_bytes(&self, payload: &Payload) -> usize {
        match (&self.config.input, payload) {
            (InputSpec::Pictures(input), Payload::Image(bytes)) => {
                media::working_bytes(bytes, &self.limits, input.shape(), input.resize)
            }
            _ => 0,
        }
    }

    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let all: Vec<&Prepared> = batch.iter().collect();
        self.encode_read(&all)
    }
}

impl Drop for TorchEncoder {
    fn drop(&mut self) {
        // The thread ends when no sender is left.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has reached every caller as an error.
            let _ = thread.join();
        }
    }
}

fn picture_bytes(shape: PictureShape) -> usize {
    shape.side * shape.side * shape.channels
}

fn stopped() -> Error {
    ErrorKind::Encoder("the model's thread has stopped".into()).into()
}

/// The model's thread: answers requests until the encoder is dropped.
fn serve(checkpoint: &Checkpoint, requests: &Receiver<Request>) {
    let _no_grad = tch::no_grad_guard();
    // OpenMP counts threads per thread; asking makes libtorch apply the process's choice to this one.
    let _ = device::threads();
    // A GPU is told what to do and works on while the next request is prepared and copied, if there is one already. A CPU
    // is done when it has been told.
    let ahead = checkpoint.network.weights().device().is_cuda();
    let mut at_work: Option<(Result<Tensor>, Reply)> = None;
    loop {
        let request = match at_work {
            Some(_) if ahead => requests.try_recv().ok(),
            Some(_) => None,
            None => match requests.recv() {
                Ok(request) => Some(request),
                Err(_) => return,
            },
        };
        let next = request.map(|Request { batch, reply }| (logits(checkpoint, &batch), reply));
        if let Some((logits, reply)) = at_work.take() {
            let logits = logits.and_then(|logits| floats(&logits));
            // Nobody waits any more if the caller gave up; that is its business.
            let _ = reply.send(logits.map_err(device_error));
        }
        at_work = next;
    }
}

/// libtorch says by its message alone what a failure means for the calls after it.
fn device_error(error: Error) -> Error {
    let ErrorKind::Torch(message) = error.kind() else {
        return error;
    };
    let kind = match () {
        // The last two are what cuBLAS and cuDNN say that got no memory to work in.
        _ if [
            "out of memory",
            "can't allocate memory",
            "ALLOC_FAILED",
            "unable to find an engine",
        ]
        .iter()
        .any(|said| message.contains(said)) =>
        {
            ErrorKind::DeviceMemory(message.clone())
        }
        // What a kernel does to the context of its process is not undone.
        _ if message.contains("CUDA error") => ErrorKind::DeviceLost(message.clone()),
        _ => return error,
    };
    Error::new(kind).with_source(error)
}

/// N x K code logits of N examples, on the device, which may still be at work on them.
fn logits(checkpoint: &Checkpoint, batch: &Batch) -> Result<Tensor> {
    let Checkpoint { config, network } = checkpoint;
    let device = network.weights().device();
    match (batch, &config.input) {
        (Batch::Pixels(pixels), InputSpec::Pictures(input)) => {
            let bytes = moved(&bytes_tensor(pixels, input.shape())?, device)?;
            network.forward(&input.normalization.apply(&bytes)?, false)
        }
        (Batch::Pixels(_), input) => Err(Error::invalid(format!("expected {input}, got pictures"))),
        (Batch::Features(values), _) => {
            let features = Tensor::f_from_slice(values)?.f_view([-1, network.n_features()])?;
            network.forward_features(&moved(&features, device)?, false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deep::backbone::BackboneKind;

    #[test]
    fn a_batch_that_does_not_fit_is_halved_until_it_does() {
        let does_not_fit = || Error::new(ErrorKind::DeviceMemory("no room".to_owned()));
        let rows: Vec<usize> = (0..23).collect();
        for capacity in [1, 2, 5, 22] {
            let of = |rows: &[usize]| match rows.len() <= capacity {
                true => Ok(rows.iter().map(|&row| row as f32).collect()),
                false => Err(does_not_fit()),
            };
            let logits = halved(&rows, does_not_fit(), &of).unwrap();
            let expected: Vec<f32> = (0..23).map(|row| row as f32).collect();
            assert_eq!(logits, expected, "{capacity}");
        }
        // What one example does not fit, and another failure, is not tried again.
        let none = |_: &[usize]| Err(does_not_fit());
        assert!(halved(&rows, does_not_fit(), &none).is_err());
        let lost = || Error::new(ErrorKind::DeviceLost("gone".to_owned()));
        let untouched = |_: &[usize]| panic!("tried again");
        let error = halved(&rows, lost(), &untouched).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::DeviceLost(_)), "{error}");
    }

    #[test]
    fn what_libtorch_says_tells_memory_from_a_lost_device() {
        let kind = |text: &str| {
            let error = Error::new(ErrorKind::Torch(text.to_owned()));
            match device_error(error).kind() {
                ErrorKind::DeviceMemory(_) => "memory",
                ErrorKind::DeviceLost(_) => "lost",
                ErrorKind::Torch(_) => "other",
                other => panic!("{other:?}"),
            }
        };
        for (text, expected) in [
            ("CUDA out of memory. Tried to allocate 20.00 GiB.", "memory"),
            ("CUDA error: out of memory", "memory"),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "memory",
            ),
            (
                "GET was unable to find an engine to execute this computation",
                "memory",
            ),
            (
                "CUDA error: an illegal memory access was encountered",
                "lost",
            ),
            (
                "The size of tensor a (3) must match the size of tensor b (4)",
                "other",
            ),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    /// A batch of the largest pictures that a network reads takes no more memory than one of the usual ones.
    #[test]
    fn batches_of_large_pictures_are_smaller() {
        let input = |side| {
            let shape = PictureShape {
                side: 1,
                channels: 3,
            };
            let set = ExampleSet::from_pixels(shape, vec![0; 3], vec![0]);
            BackboneKind::EfficientNetLite0
                .input(&set.unwrap(), Some(side))
                .unwrap()
        };
        for (side, on_gpu, on_cpu) in [(96, 512, 64), (224, 512, 64), (448, 128, 16), (1024, 24, 3)]
        {
            assert_eq!(
                batch_examples(&input(side), tch::Device::Cuda(0)),
                on_gpu,
                "{side}"
            );
            assert_eq!(
                batch_examples(&input(side), tch::Device::Cpu),
                on_cpu,
                "{side}"
            );
        }
    }
}
