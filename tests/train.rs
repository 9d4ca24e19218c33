//! Training end to end on tiny synthetic pictures: it learns, it is a function of its seed, an
//! interrupted run ends like an uninterrupted one, and only an exact model file is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tanhash::centers::{CentersKind, ClassDistances, ClassSimilarity, Codebook};
use tanhash::data::{Dataset, ExampleSet, PictureShape, Source};
use tanhash::deep::checkpoint::state_path;
use tanhash::deep::method::shc::{Config as ShcConfig, SimilarityFrom};
use tanhash::deep::{
    BackboneKind, Device, EncoderOptions, MethodConfig, Recipe, Schedule, SelectBy, Selection,
    TorchEncoder, TrainOptions, TrainProgress, TrainSummary, adapt, train,
};
use tanhash::encode::EncodeStage;
use tanhash::eval::{Cutoff, Protocol, evaluate};
use tanhash::media::Resize;
use tanhash::npy::{self, NpyWriter};
use tanhash::{CodeLen, Codes, Encoder, ErrorKind, Payload};

const SIDE: usize = 28;
const N_CLASSES: usize = 4;

/// Pictures of four kinds of stripes, with seeded noise.
fn pictures(n_pictures: usize, seed: u32) -> ExampleSet {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(1);
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for picture in 0..n_pictures {
        let class = picture % N_CLASSES;
        labels.push(class as u32);
        for y in 0..SIDE {
            for x in 0..SIDE {
                let along = [x, y, x + y, x + SIDE - y][class];
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                let noise = (state >> 26) as u8;
                pixels.push(
                    if (along / 4).is_multiple_of(2) {
                        60
                    } else {
                        180
                    } + noise,
                );
            }
        }
    }
    let shape = PictureShape {
        side: SIDE,
        channels: 1,
    };
    ExampleSet::from_pixels(shape, pixels, labels).unwrap()
}

fn dataset() -> Dataset {
    let train = Arc::new(pictures(64, 1));
    Dataset {
        name: "stripes".into(),
        leave_one_out: false,
        skipped: Vec::new(),
        protocol: "64 pictures, the same in every split".into(),
        class_names: ["columns", "rows", "rising", "falling"]
            .map(String::from)
            .into(),
        database: train.clone(),
        query: train.clone(),
        train,
    }
}

fn options(out: &Path) -> TrainOptions {
    let method = MethodConfig::from_name("orthohash").unwrap();
    TrainOptions {
        epochs: 12,
        batch: 16,
        device: Device::Cpu,
        ..TrainOptions::new(method, CodeLen::new(32).unwrap(), out)
    }
}

fn run(options: &TrainOptions) -> TrainSummary {
    train(&dataset(), options, &mut |_| {}).unwrap()
}

/// A folder with one trained model in it.
fn trained() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.safetensors");
    let mut options = options(&out);
    options.epochs = 1;
    run(&options);
    (dir, out)
}

fn encoder(path: &Path) -> TorchEncoder {
    TorchEncoder::open(path, Device::Cpu).unwrap()
}

fn codes(path: &Path, set: &ExampleSet) -> Codes {
    encoder(path).encode_set(set, &mut |_| {}).unwrap()
}

fn png(set: &ExampleSet, picture: usize) -> Payload {
    let pixels = set.stored_picture(picture).unwrap();
    let grey = image::GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels.to_vec()).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    grey.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    Payload::Image(bytes.into_inner().into())
}

#[test]
fn overfits_64_pictures_to_perfect_retrieval() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir.path().join("model.safetensors"));
    options.log = Some(dir.path().join("log.jsonl"));
    let mut seen = 0;
    let summary = train(&dataset(), &options, &mut |entry| {
        seen += 1;
        assert!(entry.loss.is_finite() && entry.step == seen && entry.steps == 48);
    })
    .unwrap();
    assert_eq!((seen, summary.steps, summary.epochs_done), (48, 48, 12));
    assert_eq!(summary.device, "cpu");

    // mAP@all = 1: seen from every picture, its whole class comes before all others.
    let set = pictures(64, 1);
    let codes = codes(&options.out, &set);
    for a in 0..64 {
        let query = codes.get(a);
        let distance = |b: usize| codes.distance(b, query.words());
        let of_class = |own: bool| (0..64).filter(move |b| (b % N_CLASSES == a % N_CLASSES) == own);
        let farthest_own = of_class(true).map(distance).max().unwrap();
        let nearest_other = of_class(false).map(distance).min().unwrap();
        assert!(
            farthest_own < nearest_other,
            "{farthest_own} {nearest_other}"
        );
    }

    let log = std::fs::read_to_string(options.log.unwrap()).unwrap();
    assert_eq!(log.lines().count(), 48);
    let line: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let curves = std::fs::read_to_string(dir.path().join("log.svg")).unwrap();
    assert!(curves.starts_with("<svg") && curves.contains("hashing accuracy"));
    for field in [
        "step",
        "loss",
        "classification",
        "lr",
        "pictures_per_s",
        "seconds_left",
    ] {
        assert!(line[field].is_number(), "{field}: {line}");
    }

    let model = encoder(&options.out);
    assert_eq!(model.model_id(), summary.model_id);
    assert!(
        summary.model_id.starts_with("orthohash-32-"),
        "{}",
        summary.model_id
    );
    assert_eq!(model.config().class_names.len(), N_CLASSES);
    assert_eq!(model.config().dataset, "stripes");
    assert_eq!(model.config().training["epochs"], 12);
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |name: &str, seed: u64| {
        let mut options = options(&dir.path().join(name));
        (options.epochs, options.seed) = (2, seed);
        run(&options);
        std::fs::read(options.out).unwrap()
    };
    let first = bytes("a", 5);
    assert!(first == bytes("b", 5), "the same seed gives the same file");
    assert!(first != bytes("c", 6), "another seed gives another");
}

