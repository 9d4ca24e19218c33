//! How fast documents come in: decoding against the libraries alone and Pillow, the pipeline against its
//! encoder, ready codes against a `bytes` fast field, and a million documents end to end.
//!
//! `cargo bench --bench ingest -- decode|pipeline|codes|million|memory|model ...`. Pictures come from the folder
//! tree `TANHASH_BENCH_PICTURES`, or are made. `TANHASH_BENCH_PYTHON`, an interpreter with Pillow and PyTorch, adds
//! their turns to `decode` and `model`. `model` is of the feature `torch` and wants a trained ResNet,
//! `TANHASH_BENCH_MODEL`; `TANHASH_BENCH_DEVICE` is `cpu` or `cuda`, which it is where there is one, and `TANHASH_BENCH_HALF=1`
//! asks both for bfloat16. Rivals take turns round by round; ratios are medians over rounds, so that a busy
//! machine disturbs both alike. Beside the clock, each way's processor time is counted, where Linux tells:
//! what a machine without anything else to do would come to. Leaves out training.
//! The encoder of `pipeline` is a stand-in of known cost.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::encode::{EncoderService, Prepared, ServiceOptions};
use tanhash::media::{Limits, PictureShape, Resize, decode_to_shape, working_bytes};
use tanhash::plugin::{
    HashDocumentExt, HashFieldOptions, HashIndex, HashPlugin, SchemaBuilderExt, WriterOptions,
};
use tanhash::segment::TablePolicy;
use tanhash::{CodeLen, EncodeError, Encoder, HashCode, Payload, Result};
use tantivy::schema::{BytesOptions, FAST, Field, STORED, STRING, Schema, TEXT};
use tantivy::{Index, IndexWriter, TantivyDocument};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;

const THREADS: usize = 2;
const SHAPE: PictureShape = PictureShape {
    side: 224,
    channels: 3,
};

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let benches: [(&str, fn()); 6] = [
        ("decode", decode),
        ("pipeline", pipeline),
        ("codes", codes),
        ("million", million),
        ("memory", memory),
        ("model", model),
    ];
    for (name, bench) in benches {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            bench();
        }
    }
}

/// An encoder of no cost, or of a stated one, behind the real decoder.
struct Null {
    /// Added to each call.
    call: Duration,
    /// Added for each picture.
    picture: Duration,
}

impl Null {
    const FREE: Null = Null {
        call: Duration::ZERO,
        picture: Duration::ZERO,
    };
}

impl Encoder for Null {
    fn code_len(&self) -> CodeLen {
        CodeLen::new(64).unwrap()
    }

    fn model_id(&self) -> &str {
        "null"
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let prepared: Vec<_> = batch.iter().map(|payload| self.prepare(payload)).collect();
        let codes = prepared
            .into_iter()
            .map(|prepared| prepared.map(|_| HashCode::zeros(self.code_len())));
        Ok(codes.collect())
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        let Payload::Image(bytes) = payload else {
            unreachable!("only pictures are submitted")
        };
        decode_to_shape(bytes, &Limits::default(), SHAPE, Resize::default()).map(Prepared::Pixels)
    }

    fn prepare_bytes(&self, payload: &Payload) -> usize {
        let Payload::Image(bytes) = payload else {
            return 0;
        };
        working_bytes(bytes, &Limits::default(), SHAPE, Resize::default())
    }

    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        // Sleeping leaves the cores to the decoders, as a model on a GPU does.
        std::thread::sleep(self.call + self.picture * batch.len() as u32);
        black_box(batch);
        Ok(vec![Ok(HashCode::zeros(self.code_len())); batch.len()])
    }
}

/// JPEG files, and their bytes together.
fn pictures() -> Vec<Arc<[u8]>> {
    let max = std::env::var("TANHASH_BENCH_MAX").map_or(1200, |max| max.parse().unwrap());
    let mut found = Vec::new();
    if let Ok(folder) = std::env::var("TANHASH_BENCH_PICTURES") {
        walk(Path::new(&folder), &mut found);
        found.truncate(max);
    } else {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        found.extend((0..max.min(200)).map(|_| made_picture(&mut rng)));
    }
    let bytes: usize = found.iter().map(|file| file.len()).sum();
    println!("{} JPEG files, {:.1} MB", found.len(), bytes as f64 / 1e6);
    found
}

