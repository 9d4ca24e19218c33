//! What needs a GPU: the same codes as on the CPU, and throughput. Run by `make gpu-check`. Where there is
//! no GPU the same path runs on the CPU, and the output says that nothing of CUDA was checked.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::data::{Dataset, ExampleSet, PictureShape};
use tanhash::deep::{Device, MethodConfig, TorchEncoder, TrainOptions, train};
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

fn dataset() -> Dataset {
    let train = pictures(2_560, 1);
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

#[test]
fn the_gpu_trains_and_makes_the_codes_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = dataset();
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
    let total = (PICTURES * 64) as u64;
    let differ = bits_that_differ(&cpu, &auto);
    println!("{differ} of {total} bits differ");
    assert!(
        differ * 1000 <= total,
        "{differ} of {total} bits differ, expected at most one in a thousand"
    );
    if summary.device == "cpu" {
        println!("NO GPU WAS FOUND: the above ran on the CPU twice, nothing of CUDA was checked");
    }
}