#[test]
fn an_interrupted_run_ends_like_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = options(&dir.path().join("whole"));
    whole.epochs = 4;
    run(&whole);

    let mut parts = whole.clone();
    parts.out = dir.path().join("parts");
    parts.log = Some(dir.path().join("log.jsonl"));
    parts.resume = true; // With no state there, a run starts from nothing.
    parts.stop_after = Some(1);
    assert_eq!(run(&parts).epochs_done, 1);
    // A run killed within an epoch leaves lines of steps that are to be repeated.
    let log = parts.log.clone().unwrap();
    let mut lines = std::fs::read_to_string(&log).unwrap();
    lines.push_str(
        &lines
            .lines()
            .last()
            .unwrap()
            .replace("\"step\":4", "\"step\":5"),
    );
    lines.push_str("\n{\"step\":6,\"lo");
    std::fs::write(&log, lines).unwrap();

    parts.stop_after = Some(3);
    assert_eq!(run(&parts).epochs_done, 3);
    parts.stop_after = None;
    assert_eq!(run(&parts).epochs_done, 4);
    let model = |options: &TrainOptions| std::fs::read(&options.out).unwrap();
    assert!(model(&whole) == model(&parts), "bit for bit");
    let state = |options: &TrainOptions| std::fs::read(state_path(&options.out)).unwrap();
    assert!(state(&whole) == state(&parts), "bit for bit");

    let lines = std::fs::read_to_string(&log).unwrap();
    let steps = lines.lines().map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        entry["step"].as_u64().unwrap()
    });
    assert_eq!(steps.collect::<Vec<_>>(), (1..=16).collect::<Vec<_>>());

    // Nothing left to do is no error; other options are.
    assert_eq!(run(&parts).loss, None);
    parts.lr = 1e-4;
    let error = train(&dataset(), &parts, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("has lr"), "{error}");
}

/// Options of a short run of the method called `name`.
fn short(name: &str, out: &Path) -> TrainOptions {
    let method = MethodConfig::from_name(name).unwrap();
    let mut options = TrainOptions {
        method,
        ..options(out)
    };
    options.set_recipe(Recipe::Default).unwrap();
    options
}

#[test]
fn every_method_learns_and_resumes_bit_for_bit() {
    for name in MethodConfig::NAMES {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = short(name, &dir.path().join("whole"));
        whole.epochs = 10;
        whole.lr = 3e-3;
        let mut losses = Vec::new();
        let summary = train(&dataset(), &whole, &mut |entry| {
            if entry.stage == "hashing" {
                losses.push(entry.loss);
            }
        })
        .unwrap();
        assert!(summary.model_id.starts_with(&format!("{name}-32-")));
        let (first, last) = (&losses[..4], &losses[losses.len() - 4..]);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        assert!(mean(last) < mean(first), "{name}: {losses:?}");

        // Pictures of the own class come first: a random ranking has a share of a quarter.
        let set = pictures(64, 1);
        let codes = codes(&whole.out, &set);
        let protocol = Protocol::new(Cutoff::All);
        let report = evaluate(&codes, &set.labels, &codes, &set.labels, &protocol).unwrap();
        assert!(report.map > 0.6, "{name}: mAP@all {}", report.map);

        // One of each kind of state: stages and centers, a layer of the method's own, both and draws.
        if !["shc", "greedyhash", "shrewd"].contains(&name) {
            continue;
        }
        // Stopped within the first stage, where there are stages, between stages, and in the last.
        let mut parts = whole.clone();
        parts.out = dir.path().join("parts");
        parts.resume = true;
        for stop_after in [1, 10, 13, 100] {
            parts.stop_after = Some(stop_after);
            run(&parts);
        }
        for path in [|path: &Path| path.to_owned(), state_path] {
            let bytes = |options: &TrainOptions| std::fs::read(path(&options.out)).unwrap();
            assert!(bytes(&whole) == bytes(&parts), "{name}: bit for bit");
        }
    }
}

#[test]
fn shc_leaves_its_similarity_and_centers_and_takes_them_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = short("shc", &dir.path().join("model"));
    (options.epochs, options.log) = (2, Some(dir.path().join("log.jsonl")));
    let summary = run(&options);
    assert_eq!((summary.steps, summary.epochs_done), (16, 2));
    let log = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    let entries = log.lines().map(|line| {
        let entry: TrainProgress = serde_json::from_str(line).unwrap();
        (entry.stage, entry.step)
    });
    let stage = |step| if step <= 8 { "classifier" } else { "hashing" };
    let expected = (1..=16).map(|step| (stage(step).to_owned(), step));
    assert!(entries.eq(expected));

    let matrix =
        |ending: &str| npy::read_matrix(dir.path().join(format!("model.{ending}.npy"))).unwrap();
    let (rows, columns, similarity) = matrix("similarity");
    assert_eq!((rows, columns), (N_CLASSES, N_CLASSES));
    let (rows, bits, centers) = matrix("centers");
    assert_eq!((rows, bits), (N_CLASSES, 32));
    assert!(!dir.path().join("model.classifier.state").exists());

    // The same similarity gives the same centers, without a classifier.
    options.given.similarity = Some(ClassSimilarity::new(N_CLASSES, similarity).unwrap());
    options.out = dir.path().join("again");
    assert_eq!(run(&options).steps, 8);
    let again = npy::read_matrix(dir.path().join("again.centers.npy")).unwrap();
    assert_eq!(again.2, centers);
    // Another similarity is another run.
    options.resume = true;
    let mut other = ClassSimilarity::new(4, matrix("similarity").2)
        .unwrap()
        .entries()
        .to_vec();
    (other[1], other[4]) = (0.9, 0.9);
    options.given.similarity = Some(ClassSimilarity::new(4, other).unwrap());
    let error = train(&dataset(), &options, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("has given"), "{error}");
}