fn walk(folder: &Path, found: &mut Vec<Arc<[u8]>>) {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|name| name == "jpg") {
            let bytes = std::fs::read(&path).unwrap();
            if decode_to_shape(&bytes, &Limits::default(), SHAPE, Resize::default()).is_ok() {
                found.push(bytes.into());
            }
        }
    }
}

/// 400 x 534 pixels of smooth shapes and some noise, as photographs have.
fn made_picture(rng: &mut ChaCha8Rng) -> Arc<[u8]> {
    let waves: [[f32; 3]; 3] =
        std::array::from_fn(|_| std::array::from_fn(|_| rng.random_range(0.005..0.05)));
    let picture = image::RgbImage::from_fn(400, 534, |x, y| {
        let value = |[a, b, c]: [f32; 3], noise: f32| {
            let (x, y) = (x as f32, y as f32);
            (128.0 + 60.0 * (a * x + b * y).sin() + 50.0 * (c * x * y / 100.0).cos() + noise) as u8
        };
        let noise = rng.random_range(-8.0..8.0);
        image::Rgb(waves.map(|wave| value(wave, noise)))
    });
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 85)
        .encode_image(&picture)
        .unwrap();
    bytes.into()
}

/// Pictures a second of each way, in turns, and the ratios to the first.
fn decode() {
    let files = pictures();
    let bytes: usize = files.iter().map(|file| file.len()).sum();
    let mut pillow = std::env::var("TANHASH_BENCH_PICTURES")
        .ok()
        .and_then(|folder| {
            let max = std::env::var("TANHASH_BENCH_MAX").unwrap_or_else(|_| "1200".to_owned());
            Rival::start("pillow_decode.py", &[folder, max])
        });
    let mut names = vec!["service, null encoder", "libraries alone"];
    if pillow.is_some() {
        names.push("Pillow, 2 processes");
    }
    let service_options = || ServiceOptions {
        prepare_threads: THREADS,
        ..ServiceOptions::default()
    };
    let service = EncoderService::new(Arc::new(Null::FREE), service_options()).unwrap();
    let mut cpu_rates = vec![Vec::new(); names.len()];
    let rates = turns(names.len(), |way| {
        let start = Instant::now();
        let cpu_start = cpu_seconds();
        match way {
            0 => {
                let payloads = files.iter().map(|file| Payload::Image(file.clone()));
                let codes = service.submit(payloads.collect()).unwrap().wait();
                assert!(codes.iter().all(std::result::Result::is_ok));
            }
            1 => libraries(&files),
            _ => {
                let (rate, cpu_rate, _) = pillow.as_mut().unwrap().run("go", files.len());
                cpu_rates[way].push(cpu_rate);
                return rate;
            }
        }
        cpu_rates[way].push(files.len() as f64 / (cpu_seconds() - cpu_start));
        files.len() as f64 / start.elapsed().as_secs_f64()
    });
    let mean_bytes = bytes as f64 / files.len() as f64;
    report("decode", "pictures/s", &names, &rates);
    report(
        "decode",
        "pictures a second of processor time",
        &names,
        &cpu_rates,
    );
    println!("decode: {:.1} MB/s", median(&rates[0]) * mean_bytes / 1e6);
}

