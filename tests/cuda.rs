//! What needs a GPU: every method trains there, codes are those of the CPU, and throughput. Run by `make gpu-check`.
//! Where there is no GPU the same path runs on the CPU, and the output says that nothing of CUDA was checked; a GPU that is
//! there and cannot be used is an error.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::data::{Dataset, ExampleSet, PictureShape};
use tanhash::deep::{
    BackboneKind, Device, MethodConfig, TorchEncoder, TrainOptions, device, train,
};
use tanhash::{CodeLen, Codes};

const SHAPE: PictureShape = PictureShape {
    side: 32,
    channels: 3,
};
const N_CLASSES: usize = 10;
const PICTURES: usize = 20_480;

/// Noise round ten fixed pictures.
fn pictures(n: usize, seed: u64) -> Arc<ExampleSet> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let n_bytes = SHAPE.side * SHAPE.side * SHAPE.channels;
    let centers: Vec<Vec<u8>> = (0..N_CLASSES)
        .map(|_| (0..n_bytes).map(|_| rng.random_range(0..192)).collect())
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let labels: Vec<u32> = (0..n).map(|row| (row % N_CLASSES) as u32).collect();
    let pixels = labels
        .iter()
        .flat_map(|&label| centers[label as usize].iter())
        .map(|pixel| pixel + rng.random_range(0..64));
    let pixels = pixels.collect();
    Arc::new(ExampleSet::from_pixels(SHAPE, pixels, labels).unwrap())
}

fn dataset(n: usize) -> Dataset {
    let train = pictures(n, 1);
    Dataset {
        name: "noise".to_owned(),
        protocol: "every split the same".to_owned(),
        class_names: (0..N_CLASSES).map(|class| class.to_string()).collect(),
        database: train.clone(),
        query: train.clone(),
        train,
        leave_one_out: false,
        skipped: Vec::new(),
    }
}

fn bits_that_differ(a: &Codes, b: &Codes) -> u64 {
    (0..a.n_codes())
        .map(|row| u64::from(a.get(row).distance(&b.get(row)).unwrap()))
        .sum()
}

/// Says where [`Device::Auto`] is the CPU; a GPU that is there and cannot be used is an error.
fn check_device(auto: &str) {
    if let Some(reason) = device::unused_gpu() {
        panic!("there is an NVIDIA driver, and no GPU can be used: {reason}");
    }
    if auto == "cpu" {
        println!("NO GPU WAS FOUND: this ran on the CPU twice, nothing of CUDA was checked");
    }
}

fn check_bits(what: &str, a: &Codes, b: &Codes) {
    let (differ, total) = (
        bits_that_differ(a, b),
        (a.n_codes() * a.code_len().bits()) as u64,
    );
    println!("{what}: {differ} of {total} bits differ");
    assert!(
        differ * 1000 <= total,
        "{what}: {differ} of {total} bits differ, expected at most one in a thousand"
    );
}

/// Each method, with float32 and with bfloat16, through a deep network whose logits are near 0 for many pictures, which
/// is where rounding shows.
#[test]
fn every_method_trains_on_the_gpu_and_makes_the_codes_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(320);
    let set = pictures(256, 3);
    let mut auto_is = String::new();
    for (name, half) in [
        ("orthohash", false),
        ("orthohash", true),
        ("shc", false),
        ("shrewd", false),
        ("csq", false),
        ("dpn", true),
        ("greedyhash", false),
        ("hashnet", false),
    ] {
        let method = MethodConfig::from_name(name).unwrap();
        let out = dir.path().join(format!("{name}-{half}"));
        let mut options = TrainOptions::new(method, CodeLen::new(64).unwrap(), &out);
        options.backbone = BackboneKind::EfficientNetLite0;
        (options.picture_side, options.backbone_mode.half) = (Some(64), half);
        (options.epochs, options.batch, options.lr) = (1, 64, 1e-4);
        let summary = train(&dataset, &options, &mut |_| {}).unwrap();
        assert!(summary.loss.unwrap().is_finite(), "{name}");
        let [cpu, auto] = [Device::Cpu, Device::Auto].map(|device| {
            let encoder = TorchEncoder::open(&out, device).unwrap();
            encoder.encode_set(&set, &mut |_| {}).unwrap()
        });
        check_bits(
            &format!("{name}, half {half}, {}", summary.device),
            &cpu,
            &auto,
        );
        auto_is = summary.device;
    }
    check_device(&auto_is);
}

#[test]
fn the_gpu_trains_and_makes_the_codes_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset(2_560);
    let method = MethodConfig::from_name("orthohash").unwrap();
    let mut options = TrainOptions::new(
        method,
        CodeLen::new(64).unwrap(),
        dir.path().join("model.safetensors"),
    );
    (options.epochs, options.device) = (4, Device::Auto);
    let started = Instant::now();
    let summary = train(&dataset, &options, &mut |_| {}).unwrap();
    let trained = (summary.steps * options.batch) as f64 / started.elapsed().as_secs_f64();
    println!(
        "training on {}: {trained:.0} pictures/s, loss {:?}",
        summary.device, summary.loss
    );

    let set = pictures(PICTURES, 2);
    let encode = |device: Device| {
        let encoder = TorchEncoder::open(&options.out, device).unwrap();
        encoder
            .encode_set(&set.subset(&(0..256).collect::<Vec<_>>()), &mut |_| {})
            .unwrap();
        let started = Instant::now();
        let codes = encoder.encode_set(&set, &mut |_| {}).unwrap();
        (codes, PICTURES as f64 / started.elapsed().as_secs_f64())
    };
    let (cpu, cpu_rate) = encode(Device::Cpu);
    let (auto, auto_rate) = encode(Device::Auto);
    println!(
        "encoding on cpu: {cpu_rate:.0} pictures/s; on {}: {auto_rate:.0} pictures/s",
        summary.device
    );
    check_bits("conv-small", &cpu, &auto);
    check_device(&summary.device);
}