/// Options of SHC with a classifier of so many epochs.
fn staged(out: &Path, classifier_epochs: usize, warm_start: bool) -> TrainOptions {
    let mut options = short("shc", out);
    options.epochs = 2;
    if let MethodConfig::Shc(config) = &mut options.method {
        (config.classifier_epochs, config.warm_start) = (Some(classifier_epochs), warm_start);
    }
    options
}

#[test]
fn a_warm_start_takes_over_the_backbone_of_the_classifier() {
    let dir = tempfile::tempdir().unwrap();
    // What the first step of stage 3 sees, and the weights in the end.
    let run_of = |name: &str, classifier_epochs, warm_start| {
        let options = staged(&dir.path().join(name), classifier_epochs, warm_start);
        let mut first_loss = None;
        let summary = train(&dataset(), &options, &mut |entry| {
            if entry.stage == "hashing" {
                first_loss.get_or_insert(entry.loss);
            }
        });
        (first_loss.unwrap(), summary.unwrap().model_id)
    };
    // A classifier that has learned nothing has the backbone that a cold start has.
    assert_eq!(run_of("cold-0", 0, false), run_of("warm-0", 0, true));
    let (cold, warm) = (run_of("cold", 3, false), run_of("warm", 3, true));
    assert_ne!(cold.0, warm.0);
    assert_ne!(cold.1, warm.1);

    // Stopped in the classifier, between the stages, and in the last.
    let mut parts = staged(&dir.path().join("parts"), 3, true);
    parts.resume = true;
    for stop_after in [1, 3, 4, 5] {
        parts.stop_after = Some(stop_after);
        run(&parts);
    }
    assert_eq!(encoder(&parts.out).model_id(), warm.1);

    let refused = |change: &dyn Fn(&mut TrainOptions)| {
        let mut options = staged(&dir.path().join("refused"), 3, true);
        change(&mut options);
        let error = train(&dataset(), &options, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("a warm start"), "{error}");
    };
    let same = ClassSimilarity::new(N_CLASSES, vec![1.0; N_CLASSES * N_CLASSES]).unwrap();
    refused(&|o| o.given.similarity = Some(same.clone()));
    let book = Codebook::seeded(CentersKind::MaxHd, N_CLASSES, 32, 0).unwrap();
    refused(&|o| o.given.centers = Some(book.clone()));
}

#[test]
fn the_best_epoch_is_kept_and_a_run_stops_early() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = options(&dir.path().join("whole"));
    whole.selection.validation_share = 0.25;
    whole.selection.patience_epochs = Some(3);
    (whole.epochs, whole.log) = (40, Some(dir.path().join("log.jsonl")));
    let mut values = Vec::new();
    let summary = train(&dataset(), &whole, &mut |entry| {
        values.extend(entry.validation)
    })
    .unwrap();
    assert_eq!(values.len(), summary.epochs_done);
    assert!(summary.epochs_done < 40, "it stops early: {values:?}");
    let best = summary.selection.unwrap();
    assert!(
        best.metric.contains("mAP@all on 16 pictures held back"),
        "{}",
        best.metric
    );
    let first_best = values
        .iter()
        .position(|value| *value == best.value)
        .unwrap();
    assert_eq!(first_best + 1, best.epochs_done);
    assert!(values.iter().all(|value| *value <= best.value));
    assert_eq!(summary.epochs_done, best.epochs_done + 3);
    let model = encoder(&whole.out);
    assert_eq!(model.config().selection.as_ref(), Some(&best));
    assert_eq!(model.config().epochs_done, best.epochs_done);
    assert_eq!(model.model_id(), summary.model_id);

    let mut parts = whole.clone();
    (parts.out, parts.log, parts.resume) = (dir.path().join("parts"), None, true);
    for stop_after in [1, 2, best.epochs_done + 1, 40, 40] {
        parts.stop_after = Some(stop_after);
        run(&parts);
    }
    let bytes = |options: &TrainOptions| std::fs::read(&options.out).unwrap();
    assert!(bytes(&whole) == bytes(&parts), "bit for bit");

    // Killed between the model file of the best epoch and the state of it.
    assert!(best.epochs_done > 1);
    let mut cut = whole.clone();
    (cut.out, cut.log) = (dir.path().join("cut"), None);
    cut.stop_after = Some(best.epochs_done - 1);
    run(&cut);
    let state = std::fs::read(state_path(&cut.out)).unwrap();
    (cut.resume, cut.stop_after) = (true, Some(best.epochs_done));
    run(&cut);
    std::fs::write(state_path(&cut.out), state).unwrap();
    cut.stop_after = None;
    run(&cut);
    assert!(bytes(&whole) == bytes(&cut), "bit for bit");

    // By loss, lower is better; by the paper's protocol, the record says so.
    whole.selection.by = SelectBy::Loss;
    (whole.epochs, whole.selection.patience_epochs) = (3, None);
    let mut values = Vec::new();
    let summary = train(&dataset(), &whole, &mut |entry| {
        values.extend(entry.validation)
    })
    .unwrap();
    let best = summary.selection.unwrap();
    assert_eq!(
        best.value,
        values.iter().copied().fold(f64::INFINITY, f64::min)
    );
    whole.selection = Selection {
        paper_protocol: true,
        ..Selection::default()
    };
    whole.epochs = 1;
    let best = run(&whole).selection.unwrap();
    assert!(
        best.metric.contains("selected on the test set"),
        "{}",
        best.metric
    );
}