/// `zune-jpeg` and `fast_image_resize` by hand, with nothing around them.
fn libraries(files: &[Arc<[u8]>]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut resizer = Resizer::new();
                let mut pixels = Vec::new();
                let options = ResizeOptions::new()
                    .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
                    .fit_into_destination(Some((0.5, 0.5)));
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut decoder = JpegDecoder::new(ZCursor::new(&file[..]));
                    decoder.decode_headers().unwrap();
                    let (width, height) = decoder.dimensions().unwrap();
                    pixels.resize(width * height * 3, 0);
                    decoder.decode_into(&mut pixels).unwrap();
                    let source =
                        ImageRef::new(width as u32, height as u32, &pixels, PixelType::U8x3)
                            .unwrap();
                    let mut resized = Image::new(224, 224, PixelType::U8x3);
                    resizer.resize(&source, &mut resized, &options).unwrap();
                    black_box(resized.into_vec());
                }
            });
        }
    });
}

/// A script of `benches/ingest/`, which says its versions, and answers each line with what it took.
struct Rival {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Rival {
    fn start(script: &str, args: &[String]) -> Option<Rival> {
        let python = std::env::var("TANHASH_BENCH_PYTHON").ok()?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ingest");
        let mut child = Command::new(python)
            .arg(folder.join(script))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut versions = String::new();
        output.read_line(&mut versions).unwrap();
        print!("{versions}");
        Some(Rival {
            child,
            input,
            output,
        })
    }

    /// Pictures a second, and a second of processor time; and what else it answers.
    fn run(&mut self, request: &str, n_files: usize) -> (f64, f64, String) {
        writeln!(self.input, "{request}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap().parse::<f64>().unwrap();
        let (n, seconds, cpu_seconds) = (next(), next(), next());
        assert_eq!(n as usize, n_files, "the rival takes the same pictures");
        let more = words.next().unwrap_or_default().to_owned();
        (n / seconds, n / cpu_seconds, more)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ROUNDS: usize = 7;

/// Runs each way in every round; rates by way and round. The first round warms up and is not counted.
fn turns(n_ways: usize, run: impl FnMut(usize) -> f64) -> Vec<Vec<f64>> {
    turns_of(ROUNDS, n_ways, run)
}

fn turns_of(n_rounds: usize, n_ways: usize, mut run: impl FnMut(usize) -> f64) -> Vec<Vec<f64>> {
    let mut rates = vec![Vec::new(); n_ways];
    for round in 0..=n_rounds {
        for way in 0..n_ways {
            let rate = run((way + round) % n_ways);
            if round > 0 {
                rates[(way + round) % n_ways].push(rate);
            }
        }
    }
    rates
}

fn report(bench: &str, unit: &str, names: &[&str], rates: &[Vec<f64>]) {
    for (name, way) in names.iter().zip(rates) {
        let ratios: Vec<f64> = rates[0].iter().zip(way).map(|(a, b)| a / b).collect();
        println!(
            "{bench}: {name}: {:.0} {unit}; the first is {:.2} times that",
            median(way),
            median(&ratios)
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn picture_index(encoder: Null, service: ServiceOptions) -> (HashIndex, Field, Field) {
    let mut schema = Schema::builder();
    let key = schema.add_text_field("key", STRING | STORED);
    let image = schema
        .add_hash_field("image", HashFieldOptions::new(64).model_id("null"))
        .unwrap();
    let plugin = HashPlugin::builder()
        .encoder(Arc::new(encoder))
        .service(service)
        .build()
        .unwrap();
    let index = HashIndex::create_in_ram(schema.build(), plugin).unwrap();
    (index, key, image)
}

/// Documents of the pictures, over and over.
fn documents(
    files: &[Arc<[u8]>],
    n: usize,
    key: Field,
    image: Field,
) -> impl Iterator<Item = TantivyDocument> {
    (0..n).map(move |i| {
        let mut document = TantivyDocument::new();
        document.add_text(key, i.to_string());
        document.add_image(image, &files[i % files.len()]);
        document
    })
}

/// The whole pipeline, with an encoder that the decoders can keep up with, next to that encoder alone.
fn pipeline() {
    let files = pictures();
    let start = Instant::now();
    let shaped: Vec<Prepared> = files[..64]
        .iter()
        .map(|file| Null::FREE.prepare(&Payload::Image(file.clone())).unwrap())
        .collect();
    // A picture takes the encoder one and a half times what it takes a decoder, of which there are two.
    let picture = start.elapsed() * 3 / 2 / shaped.len() as u32;
    println!("pipeline: an encoder of {picture:?} a picture");
    let encoder = || Null {
        call: Duration::from_millis(2),
        picture,
    };
    let n = files.len();
    let names = ["add_stream to commit", "encoder alone"];
    let rates = turns(2, |way| {
        let start = Instant::now();
        if way == 0 {
            let (index, key, image) = picture_index(encoder(), ServiceOptions::default());
            let writer = index.writer(WriterOptions::default()).unwrap();
            writer
                .add_stream(None, documents(&files, n, key, image), |_| Ok(()))
                .unwrap();
            writer.commit().unwrap();
        } else {
            for batch in (0..n).collect::<Vec<_>>().chunks(shaped.len()) {
                encoder().encode_prepared(&shaped[..batch.len()]).unwrap();
            }
        }
        n as f64 / start.elapsed().as_secs_f64()
    });
    report("pipeline", "pictures/s", &names, &rates);
}

#[cfg(not(feature = "torch"))]
fn model() {
    println!("model: left out, it needs the feature `torch`");
}

/// A trained network behind [`Encoder`], next to PyTorch with the same weights and the same pixels.
#[cfg(feature = "torch")]
fn model() {
    use std::sync::OnceLock;

    use tanhash::deep::{Device, EncoderOptions, TorchEncoder, device};
    let Ok(file) = std::env::var("TANHASH_BENCH_MODEL") else {
        println!("model: left out, TANHASH_BENCH_MODEL names no trained model");
        return;
    };
    let half = std::env::var("TANHASH_BENCH_HALF").is_ok_and(|half| half == "1");
    let options = EncoderOptions {
        half,
        ..EncoderOptions::default()
    };
    let open = |name: &str| {
        let device: Device = name.parse().unwrap();
        TorchEncoder::with_options(&file, device, options)
    };
    let (encoder, name) = match std::env::var("TANHASH_BENCH_DEVICE") {
        Ok(name) => (open(&name).unwrap(), name),
        Err(_) => match open("cuda") {
            Ok(encoder) => (encoder, "cuda".to_owned()),
            Err(error) => {
                println!("model: NO GPU WAS FOUND ({error}), what follows is of the CPU");
                (open("cpu").unwrap(), "cpu".to_owned())
            }
        },
    };
    let shape = encoder.picture_shape().expect("a model of pictures");
    let batch = encoder.max_batch();
    let mut prepared: Vec<Prepared> = pictures()
        .into_iter()
        .map(|file| encoder.prepare(&Payload::Image(file)).unwrap())
        .collect();
    // A GPU shows what it does over many full batches, a few of which are on their way.
    let (at_least, in_flight) = match name.as_str() {
        "cpu" => (0, 1),
        _ => (12 * batch, 3),
    };
    for idx in 0..at_least.saturating_sub(prepared.len()) {
        prepared.push(prepared[idx].clone());
    }
    let dir = tempfile::tempdir().unwrap();
    let pixels_path = dir.path().join("pixels");
    let mut pixels = std::io::BufWriter::new(std::fs::File::create(&pixels_path).unwrap());
    for one in &prepared {
        let Prepared::Pixels(bytes) = one else {
            unreachable!("a model of pictures prepares pixels")
        };
        pixels.write_all(bytes).unwrap();
    }
    pixels.into_inner().unwrap();
    let threads = device::threads();
    println!(
        "model: {} pictures of {}, batches of {batch}, {threads} threads, {name}{}",
        prepared.len(),
        encoder.config().backbone,
        if half { ", bfloat16" } else { "" }
    );
    let args = [
        file.clone(),
        pixels_path.display().to_string(),
        shape.side.to_string(),
        batch.to_string(),
        threads.to_string(),
        name,
    ];
    let mut rival = Rival::start("torch_encode.py", &args);
    let mut names = vec!["TorchEncoder"];
    if rival.is_some() {
        names.extend(["PyTorch, eager", "PyTorch, eager, channels last"]);
    }
    let mut codes: Vec<String> = vec![String::new(); names.len()];
    let rates = turns(names.len(), |way| {
        let start = Instant::now();
        if way > 0 {
            let mut request = ["plain", "channels-last"][way - 1].to_owned();
            if half {
                request += " half";
            }
            let (rate, _, found) = rival.as_mut().unwrap().run(&request, prepared.len());
            codes[way] = found;
            return rate;
        }
        let next = AtomicUsize::new(0);
        let batches: Vec<&[Prepared]> = prepared.chunks(batch).collect();
        let found: Vec<OnceLock<String>> = batches.iter().map(|_| OnceLock::new()).collect();
        std::thread::scope(|scope| {
            for _ in 0..in_flight {
                scope.spawn(|| {
                    while let Some((batch, found)) = {
                        let idx = next.fetch_add(1, Ordering::Relaxed);
                        batches.get(idx).zip(found.get(idx))
                    } {
                        let codes = encoder.encode_prepared(batch).unwrap().into_iter();
                        let codes = codes.map(|code| code.unwrap().to_hex()).collect();
                        found.set(codes).expect("each batch once");
                    }
                });
            }
        });
        let rate = prepared.len() as f64 / start.elapsed().as_secs_f64();
        codes[0] = found.into_iter().filter_map(OnceLock::into_inner).collect();
        rate
    });
    report("model", "pictures/s", &names, &rates);
    for (name, other) in names.iter().zip(&codes).skip(1) {
        let differ = hex_distance(&codes[0], other);
        println!(
            "model: {differ} of {} bits differ from {name}",
            other.len() * 4
        );
    }
}

#[cfg(feature = "torch")]
fn hex_distance(a: &str, b: &str) -> u32 {
    assert_eq!(a.len(), b.len());
    let digit = |digit: char| digit.to_digit(16).unwrap();
    let pairs = a.chars().zip(b.chars());
    pairs.map(|(a, b)| (digit(a) ^ digit(b)).count_ones()).sum()
}

/// Gigabytes of pictures through a stated budget; Linux tells the peak.
fn memory() {
    let files = pictures();
    let mean_bytes = files.iter().map(|file| file.len()).sum::<usize>() as f64 / files.len() as f64;
    let total_bytes =
        std::env::var("TANHASH_BENCH_BYTES").map_or(5e9, |bytes| bytes.parse().unwrap());
    let n = (total_bytes / mean_bytes) as usize;
    let before = status_bytes("VmRSS:");
    let service = ServiceOptions {
        queue_bytes: 64_000_000,
        prepare_bytes: 192_000_000,
        ..ServiceOptions::default()
    };
    let (index, key, image) = picture_index(Null::FREE, service);
    let writer = index
        .writer(WriterOptions {
            memory_budget_bytes: 256_000_000,
            ..WriterOptions::default()
        })
        .unwrap();
    let start = Instant::now();
    let added = writer
        .add_stream(None, documents(&files, n, key, image), |_| Ok(()))
        .unwrap();
    writer.commit().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "memory: {added} pictures, {:.2} GB, {:.0} pictures/s, {:.0} MB/s; peak {:.0} MB above the {:.0} MB at \
         the start, of 64 + 192 + 256 MB stated",
        n as f64 * mean_bytes / 1e9,
        n as f64 / seconds,
        n as f64 * mean_bytes / 1e6 / seconds,
        (status_bytes("VmHWM:") - before) / 1e6,
        before / 1e6,
    );
}

/// User and system time of this process, from hundredths of a second; NaN where the system does not tell.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; after it come 11 fields, then the two.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    match ticks[..] {
        [user, system] => (user + system) / 100.0,
        _ => f64::NAN,
    }
}

fn status_bytes(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(f64::NAN) * 1024.0
}

/// Rows of text, as titles and captions are, and a code each.
fn rows(n: usize) -> Vec<(String, [u8; 8])> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let words: Vec<String> = (0..5000).map(|i| format!("word{}", i * i % 7919)).collect();
    let row = |_| {
        let text: Vec<&str> = (0..8)
            .map(|_| words[rng.random_range(0..words.len())].as_str())
            .collect();
        (text.join(" "), rng.random())
    };
    (0..n).map(row).collect()
}

/// The rate of documents with ready codes, next to the same documents with a `bytes` fast field.
fn codes() {
    let rows = rows(200_000);
    let names = [
        "ready codes, every structure",
        "ready codes, no structures",
        "tantivy with a bytes fast field",
    ];
    // Three threads on two cores: the scheduler makes single rounds differ by a third.
    let rates = turns_of(3 * ROUNDS, names.len(), |way| {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        match way {
            2 => fast_field_index(dir.path(), &rows),
            _ => {
                let tables = [TablePolicy::Auto, TablePolicy::Never][way];
                let (index, text, image) = code_index(dir.path(), tables);
                let writer = index.writer(writer_options()).unwrap();
                add_rows(&writer, &rows, text, image);
                writer.commit().unwrap();
                writer.close().unwrap();
            }
        }
        rows.len() as f64 / start.elapsed().as_secs_f64()
    });
    let against: Vec<Vec<f64>> = vec![rates[2].clone(), rates[0].clone(), rates[1].clone()];
    report(
        "codes",
        "documents/s",
        &[names[2], names[0], names[1]],
        &against,
    );
}

fn writer_options() -> WriterOptions {
    WriterOptions {
        num_threads: THREADS,
        memory_budget_bytes: 256_000_000,
        ..WriterOptions::default()
    }
}

fn code_index(dir: &Path, tables: TablePolicy) -> (HashIndex, Field, Field) {
    let mut schema = Schema::builder();
    let text = schema.add_text_field("text", TEXT);
    let image = schema
        .add_hash_field("image", HashFieldOptions::new(64))
        .unwrap();
    let plugin = HashPlugin::builder().tables(tables).build().unwrap();
    let index = HashIndex::create_in_dir(dir, schema.build(), plugin).unwrap();
    (index, text, image)
}

fn add_rows(
    writer: &tanhash::plugin::HashIndexWriter,
    rows: &[(String, [u8; 8])],
    text: Field,
    image: Field,
) {
    let documents = rows.iter().map(|(words, code)| {
        let mut document = TantivyDocument::new();
        document.add_text(text, words);
        document.add_code(image, &HashCode::from_bytes(code).unwrap());
        document
    });
    writer.add_stream(None, documents, |_| Ok(())).unwrap();
}

fn fast_field_index(dir: &Path, rows: &[(String, [u8; 8])]) {
    let mut schema = Schema::builder();
    let text = schema.add_text_field("text", TEXT);
    let bytes = schema.add_bytes_field("image", BytesOptions::default() | FAST);
    let index = Index::create_in_dir(dir, schema.build()).unwrap();
    let mut writer: IndexWriter = index.writer_with_num_threads(THREADS, 256_000_000).unwrap();
    for (words, code) in rows {
        let mut document = TantivyDocument::new();
        document.add_text(text, words);
        document.add_bytes(bytes, code);
        writer.add_document(document).unwrap();
    }
    writer.commit().unwrap();
    writer.wait_merging_threads().unwrap();
}

/// A million documents with text and codes, committed and merged into one segment.
fn million() {
    let rows = rows(1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let (index, text, image) = code_index(dir.path(), TablePolicy::Auto);
    let writer = index.writer(writer_options()).unwrap();
    add_rows(&writer, &rows, text, image);
    let added = start.elapsed().as_secs_f64();
    writer.commit().unwrap();
    let committed = start.elapsed().as_secs_f64();
    writer.merge_all().unwrap();
    println!(
        "million: added in {added:.1} s, committed after {committed:.1} s, one segment after {:.1} s; peak {:.0} MB",
        start.elapsed().as_secs_f64(),
        status_bytes("VmHWM:") / 1e6
    );
}