/// A few vectors of 8 numbers in a file, one class after the other.
fn vectors(dir: &Path, labels: &[u32]) -> Arc<ExampleSet> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let values: Vec<f32> = (0..labels.len() * 8).map(|_| rng.random()).collect();
    let path = dir.join("features.npy");
    let mut writer = NpyWriter::resume(&path, labels.len(), 8).unwrap();
    writer.append(&values).unwrap();
    writer.finish().unwrap();
    let source = Arc::new(Source::Features(npy::NpyFile::open(&path).unwrap()));
    let rows = (0..labels.len() as u32).collect();
    Arc::new(ExampleSet::new(source, rows, labels.to_vec()).unwrap())
}

fn of_vectors(dir: &Path, labels: &[u32]) -> Dataset {
    let train = vectors(dir, labels);
    Dataset {
        class_names: (0..=labels.iter().copied().max().unwrap_or(0))
            .map(|class| class.to_string())
            .collect(),
        database: train.clone(),
        query: train.clone(),
        train,
        ..dataset()
    }
}

/// Options for the few vectors.
fn on_vectors(name: &str, out: &Path) -> TrainOptions {
    TrainOptions {
        backbone: BackboneKind::Identity,
        batch: 4,
        epochs: 2,
        ..short(name, out)
    }
}

#[test]
fn the_paper_protocol_leaves_queries_out_of_their_own_rankings() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = of_vectors(dir.path(), &[0, 0, 1, 1, 2, 2, 0, 1]);
    data.leave_one_out = true;
    let mut options = on_vectors("orthohash", &dir.path().join("model"));
    options.selection.paper_protocol = true;
    let summary = train(&data, &options, &mut |_| {}).unwrap();
    let found = summary.selection.unwrap().value;
    let codes = codes(&options.out, &data.query);
    let mut protocol = Protocol::new(Cutoff::All);
    protocol.leave_one_out = true;
    let labels = &data.query.labels[..];
    let expected = evaluate(&codes, labels, &codes, labels, &protocol).unwrap();
    assert_eq!(found, expected.map);
    assert!(found < 1.0, "a query that finds itself would have 1");
    // Refused before the first epoch, not at its end.
    data.query = Arc::new(data.query.subset(&[]));
    let error = train(&data, &options, &mut |_| panic!("a step was made"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("give the test split some"), "{error}");
}

#[test]
fn where_nothing_can_be_written_is_known_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let data = of_vectors(dir.path(), &[0, 0, 1, 1]);
    let refused = |change: &dyn Fn(&mut TrainOptions)| {
        let mut options = on_vectors("greedyhash", &dir.path().join("model"));
        change(&mut options);
        let error = train(&data, &options, &mut |_| panic!("a step was made"));
        error.unwrap_err().to_string()
    };
    let text = refused(&|o| o.out = dir.path().join("none/model"));
    assert!(text.contains("found none; make it first"), "{text}");
    let text = refused(&|o| o.log = Some(dir.path().join("log.svg")));
    assert!(text.contains("name it .jsonl"), "{text}");
}

#[test]
fn a_weakly_supervised_run_reads_no_classes() {
    let dir = tempfile::tempdir().unwrap();
    for labels in [[0u32; 8], [0, 1, 2, 3, 4, 5, 6, 7]] {
        let data = of_vectors(dir.path(), &labels);
        let mut options = on_vectors("shrewd", &dir.path().join("model"));
        if let MethodConfig::Shrewd(config) = &mut options.method {
            config.weakly_supervised = true;
        }
        let apart = (0..64usize).map(|at| (at / 8).abs_diff(at % 8) as f32);
        options.given.distances = Some(ClassDistances::new(8, apart.collect()).unwrap());
        let summary = train(&data, &options, &mut |_| {}).unwrap();
        assert_eq!(summary.epochs_done, 2);
        // Any of them can be held back, whatever its class.
        options.selection.validation_share = 0.25;
        options.selection.by = SelectBy::Loss;
        let metric = train(&data, &options, &mut |_| {}).unwrap().selection;
        let metric = metric.unwrap().metric;
        assert!(metric.contains("on 2 pictures held back"), "{metric}");
        std::fs::remove_file(dir.path().join("features.npy")).unwrap();
    }
}

/// Where there are no Hadamard centers, CSQ has balanced ones and its model says so; another method is refused.
#[test]
fn a_model_names_the_centers_that_it_was_trained_with() {
    let dir = tempfile::tempdir().unwrap();
    let data = of_vectors(dir.path(), &[0, 0, 1, 1, 2, 2, 0, 1]);
    let mut options = on_vectors("csq", &dir.path().join("model"));
    for (bits, expected) in [(24, CentersKind::Balanced), (32, CentersKind::Hadamard)] {
        options.code_len = CodeLen::new(bits).unwrap();
        train(&data, &options, &mut |_| {}).unwrap();
        let model = encoder(&options.out);
        let MethodConfig::Csq(config) = &model.config().method else {
            panic!("a model of CSQ");
        };
        assert_eq!(config.centers, expected);
        let named = model.config().centers.clone().unwrap();
        assert_eq!(named, expected.to_string());
        let written = Codebook::read_npy(dir.path().join("model.centers.npy")).unwrap();
        let expected = options.fixed_centers(data.class_names.len()).unwrap();
        assert_eq!(
            Some(written.entries()),
            expected.as_ref().map(Codebook::entries)
        );
    }
    // Others than those of the method's own codebook; and what a run leaves is its own.
    let named = |options: &TrainOptions| {
        train(&data, options, &mut |_| {}).unwrap();
        let is_there = |ending| dir.path().join(format!("model.{ending}.npy")).is_file();
        let there = (is_there("centers"), is_there("similarity"));
        (encoder(&options.out).config().centers.clone(), there)
    };
    let mut others = options.clone();
    others.semantic_centers = Some(ShcConfig {
        similarity_from: SimilarityFrom::ClassMeans,
        ..ShcConfig::default()
    });
    assert_eq!(named(&others), (Some("class-means".into()), (true, true)));
    others.semantic_centers = None;
    others.given.centers = options.fixed_centers(3).unwrap();
    let (centers, there) = named(&others);
    assert!(centers.unwrap().starts_with("given, ") && there == (true, false));
    assert_eq!(
        named(&on_vectors("greedyhash", &others.out)),
        (None, (false, false))
    );

    options.code_len = CodeLen::new(24).unwrap();
    for name in ["orthohash", "dpn"] {
        options.method = MethodConfig::from_name(name).unwrap();
        match &mut options.method {
            MethodConfig::OrthoHash(config) => config.centers = CentersKind::Hadamard,
            MethodConfig::Dpn(config) => config.centers = CentersKind::Hadamard,
            _ => unreachable!(),
        }
        let error = train(&data, &options, &mut |_| panic!("a step was made"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("power of two"), "{error}");
    }
}

/// Every third step and the last of an epoch of five; how often it looks changes nothing that a run makes.
#[test]
fn a_run_that_looks_at_its_loss_less_often_makes_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = of_vectors(dir.path(), &[0, 1, 2, 3].repeat(5));
    let run = |name: &str, log_every| {
        let mut options = on_vectors("csq", &dir.path().join(name));
        options.log_every = log_every;
        let mut seen = Vec::new();
        let summary = train(&data, &options, &mut |entry| {
            seen.push((entry.step, entry.loss));
        });
        (
            seen,
            summary.map(|summary| (summary.model_id, summary.loss)),
        )
    };
    let (each, model) = run("each", None);
    let (third, same_model) = run("third", Some(3));
    assert_eq!(each.len(), 10);
    let wanted = each
        .into_iter()
        .filter(|(step, _)| step % 3 == 0 || step % 5 == 0);
    assert_eq!(third, wanted.collect::<Vec<_>>());
    assert_eq!(model.unwrap(), same_model.unwrap());
    let refused = run("never", Some(0)).1.unwrap_err().to_string();
    assert!(refused.contains("expected at least 1, got 0"), "{refused}");
}

/// Weights of the last step of an epoch are seen by no loss.
#[test]
fn weights_that_diverge_in_the_last_step_leave_the_files_of_the_epoch_before() {
    let dir = tempfile::tempdir().unwrap();
    let data = of_vectors(dir.path(), &[0, 1, 2, 3]);
    let mut options = on_vectors("csq", &dir.path().join("model"));
    options.schedule = Schedule::Constant;
    (options.lr, options.epochs) = (1e39, 1);
    let error = train(&data, &options, &mut |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("is no longer finite") && error.contains("lower the rate"),
        "{error}"
    );
    assert!(!options.out.exists() && !state_path(&options.out).exists());
}

#[test]
fn a_run_goes_on_with_the_examples_and_the_model_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let labels = [0u32, 0, 0, 0, 1, 1, 1, 1];
    let data = of_vectors(dir.path(), &labels);
    let mut options = on_vectors("orthohash", &dir.path().join("model"));
    options.resume = true;
    train(&data, &options, &mut |_| {}).unwrap();
    let model = std::fs::read(&options.out).unwrap();
    // A model file that is gone or cut short is written anew from the state.
    for damage in [None, Some(&model[..20])] {
        std::fs::remove_file(&options.out).unwrap();
        if let Some(bytes) = damage {
            std::fs::write(&options.out, bytes).unwrap();
        }
        train(&data, &options, &mut |_| {}).unwrap();
        assert!(std::fs::read(&options.out).unwrap() == model);
    }
    // A state that is damaged anywhere is not gone on with.
    let path = state_path(&options.out);
    let state = std::fs::read(&path).unwrap();
    for at in (0..state.len()).step_by(state.len() / 200 + 1) {
        let mut damaged = state.clone();
        damaged[at] ^= 4;
        std::fs::write(&path, damaged).unwrap();
        let error = train(&data, &options, &mut |_| {}).map(|_| at).unwrap_err();
        assert!(error.to_string().contains("model.state"), "{at}: {error}");
    }
    std::fs::write(&path, state).unwrap();
    let refused = |data: &Dataset| {
        let error = train(data, &options, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("other examples or labels"), "{error}");
    };
    let mut swapped = data.clone();
    let mut set = (*data.train).clone();
    set.labels.swap(0, 4);
    swapped.train = Arc::new(set);
    refused(&swapped);
    let mut bytes = std::fs::read(dir.path().join("features.npy")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    // Another file: the first one is mapped.
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("features.npy");
    std::fs::write(&path, bytes).unwrap();
    let source = Arc::new(Source::Features(npy::NpyFile::open(&path).unwrap()));
    let mut changed = data.clone();
    changed.train = Arc::new(data.train.on_source(source).unwrap());
    refused(&changed);

    // The best epoch's weights are in the model file alone.
    options.out = dir.path().join("best");
    options.selection.validation_share = 0.5;
    train(&data, &options, &mut |_| {}).unwrap();
    train(&data, &options, &mut |_| {}).unwrap();
    std::fs::remove_file(&options.out).unwrap();
    let error = train(&data, &options, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("gone or damaged"), "{error}");
}

#[test]
fn classes_that_cannot_be_learned_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, labels: &[u32], change: &dyn Fn(&mut TrainOptions)| {
        let mut data = dataset();
        let mut train_set = pictures(labels.len(), 1);
        train_set.labels = labels.to_vec();
        data.train = Arc::new(train_set);
        data.database = data.train.clone();
        let mut options = short(name, &dir.path().join("model"));
        (options.batch, options.epochs) = (4, 1);
        change(&mut options);
        train(&data, &options, &mut |_| {}).unwrap_err().to_string()
    };
    let same = &|_: &mut TrainOptions| {};
    let text = refused("orthohash", &[0, 1, 2, 0, 1, 2], same);
    assert!(
        text.contains("class \"falling\" has no train picture"),
        "{text}"
    );
    let text = refused("orthohash", &[0, 1, 2, 3, 4, 2], same);
    assert!(
        text.contains("the label 4, the data set 4 classes"),
        "{text}"
    );
    let text = refused("hashnet", &[0, 1, 2, 3, 0, 1, 2], same);
    assert!(text.contains("one train picture"), "{text}");
    let all = [0, 1, 2, 3, 0, 1, 2, 3];
    let text = refused("orthohash", &[0, 1, 2, 3, 0, 1, 2], &|o| {
        o.selection.validation_share = 0.2;
    });
    assert!(text.contains("no class has the 4 train pictures"), "{text}");
    let text = refused("shc", &[1, 2, 3, 1, 2, 3], &|o| o.batch = 2);
    assert!(text.contains("class \"columns\" has no train"), "{text}");
    // Before stage 1 is trained: nothing is left of a run.
    let text = refused("shc", &all, &|o| {
        if let MethodConfig::Shc(config) = &mut o.method {
            config.centers.min_distance = Some(31);
        }
    });
    assert!(text.contains("use more bits"), "{text}");
    assert!(!dir.path().join("model.classifier.state").exists());
    let two = of_vectors(dir.path(), &[0, 0, 1, 1]);
    let shc = on_vectors("shc", &dir.path().join("model"));
    let text = train(&two, &shc, &mut |_| {}).unwrap_err().to_string();
    assert!(text.contains("at least 3 classes"), "{text}");
    assert!(!dir.path().join("model.classifier.state").exists());
    let book = |classes| Codebook::seeded(CentersKind::MaxHd, classes, 32, 0).unwrap();
    let text = refused("csq", &all, &|o| o.given.centers = Some(book(5)));
    assert!(
        text.contains("expected 4 centers of 32 bits, got 5 of 32"),
        "{text}"
    );
    let text = refused("shc", &all, &|o| {
        o.given.centers = Some(book(4));
        if let MethodConfig::Shc(config) = &mut o.method {
            config.centers.min_distance = Some(8);
        }
    });
    assert!(text.contains("leave out the minimum distance"), "{text}");
    let text = refused("hashnet", &all, &|o| o.given.centers = Some(book(4)));
    assert!(text.contains("no hash centers"), "{text}");
    let text = refused("orthohash", &all, &|o| {
        o.selection.patience_epochs = Some(2)
    });
    assert!(text.contains("validation share"), "{text}");
}

#[test]
fn a_model_adapts_to_another_database() {
    let (dir, path) = trained();
    // The same stripes, but darker: without adapting, few bits tell them apart.
    let bright = pictures(200, 3);
    let shape = bright.stored_shape().unwrap();
    let all: Vec<usize> = (0..bright.len()).collect();
    let mut pixels = bright.pixels(&all, shape, Resize::default()).unwrap();
    pixels.iter_mut().for_each(|pixel| *pixel /= 3);
    let darker = ExampleSet::from_pixels(shape, pixels, bright.labels.clone());
    let darker = Arc::new(darker.unwrap());
    let out = dir.path().join("adapted");
    let of_set = |set: &Arc<ExampleSet>| Dataset {
        database: set.clone(),
        ..dataset()
    };
    let model_id = adapt(&path, &of_set(&darker), &out, Device::Cpu).unwrap();
    let model = encoder(&out);
    let adapted = model.config().adapted.as_ref().unwrap();
    assert_eq!(
        (adapted.dataset.as_str(), adapted.n_examples),
        ("stripes", 200)
    );
    assert!(encoder(&path).config().adapted.is_none());
    // Of pictures that are all the same nothing can be measured, and the file stays.
    let grey = ExampleSet::from_pixels(shape, vec![9; 3 * SIDE * SIDE], vec![0; 3]);
    let grey = of_set(&Arc::new(grey.unwrap()));
    let error = adapt(&path, &grey, &out, Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(error.contains("expected logits that differ"), "{error}");
    assert_eq!(model_id, encoder(&out).model_id());
    assert_ne!(model_id, encoder(&path).model_id());
    assert_eq!(model_id, encoder(&out).model_id());
    let imbalance = |path: &Path| {
        let codes = codes(path, &darker);
        let apart = |bit: usize| {
            let is_on = |i: &usize| codes.get(*i).words()[0] >> bit & 1 == 1;
            ((0..200).filter(is_on).count() as f64 / 200.0 - 0.5).abs()
        };
        (0..32).map(apart).sum::<f64>() / 32.0
    };
    let (before, after) = (imbalance(&path), imbalance(&out));
    assert!(after < 0.5 * before, "{before} to {after}");

    let mut options = short("csq", &dir.path().join("csq"));
    options.epochs = 1;
    run(&options);
    let error = adapt(&options.out, &of_set(&darker), &out, Device::Cpu).unwrap_err();
    assert!(
        error.to_string().contains("orthohash models have"),
        "{error}"
    );
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = options(&dir.path().join("model.safetensors"));
    let refused = |change: &dyn Fn(&mut TrainOptions)| {
        let mut options = good.clone();
        change(&mut options);
        train(&dataset(), &options, &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&|o| o.batch = 65).contains("2 to 64"));
    assert!(refused(&|o| o.threads = Some(0)).contains("from 1 to 1024"));
    assert!(refused(&|o| o.threads = Some(1_000_000)).contains("got 1000000"));
    assert!(refused(&|o| o.out = dir.path().to_owned()).contains("found a folder"));
    assert!(refused(&|o| o.out = "/dev/null".into()).contains("found a device"));
    let text = refused(&|o| o.log = Some(dir.path().to_owned()));
    assert!(text.contains("name of a log, found a folder"), "{text}");
    let text = refused(&|o| {
        o.backbone = BackboneKind::Identity;
        o.weights = Some("weights.safetensors".into());
    });
    assert!(text.contains("leave out the weights"), "{text}");
    // A model says whose weights it has, where the names of its tensors do not.
    let (_dir, model) = trained();
    let text = refused(&|o| {
        o.backbone = BackboneKind::ResNet18Cifar;
        o.weights = Some(model.clone());
    });
    assert!(text.contains("use --backbone conv-small"), "{text}");
    // A model file whose weights are not those it names is no better as weights than as a model.
    rewrite(&model, |tensors| tensors[0].3[2] ^= 1);
    let text = refused(&|o| o.weights = Some(model.clone()));
    assert!(
        text.contains("expected weights of the model orthohash-32-"),
        "{text}"
    );
    assert!(refused(&|o| o.lr = f64::NAN).contains("lr"));
    assert!(refused(&|o| o.lr = 0.0).contains("above 0"));
    assert!(refused(&|o| o.epochs = 0).contains("epochs"));
    // A loss that is no longer finite stops the run with a reason.
    let text = refused(&|o| (o.lr, o.epochs) = (1e30, 3));
    assert!(
        text.contains("the loss is") && text.contains("lower the rate"),
        "{text}"
    );
}

/// Rewrites the tensors of a model file.
fn rewrite(path: &Path, change: impl Fn(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = parsed
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.clone(), view)
    });
    let bytes = safetensors::serialize(views, header.metadata().clone()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn only_an_exact_model_file_is_opened() {
    const HEAD: &str = "head.linear.weight";
    let (_dir, path) = trained();
    let good = std::fs::read(&path).unwrap();
    let check_refused = |expected: &[&str]| {
        let error = TorchEncoder::open(&path, Device::Cpu)
            .err()
            .expect("refused");
        let text = error.to_string();
        assert!(
            !text.contains('\n') && text.contains("model.safetensors"),
            "{text}"
        );
        for part in expected {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
        std::fs::write(&path, &good).unwrap();
    };

    rewrite(&path, |tensors| tensors.retain(|t| t.0 != HEAD));
    check_refused(&["expected a tensor head.linear.weight, found none"]);

    rewrite(&path, |tensors| {
        tensors.push(("extra".into(), Dtype::F32, vec![1], vec![0; 4]));
    });
    check_refused(&["found 1 more, among them extra"]);

    // Shapes that would broadcast, or hold as many values, are wrong all the same.
    for (shape, found) in [
        (vec![1, 128], "found F32 [1, 128]"),
        (vec![128, 32], "found F32 [128, 32]"),
        (vec![32, 128, 1], "found F32 [32, 128, 1]"),
        (vec![1], "found F32 [1]"),
    ] {
        rewrite(&path, |tensors| {
            let head = tensors.iter_mut().find(|t| t.0 == HEAD).unwrap();
            head.2 = shape.clone();
            head.3.truncate(shape.iter().product::<usize>() * 4);
        });
        check_refused(&[HEAD, "expected F32 [32, 128]", found]);
    }

    rewrite(&path, |tensors| {
        let head = tensors.iter_mut().find(|t| t.0 == HEAD).unwrap();
        (head.1, head.3) = (Dtype::F16, vec![0; 32 * 128 * 2]);
    });
    check_refused(&[HEAD, "expected F32 [32, 128]", "found F16 [32, 128]"]);

    rewrite(&path, |tensors| {
        let head = tensors.iter_mut().find(|t| t.0 == HEAD).unwrap();
        head.3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    check_refused(&[HEAD, "expected finite values, found NaN"]);

    rewrite(&path, |tensors| {
        let head = tensors.iter_mut().find(|t| t.0 == HEAD).unwrap();
        head.3[0] ^= 1;
    });
    check_refused(&["expected weights of the model orthohash-32-"]);

    for length in [0, 7, 8, 100, 5_000, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        check_refused(&["expected a", "safetensors file, found"]);
    }

    // A pickle, as torch.save writes it, is a zip file.
    std::fs::write(&path, b"PK\x03\x04 and the rest of an archive").unwrap();
    check_refused(&["expected a safetensors file, found another format"]);

    let views = [("a", TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap())];
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    check_refused(&["expected metadata", "found none"]);

    assert!(TorchEncoder::open(&path, Device::Cpu).is_ok());
    let missing = TorchEncoder::open(path.with_extension("gone"), Device::Cpu);
    assert!(matches!(missing.err().unwrap().kind(), ErrorKind::Io(_)));
}

#[test]
fn bfloat16_changes_few_bits_and_logits_by_its_rounding() {
    let (_dir, path) = trained();
    let set = pictures(64, 3);
    let half = EncoderOptions {
        half: true,
        ..EncoderOptions::default()
    };
    let half = TorchEncoder::with_options(&path, Device::Cpu, half).unwrap();
    let expected = encoder(&path).logits_of(&set, &mut |_| {}).unwrap();
    let found = half.logits_of(&set, &mut |_| {}).unwrap();
    assert_ne!(found, expected, "bfloat16 has 8 bits of a number's 24");
    let deviation = |values: &[f32]| {
        let squares: f32 = values.iter().map(|value| value * value).sum();
        (squares / values.len() as f32).sqrt()
    };
    let errors: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
    let share = deviation(&errors) / deviation(&expected);
    assert!(share < 0.03, "errors are {share} of the logits");
    let flipped = (found.iter().zip(&expected)).filter(|(a, b)| (**a > 0.0) != (**b > 0.0));
    let flipped = flipped.count();
    assert!(flipped * 50 < found.len(), "{flipped} of {}", found.len());
}

#[test]
fn a_bad_payload_leaves_its_batch_alone() {
    let (_dir, path) = trained();
    let encoder = encoder(&path);
    let set = pictures(8, 1);
    let expected = encoder.encode_set(&set, &mut |_| {}).unwrap();
    let mut batch: Vec<Payload> = (0..8).map(|picture| png(&set, picture)).collect();
    batch[2] = Payload::Image(b"GIF89a, but not for long"[..].into());
    batch[5] = Payload::Vector([1.0, 2.0][..].into());
    let encoded = encoder.encode(&batch).unwrap();
    assert_eq!(encoded.len(), 8);
    for (picture, code) in encoded.iter().enumerate() {
        match picture {
            2 => assert_eq!(code.as_ref().unwrap_err().stage, EncodeStage::Decode),
            5 => assert_eq!(code.as_ref().unwrap_err().stage, EncodeStage::Preprocess),
            _ => assert_eq!(code.as_ref().unwrap(), &expected.get(picture)),
        }
    }
    assert!(encoder.encode(&[]).unwrap().is_empty());
    assert!(encoder.encode(&batch[5..6]).unwrap()[0].is_err());

    // A set of other pictures is brought to the model's shape, as single pictures are.
    let shape = PictureShape {
        side: 32,
        channels: 3,
    };
    let grey = ExampleSet::from_pixels(shape, vec![90; 32 * 32 * 3], vec![0]).unwrap();
    let same = ExampleSet::from_pixels(
        PictureShape {
            side: SIDE,
            channels: 1,
        },
        vec![90; SIDE * SIDE],
        vec![0],
    );
    assert_eq!(
        encoder.encode_set(&grey, &mut |_| {}).unwrap().get(0),
        encoder
            .encode_set(&same.unwrap(), &mut |_| {})
            .unwrap()
            .get(0)
    );
}

#[test]
fn a_code_does_not_depend_on_the_batch() {
    let (_dir, path) = trained();
    let encoder = Arc::new(encoder(&path));
    let set = pictures(300, 2);
    let mut done = Vec::new();
    let expected = encoder.encode_set(&set, &mut |n| done.push(n)).unwrap();
    assert_eq!(done, [256, 300]);
    let payloads: Arc<Vec<_>> = Arc::new((0..60).map(|picture| png(&set, picture)).collect());
    // From several threads at once, in batches of different sizes.
    let threads: Vec<_> = [1, 2, 7, 60]
        .into_iter()
        .map(|size| {
            let (encoder, payloads) = (encoder.clone(), payloads.clone());
            std::thread::spawn(move || {
                let batches = payloads.chunks(size);
                let codes = batches.flat_map(|batch| encoder.encode(batch).unwrap());
                codes.map(|code| code.unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    for thread in threads {
        for (picture, code) in thread.join().unwrap().iter().enumerate() {
            assert_eq!(code, &expected.get(picture), "picture {picture}");
        }
    }
}
