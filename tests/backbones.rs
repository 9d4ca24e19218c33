//! Backbones against the networks whose weights they load: features equal to those of the PyTorch packages,
//! folding that changes nothing but speed, weights of another network refused by name, and a head trained
//! on frozen features that becomes a model of pictures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use tanhash::centers::{ClassMeans, Codebook};
use tanhash::data::{Dataset, DatasetSpec, ExampleSet, PictureShape, load};
use tanhash::deep::hash_head::HeadKind;
use tanhash::deep::method::shc::{self, SimilarityFrom};
use tanhash::deep::{
    Augment, BackboneKind, BackboneMode, DeepHashNet, Device, FeatureExtractor, InputSpec,
    MethodConfig, Normalization, PictureInput, TorchEncoder, TrainOptions, features, train,
};
use tanhash::eval::{Cutoff, Protocol, evaluate};
use tanhash::media::Resize;
use tanhash::npy::{NpyType, NpyWriter, i8_bytes, read_matrix, write_integers};
use tanhash::{CodeLen, Encoder, ErrorKind, Payload, PayloadKind};
use tch::Tensor;

const SIDE: usize = 96;
const PICTURES: usize = 3;

/// Number `i` of the sequence called `name`, from 0 to 1, as `fixtures/backbones/make.py` has it.
fn uniform(name: &str, i: usize) -> f64 {
    let step = (i as u32 + 1).wrapping_mul(2_654_435_761);
    let mut x = crc32fast::hash(name.as_bytes()).wrapping_add(step);
    for _ in 0..2 {
        x = (x ^ (x >> 16)).wrapping_mul(0x45d_9f3b);
    }
    f64::from(x ^ (x >> 16)) / f64::from(1u32 << 16).powi(2)
}

fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape[1..].iter().product();
    let value = |u: f64| match name {
        _ if name.ends_with("running_var") => 0.5 + u,
        _ if name.ends_with("running_mean") || name.ends_with("bias") => 0.2 * (u - 0.5),
        _ if shape.len() == 1 => 0.75 + 0.5 * u,
        _ => (u - 0.5) * (12.0 / fan_in as f64).sqrt(),
    };
    let n_values: usize = shape.iter().product();
    (0..n_values)
        .map(|i| value(uniform(name, i)) as f32)
        .collect()
}

fn input(kind: BackboneKind) -> PictureInput {
    let (mean, std) = match kind {
        BackboneKind::EfficientNetLite0 => ([127.0 / 255.0; 3], [128.0 / 255.0; 3]),
        _ => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    };
    PictureInput {
        picture_side: match kind {
            BackboneKind::ResNet18Cifar => 32,
            BackboneKind::ResNet9 => 28,
            _ => SIDE,
        },
        picture_channels: 3,
        normalization: Normalization {
            mean: mean.to_vec(),
            std: std.to_vec(),
        },
        resize: Resize::default(),
    }
}

fn network(kind: BackboneKind) -> DeepHashNet {
    let input = InputSpec::Pictures(input(kind));
    DeepHashNet::new(kind, &input, 16, HeadKind::NORM, 0, tch::Device::Cpu).unwrap()
}

/// Writes the weights by formula of a backbone, as published ones come: with a classifier, without prefix.
fn write_weights(kind: BackboneKind, path: &Path) {
    let network = network(kind);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let bytes = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for entry in network.weights().entries() {
        if let Some(name) = entry.name.strip_prefix("backbone.") {
            let shape: Vec<usize> = entry.tensor.size().iter().map(|&n| n as usize).collect();
            let values = bytes(values(name, &shape));
            tensors.push((name.to_owned(), shape, values));
        }
    }
    tensors.push(("fc.bias".to_owned(), vec![2], bytes(vec![0.0; 2])));
    let views = tensors.iter().map(|(name, shape, data)| {
        (
            name.clone(),
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The three pictures, normalized.
fn pictures(kind: BackboneKind) -> Tensor {
    let input = input(kind);
    let side = input.picture_side;
    let mut normalized = Vec::new();
    for picture in 0..PICTURES {
        for channel in 0..3 {
            for y in 0..side {
                for x in 0..side {
                    let at = ((picture * SIDE + y) * SIDE + x) * 3 + channel;
                    let byte = (uniform("pictures", at) * 256.0).floor() as f32;
                    let Normalization { mean, std } = &input.normalization;
                    normalized.push((byte / 255.0 - mean[channel]) / std[channel]);
                }
            }
        }
    }
    Tensor::from_slice(&normalized).view([PICTURES as i64, 3, side as i64, side as i64])
}

fn rows(features: &Tensor) -> Vec<Vec<f64>> {
    Vec::try_from(features.to_kind(tch::Kind::Double)).unwrap()
}

#[test]
fn features_are_those_of_the_published_networks() {
    let text = std::fs::read_to_string(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/backbones/reference.json"),
    );
    let reference: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
    let reference = reference.as_object().unwrap();
    assert_eq!(reference.len(), 7);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let _no_grad = tch::no_grad_guard();
    for (name, expected) in reference {
        let kind: BackboneKind = name.parse().unwrap();
        write_weights(kind, &path);
        let mut network = network(kind);
        network.load_backbone(&path).unwrap();
        let pictures = pictures(kind);
        let features = network.features(&pictures, false).unwrap();
        assert_eq!(
            serde_json::json!(features.size()),
            expected["shape"],
            "{name}"
        );
        network.fold().unwrap();
        let folded = network.features(&pictures, false).unwrap();
        for (what, features) in [("plain", features), ("folded", folded)] {
            for (row, values) in rows(&features).iter().enumerate() {
                let norm = expected["norms"][row].as_f64().unwrap();
                let close = |found: f64, expected: &serde_json::Value, tolerance: f64| {
                    let expected = expected.as_f64().unwrap();
                    assert!(
                        (found - expected).abs() < tolerance * norm,
                        "{name} {what}, picture {row}: {found} against {expected}"
                    );
                };
                close(
                    values.iter().map(|x| x * x).sum::<f64>().sqrt(),
                    &expected["norms"][row],
                    1e-5,
                );
                close(values.iter().sum(), &expected["sums"][row], 1e-4);
                for (column, value) in values.iter().take(8).enumerate() {
                    close(*value, &expected["first"][row][column], 1e-5);
                }
            }
        }
    }
}

#[test]
fn resnet_9_reads_small_pictures_and_learns_with_every_weight() {
    let built = |side: usize, channels: usize| {
        let input = InputSpec::Pictures(PictureInput {
            picture_side: side,
            picture_channels: channels,
            ..input(BackboneKind::ResNet9)
        });
        let device = tch::Device::Cpu;
        DeepHashNet::new(BackboneKind::ResNet9, &input, 16, HeadKind::NORM, 3, device)
    };
    for (side, channels) in [(16, 1), (28, 1), (32, 3), (64, 3)] {
        let network = built(side, channels).unwrap();
        let size = [4, channels as i64, side as i64, side as i64];
        let pictures = Tensor::arange(
            size.iter().product::<i64>(),
            (tch::Kind::Float, tch::Device::Cpu),
        );
        let pictures = (pictures * 0.37).sin().view(size);
        let logits = network.forward(&pictures, true).unwrap();
        assert_eq!(network.n_features(), 256);
        assert_eq!(logits.size(), [4, 16]);
        (logits * Tensor::arange(16, (tch::Kind::Float, tch::Device::Cpu)))
            .square()
            .sum(None)
            .backward();
        for entry in network.weights().entries() {
            if entry.tensor.requires_grad() {
                let moved = entry.tensor.grad().abs().max().double_value(&[]);
                assert!(moved > 0.0, "{} at {side} pixels", entry.name);
            }
        }
    }
    for side in [8, 65] {
        let Err(error) = built(side, 1) else {
            panic!("{side} pixels were taken");
        };
        let text = error.to_string();
        assert!(
            text.contains("resnet-9 does not read") && !text.contains('\n'),
            "{text}"
        );
    }
}

#[test]
fn the_weights_of_a_model_are_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (published, model) = (
        dir.path().join("p.safetensors"),
        dir.path().join("m.safetensors"),
    );
    let kind = BackboneKind::EfficientNetLite0;
    write_weights(kind, &published);
    let mut first = network(kind);
    first.load_backbone(&published).unwrap();
    let tensors = first.weights().entries().iter();
    let named: Vec<_> = tensors
        .map(|entry| (entry.name.clone(), entry.tensor.detach().contiguous()))
        .collect();
    tch::Tensor::write_safetensors(&named, &model).unwrap();

    let mut second = network(kind);
    second.load_backbone(&model).unwrap();
    let _no_grad = tch::no_grad_guard();
    let features = |network: &DeepHashNet| rows(&network.features(&pictures(kind), false).unwrap());
    assert_eq!(features(&first), features(&second));
    // Its head is another one's affair.
    let error = network(BackboneKind::ResNet18)
        .load_backbone(&model)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("backbone.conv1.weight of resnet-18"),
        "{error}"
    );
    assert!(
        error.contains("use --backbone efficientnet-lite0"),
        "{error}"
    );
}

#[test]
fn weights_of_another_network_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    write_weights(BackboneKind::ResNet18, &path);
    let refused = |kind: BackboneKind| {
        let error = network(kind).load_backbone(&path).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
        let text = error.to_string();
        assert!(
            !text.contains('\n') && text.contains("weights.safetensors"),
            "{text}"
        );
        text
    };
    let text = refused(BackboneKind::EfficientNetLite0);
    assert!(
        text.contains("expected the tensor _conv_stem.weight of efficientnet-lite0")
            && text.contains("use --backbone resnet-18"),
        "{text}"
    );
    assert!(refused(BackboneKind::ResNet34).contains("use --backbone resnet-18"));
    assert!(refused(BackboneKind::ResNet50).contains("of resnet-50"));
    // The same names, another shape.
    let text = refused(BackboneKind::ResNet18Cifar);
    assert!(
        text.contains("conv1.weight: expected F32 [64, 3, 3, 3], found F32 [64, 3, 7, 7]"),
        "{text}"
    );
    // A tensor that no part of the network knows.
    write_weights(BackboneKind::ResNet34, &path);
    assert!(refused(BackboneKind::ResNet18).contains("more, among them layer1.2"));
    let record = {
        let mut network = network(BackboneKind::ResNet34);
        network.load_backbone(&path).unwrap()
    };
    assert_eq!(
        (record.file.as_str(), record.sha256.len()),
        ("weights.safetensors", 12)
    );
}

/// 48 coloured pictures of 3 classes.
fn coloured() -> Dataset {
    let shape = PictureShape {
        side: 8,
        channels: 3,
    };
    let mut pixels = Vec::new();
    for picture in 0..48 {
        for i in 0..64 {
            let noise = (uniform("noise", picture * 64 + i) * 40.0) as u8;
            let mut pixel = [noise; 3];
            pixel[picture % 3] += 180;
            pixels.extend_from_slice(&pixel);
        }
    }
    let labels = (0..48).map(|picture| picture % 3).collect();
    let all = ExampleSet::from_pixels(shape, pixels, labels).unwrap();
    let train = Arc::new(all.subset(&(0..36).collect::<Vec<_>>()));
    Dataset {
        name: "colours".into(),
        protocol: "the last 12 of 48 are queries".into(),
        class_names: ["red", "green", "blue"].map(String::from).into(),
        leave_one_out: false,
        database: train.clone(),
        train,
        query: Arc::new(all.subset(&(36..48).collect::<Vec<_>>())),
        skipped: Vec::new(),
    }
}

fn options(out: PathBuf) -> TrainOptions {
    let method = MethodConfig::from_name("orthohash").unwrap();
    TrainOptions {
        epochs: 6,
        batch: 12,
        device: Device::Cpu,
        augment: Augment::NONE,
        ..TrainOptions::new(method, CodeLen::new(16).unwrap(), out)
    }
}

#[test]
fn a_head_on_frozen_features_makes_a_model_of_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_weights(BackboneKind::ResNet18, &at("weights.safetensors"));
    let dataset = coloured();
    let mut frozen = options(at("model.safetensors"));
    frozen.backbone = BackboneKind::ResNet18;
    frozen.weights = Some(at("weights.safetensors"));
    frozen.freeze = true;
    frozen.feature_cache = Some(at("cache"));
    let summary = train(&dataset, &frozen, &mut |_| {}).unwrap();
    // One file with the features of every picture, the queries' too; the second run reads it.
    let cached: Vec<_> = std::fs::read_dir(at("cache")).unwrap().collect();
    assert_eq!(cached.len(), 1);
    let name = cached[0]
        .as_ref()
        .unwrap()
        .file_name()
        .into_string()
        .unwrap();
    assert!(
        name.starts_with("resnet-18-") && name.ends_with(".npy"),
        "{name}"
    );
    let again = train(&dataset, &frozen, &mut |_| {}).unwrap();
    assert_eq!(again.model_id, summary.model_id);

    let encoder = TorchEncoder::open(&frozen.out, Device::Cpu).unwrap();
    let record = encoder.config().backbone_weights.clone().unwrap();
    assert_eq!(record.file, "weights.safetensors");
    // The backbone is as it was: pictures and their cached features get the same codes.
    let extractor = FeatureExtractor::open(
        BackboneKind::ResNet18,
        None,
        &at("weights.safetensors"),
        Device::Cpu,
    );
    let extractor = extractor.unwrap();
    assert_eq!(extractor.weights(), &record);
    let of_backbone = extractor
        .dataset(&dataset, &at("cache"), &mut |_, _| {})
        .unwrap();
    let of_pictures = encoder.encode_set(&dataset.query, &mut |_| {}).unwrap();
    let of_features = encoder.encode_set(&of_backbone.query, &mut |_| {}).unwrap();
    let differ: u32 = (0..12)
        .map(|i| of_pictures.get(i).distance(&of_features.get(i)).unwrap())
        .sum();
    assert!(differ <= 1, "{differ} of 192 bits differ");

    let cached = features::cached(encoder.config(), &dataset, &at("cache"))
        .unwrap()
        .unwrap();
    assert_eq!(
        cached.query.features(&[3]).unwrap(),
        of_backbone.query.features(&[3]).unwrap()
    );
    assert!(
        features::cached(encoder.config(), &dataset, dir.path())
            .unwrap()
            .is_none()
    );

    frozen.weights = None;
    let error = train(&dataset, &frozen, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("needs weights"), "{error}");
}

#[test]
fn the_side_of_pictures_may_be_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_weights(BackboneKind::ResNet18, &at("weights.safetensors"));
    let dataset = coloured();
    let with_side = |side: Option<usize>, freeze: bool| TrainOptions {
        backbone: BackboneKind::ResNet18,
        weights: Some(at("weights.safetensors")),
        picture_side: side,
        freeze,
        feature_cache: Some(at("cache")),
        epochs: 1,
        ..options(at("model.safetensors"))
    };
    let trained = |options: &TrainOptions| {
        train(&dataset, options, &mut |_| {}).unwrap();
        TorchEncoder::open(&options.out, Device::Cpu).unwrap()
    };
    // The model knows its side, whether the network was trained or left as it was.
    for freeze in [false, true] {
        let encoder = trained(&with_side(Some(64), freeze));
        assert_eq!(encoder.picture_shape().unwrap().side, 64);
        encoder.encode_set(&dataset.query, &mut |_| {}).unwrap();
    }
    let encoder = trained(&with_side(None, true));
    assert_eq!(encoder.picture_shape().unwrap().side, 224);
    // Features of another side are other features.
    assert_eq!(std::fs::read_dir(at("cache")).unwrap().count(), 2);

    let refused = |options: &TrainOptions| train(&dataset, options, &mut |_| {}).unwrap_err();
    for side in [0, 63, 1025] {
        let error = refused(&with_side(Some(side), false)).to_string();
        assert!(
            error.contains(&format!("64 to 1024 pixels a side, got {side}")),
            "{error}"
        );
    }
    let mut small = with_side(Some(64), false);
    (small.backbone, small.weights) = (BackboneKind::ConvSmall, None);
    let error = refused(&small).to_string();
    assert!(error.contains("as the data set stores them"), "{error}");
}

#[test]
fn running_statistics_stay_as_they_are_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_weights(BackboneKind::ResNet18, &at("weights.safetensors"));
    let statistics = |path: &Path, prefix: &str| -> Vec<f32> {
        let name = format!("{prefix}bn1.running_mean");
        let tensors = Tensor::read_safetensors(path).unwrap();
        let found = tensors.iter().find(|(own, _)| *own == name).unwrap();
        Vec::try_from(&found.1).unwrap()
    };
    let published = statistics(&at("weights.safetensors"), "");
    for stay in [true, false] {
        let options = TrainOptions {
            backbone: BackboneKind::ResNet18,
            weights: Some(at("weights.safetensors")),
            picture_side: Some(64),
            backbone_mode: BackboneMode {
                running_statistics: stay,
                ..BackboneMode::default()
            },
            epochs: 1,
            ..options(at("model.safetensors"))
        };
        train(&coloured(), &options, &mut |_| {}).unwrap();
        let learned = statistics(&options.out, "backbone.");
        assert_eq!(learned == published, stay, "{stay}");
    }
}

/// The data set of these vectors and of `labels.npy`, which is in the folder.
fn features_dataset(dir: &Path, dim: usize, values: &[f32]) -> Dataset {
    let path = dir.join("features.npy");
    let mut writer = NpyWriter::resume(&path, values.len() / dim, dim).unwrap();
    writer.append(values).unwrap();
    writer.finish().unwrap();
    let labels = dir.join("labels.npy");
    let spec = format!("features:{},labels:{}", path.display(), labels.display());
    load(&spec.parse::<DatasetSpec>().unwrap(), None, 1).unwrap()
}

#[test]
fn examples_of_several_classes_are_learned_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Each row has one or two of four classes, and its vector is about the sum of theirs.
    let (n, dim, n_classes) = (240, 12, 4);
    let classes = |row: usize| match row % 3 {
        0 => vec![row % 4],
        _ => vec![row % 4, (row + 1 + row % 3) % 4],
    };
    let (mut values, mut indicators) = (Vec::new(), vec![0i8; n * n_classes]);
    for row in 0..n {
        for column in 0..dim {
            let own = classes(row).contains(&(column % n_classes));
            let own = if own { 2.0 } else { 0.0 };
            values.push((own + uniform("several", row * dim + column)) as f32);
        }
        for class in classes(row) {
            indicators[row * n_classes + class] = 1;
        }
    }
    std::fs::write(at("labels.npy"), i8_bytes(n_classes, &indicators)).unwrap();
    let dataset = features_dataset(dir.path(), dim, &values);

    let map = |name: &str, semantic_centers: Option<shc::Config>| {
        let mut options = options(at(&format!("{name}.safetensors")));
        options.semantic_centers = semantic_centers;
        options.method = MethodConfig::from_name(name).unwrap();
        options.backbone = BackboneKind::Identity;
        options.epochs = 30;
        options.selection.validation_share = 0.1;
        train(&dataset, &options, &mut |_| {})?;
        let encoder = TorchEncoder::open(&options.out, Device::Cpu)?;
        let query = encoder.encode_set(&dataset.query, &mut |_| {})?;
        let database = encoder.encode_set(&dataset.database, &mut |_| {})?;
        let labels = (dataset.query.all_labels(), dataset.database.all_labels());
        let protocol = Protocol::new(Cutoff::All);
        evaluate(&query, labels.0, &database, labels.1, &protocol).map(|report| report.map)
    };
    let shares = |a: usize, b: usize| {
        let (a, b) = (dataset.query.rows()[a], dataset.database.rows()[b]);
        (classes(a as usize).iter()).any(|class| classes(b as usize).contains(class))
    };
    let pairs = dataset.query.len() * dataset.database.len();
    let relevant = (0..dataset.query.len())
        .flat_map(|a| (0..dataset.database.len()).map(move |b| (a, b)))
        .filter(|&(a, b)| shares(a, b));
    let chance = relevant.count() as f64 / pairs as f64;
    let by_means = shc::Config {
        similarity_from: SimilarityFrom::ClassMeans,
        ..shc::Config::default()
    };
    for (name, centers) in [
        ("orthohash", None),
        ("orthohash", Some(by_means)),
        ("csq", None),
        ("hashnet", None),
    ] {
        let map = map(name, centers).unwrap();
        assert!(
            map > 0.85 && chance < 0.65,
            "{name}: {map}, by chance {chance}"
        );
    }
    let error = map("orthohash", Some(shc::Config::default())).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("use class-means or other centers"),
        "{error}"
    );
    for name in ["shc", "dpn", "greedyhash", "shrewd"] {
        let error = map(name, None).unwrap_err().to_string();
        let expected = format!("{name} is defined for one class an example");
        assert!(error.contains(&expected), "{error}");
    }
}

/// S of the class means of a run on `dataset`, which leaves it beside the model.
fn class_mean_similarity(dataset: &Dataset, options: &TrainOptions) -> Vec<f64> {
    let mut options = options.clone();
    options.semantic_centers = Some(shc::Config {
        similarity_from: SimilarityFrom::ClassMeans,
        ..shc::Config::default()
    });
    let mut stages = Vec::new();
    train(dataset, &options, &mut |entry| {
        stages.push(entry.stage.clone())
    })
    .unwrap();
    assert!(!stages.is_empty() && stages.iter().all(|stage| stage == "hashing"));
    let beside = |ending: &str| PathBuf::from(format!("{}{ending}", options.out.display()));
    let (classes, bits, _) = read_matrix(beside(".centers.npy")).unwrap();
    assert_eq!((classes, bits), (dataset.class_names.len(), 16));
    read_matrix(beside(".similarity.npy")).unwrap().2
}

#[test]
fn class_means_take_the_place_of_a_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (n, dim) = (90, 8);
    let shift = |column: usize, row: usize| [0.0, 2.0, 2.5][(column + row % 3) % 3];
    let values: Vec<f32> = (0..n * dim)
        .map(|i| (shift(i % dim, i / dim) + 9.0 * uniform("means", i)) as f32)
        .collect();
    let labels: Vec<i64> = (0..n as i64).map(|row| row % 3).collect();
    write_integers(at("labels.npy"), &labels, NpyType::I64).unwrap();
    let dataset = features_dataset(dir.path(), dim, &values);
    let mut options = options(at("model.safetensors"));
    (options.backbone, options.epochs) = (BackboneKind::Identity, 2);
    let found = class_mean_similarity(&dataset, &options);

    // numpy's way: standardize every column, then take the means.
    let train_rows: Vec<usize> = (0..dataset.train.len()).collect();
    let xs = dataset.train.features(&train_rows).unwrap();
    let (mut means, count) = ([[0.0; 8]; 3], train_rows.len() as f64);
    for column in 0..dim {
        let column_of = |row: usize| f64::from(xs[row * dim + column]);
        let mean = train_rows.iter().map(|&row| column_of(row)).sum::<f64>() / count;
        let squares = train_rows
            .iter()
            .map(|&row| (column_of(row) - mean).powi(2));
        let deviation = (squares.sum::<f64>() / count).sqrt();
        for (class, means) in means.iter_mut().enumerate() {
            let of_class = |row: &&usize| dataset.train.labels[**row] as usize == class;
            let rows: Vec<usize> = train_rows.iter().filter(of_class).copied().collect();
            let standard = rows.iter().map(|&row| (column_of(row) - mean) / deviation);
            means[column] = standard.sum::<f64>() / rows.len() as f64;
        }
    }
    let dot = |a: &[f64; 8], b: &[f64; 8]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (i, a) in means.iter().enumerate() {
        for (j, b) in means.iter().enumerate() {
            let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            let close = (found[i * 3 + j] - cosine).abs() < 1e-5;
            assert!(close, "{i}, {j}: {} and {cosine}", found[i * 3 + j]);
        }
    }

    // An example of several classes counts for each.
    let has = |row: usize, class: usize| {
        class == row % 3 || (class == (row + 1) % 3 && row.is_multiple_of(2))
    };
    let indicators: Vec<i8> = (0..n * 3).map(|i| has(i / 3, i % 3).into()).collect();
    std::fs::write(at("labels.npy"), i8_bytes(3, &indicators)).unwrap();
    let several = features_dataset(dir.path(), dim, &values);
    let rows: Vec<usize> = (0..several.train.len()).collect();
    let xs = several.train.features(&rows).unwrap();
    let mut means = ClassMeans::new(3, dim);
    for (row, features) in xs.chunks(dim).enumerate() {
        let classes = several.train.all_labels().of(row);
        means.add(features, &classes).unwrap();
    }
    let expected = means.similarity().unwrap();
    let found = class_mean_similarity(&several, &options);
    let mut pairs = found.iter().zip(expected.entries());
    assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-5));

    // A frozen network and one that is trained begin with the same features.
    write_weights(BackboneKind::ResNet18, &at("weights.safetensors"));
    let options_of = |freeze: bool| TrainOptions {
        backbone: BackboneKind::ResNet18,
        weights: Some(at("weights.safetensors")),
        picture_side: Some(64),
        epochs: 1,
        freeze,
        ..options.clone()
    };
    let coloured = coloured();
    let frozen = class_mean_similarity(&coloured, &options_of(true));
    let trained = class_mean_similarity(&coloured, &options_of(false));
    assert!(frozen.iter().any(|s| s.abs() < 0.9));
    assert!(
        frozen
            .iter()
            .zip(&trained)
            .all(|(a, b)| (a - b).abs() < 1e-3)
    );

    let mut refused = options_of(false);
    refused.semantic_centers = Some(shc::Config {
        similarity_from: SimilarityFrom::ClassMeans,
        ..shc::Config::default()
    });
    let error = |options: &TrainOptions| train(&coloured, options, &mut |_| {}).unwrap_err();
    refused.weights = None;
    let text = error(&refused).to_string();
    assert!(
        text.contains("resnet-18 has random weights here; name"),
        "{text}"
    );
    refused.weights = Some(at("weights.safetensors"));
    refused.semantic_centers.as_mut().unwrap().classifier_epochs = Some(1);
    let text = error(&refused).to_string();
    assert!(
        text.contains("they go without a given similarity"),
        "{text}"
    );
}

#[test]
fn a_model_of_features_encodes_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (n, dim) = (60, 8);
    let mut values = Vec::new();
    for row in 0..n {
        for column in 0..dim {
            let own = if column % 3 == row % 3 { 2.0 } else { 0.0 };
            values.push((own + uniform("features", row * dim + column)) as f32);
        }
    }
    let labels: Vec<i64> = (0..n as i64).map(|row| row % 3).collect();
    write_integers(at("labels.npy"), &labels, NpyType::I64).unwrap();
    let dataset = features_dataset(dir.path(), dim, &values);
    let mut options = options(at("model.safetensors"));
    options.epochs = 20;
    let error = train(&dataset, &options, &mut |_| {}).unwrap_err();
    assert!(
        error.to_string().contains("use --backbone identity"),
        "{error}"
    );
    options.backbone = BackboneKind::Identity;
    let summary = train(&dataset, &options, &mut |_| {}).unwrap();
    assert!(summary.model_id.starts_with("orthohash-16-"));

    let encoder = TorchEncoder::open(&options.out, Device::Cpu).unwrap();
    assert_eq!(encoder.picture_shape(), None);
    assert_eq!(encoder.reads(), Some(PayloadKind::Vector { dim }));
    let codes = encoder.encode_set(&dataset.query, &mut |_| {}).unwrap();
    let database = encoder.encode_set(&dataset.database, &mut |_| {}).unwrap();
    for query in 0..dataset.query.len() {
        let nearest = (0..database.n_codes())
            .min_by_key(|&row| codes.get(query).distance(&database.get(row)).unwrap());
        let found = dataset.database.labels[nearest.unwrap()];
        assert_eq!(found, dataset.query.labels[query], "query {query}");
    }
    // As payloads, one wrong in each way.
    let vector = |i: usize| Payload::Vector(dataset.query.features(&[i]).unwrap().into());
    let mut batch = vec![vector(0), vector(1), vector(2), vector(3)];
    batch[1] = Payload::Vector([0.0; 7][..].into());
    batch[2] = Payload::Image(b"GIF89a"[..].into());
    let encoded = encoder.encode(&batch).unwrap();
    assert_eq!(encoded[0].as_ref().unwrap(), &codes.get(0));
    assert_eq!(encoded[3].as_ref().unwrap(), &codes.get(3));
    assert!(
        encoded[1]
            .as_ref()
            .unwrap_err()
            .reason
            .contains("a vector of 8 numbers, got 7")
    );
    assert!(
        encoded[2]
            .as_ref()
            .unwrap_err()
            .reason
            .contains("got a picture")
    );
    let error = encoder
        .encode_set(&coloured().query, &mut |_| {})
        .unwrap_err();
    assert!(
        error.to_string().ends_with("the set has pictures"),
        "{error}"
    );
}

#[test]
fn a_killed_extraction_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_weights(BackboneKind::ResNet18, &at("weights.safetensors"));
    let extractor = FeatureExtractor::open(
        BackboneKind::ResNet18,
        None,
        &at("weights.safetensors"),
        Device::Cpu,
    );
    let extractor = extractor.unwrap();
    let set = coloured().query.clone();
    extractor
        .write(&set, &at("whole.npy"), &mut |_| {})
        .unwrap();
    let mut part = NpyWriter::resume(at("parts.npy"), set.len(), 512).unwrap();
    part.append(&extractor.features(&set, &[0, 1, 2]).unwrap())
        .unwrap();
    drop(part);
    let mut done = Vec::new();
    extractor
        .write(&set, &at("parts.npy"), &mut |n| done.push(n))
        .unwrap();
    assert_eq!(done, [3, 12]);
    let values = |name: &str| {
        let file = tanhash::npy::NpyFile::open(at(name)).unwrap();
        let mut row = vec![0.0; 512];
        (0..12)
            .flat_map(|i| {
                file.copy_row(i, &mut row).unwrap();
                row.clone()
            })
            .collect::<Vec<f32>>()
    };
    for (a, b) in values("whole.npy").iter().zip(values("parts.npy")) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let error = extractor
        .write(&coloured().train, &at("whole.npy"), &mut |_| {})
        .unwrap_err();
    assert!(
        error.to_string().contains("expected 36 x 512 numbers"),
        "{error}"
    );
}

#[cfg(feature = "cli")]
#[test]
fn the_program_reads_kept_features_and_leaves_queries_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    write_weights(
        BackboneKind::ResNet18,
        Path::new(&at("weights.safetensors")),
    );
    for (split, n) in [("train", 6), ("test", 3)] {
        for (channel, class) in ["red", "green", "blue"].iter().enumerate() {
            let folder = dir.path().join("data").join(split).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for picture in 0..n {
                let mut pixel = [(10 * picture + 20 * channel) as u8; 3];
                pixel[channel] += 150;
                let picture_file = folder.join(format!("{picture}.png"));
                let image = image::RgbImage::from_pixel(12, 12, image::Rgb(pixel));
                image.save(picture_file).unwrap();
            }
        }
    }
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tanhash"));
        let output = command.args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), output.stdout, stderr)
    };
    let report = |args: &[&str]| -> (serde_json::Value, String) {
        let (success, stdout, stderr) = run(args);
        assert!(success, "{args:?}: {stderr}");
        (serde_json::from_slice(&stdout).unwrap(), stderr)
    };
    // Features are those of these pictures, whatever becomes of the folder.
    let pictures = format!("folder:{}", at("data"));
    let mut features = vec!["features", "--data", &pictures, "--backbone", "resnet-18"];
    let (kept, weights) = (at("kept"), at("weights.safetensors"));
    features.extend(["--weights", &weights, "--out", &kept]);
    features.extend(["--device", "cpu", "--picture-side", "64"]);
    assert!(run(&features).0 && run(&features).0);
    let (from, to) = (at("data/train/red/5.png"), at("data/train/green/6.png"));
    std::fs::rename(&from, &to).unwrap();
    let (success, _, stderr) = run(&features);
    assert!(!success && stderr.contains("found others"), "{stderr}");
    std::fs::rename(&to, &from).unwrap();
    assert!(run(&features).0);
    // What lies there without the description may be anybody's, and stays.
    std::fs::remove_file(dir.path().join("kept/about.json")).unwrap();
    std::fs::write(dir.path().join("kept/labels.npy"), "mine").unwrap();
    let (success, _, stderr) = run(&features);
    assert!(
        !success && stderr.contains("without the about.json"),
        "{stderr}"
    );
    assert_eq!(
        std::fs::read(dir.path().join("kept/labels.npy")).unwrap(),
        b"mine"
    );
    std::fs::remove_dir_all(&kept).unwrap();
    assert!(run(&features).0);

    let tree = at("tree.txt");
    std::fs::write(&tree, "colour\n- warm\n-- red\n-- green\n- blue\n").unwrap();
    let data = format!("folder@leave-one-out:{}", at("data"));
    let (model, cache, weights) = (
        at("model.safetensors"),
        at("cache"),
        at("weights.safetensors"),
    );
    let mut train = vec![
        "train", "--method", "shrewd", "--data", &data, "--out", &model,
    ];
    train.extend([
        "--bits", "16", "--epochs", "3", "--batch", "6", "--device", "cpu",
    ]);
    train.extend(["--backbone", "resnet-18", "--freeze", "--weights", &weights]);
    train.extend(["--feature-cache", &cache, "--json"]);
    train.extend(["--hierarchy", &tree]);
    let (summary, stderr) = report(&train);
    assert_eq!(summary["epochs_done"], 3);
    assert!(
        stderr.contains("features of 27 pictures, 0 are there already"),
        "{stderr}"
    );
    // The features are there now; nothing is said of making them.
    let (_, stderr) = report(&train);
    assert!(!stderr.contains("features of"), "{stderr}");
    std::fs::write(&tree, "colour\n- red\n- green\n").unwrap();
    let (success, _, stderr) = run(&train);
    assert!(
        !success && stderr.contains("\"blue\" is not in it"),
        "{stderr}"
    );
    let csq: Vec<&str> = train
        .iter()
        .map(|arg| if *arg == "shrewd" { "csq" } else { arg })
        .collect();
    let (success, _, stderr) = run(&csq);
    assert!(
        !success && stderr.contains("the method csq has no option --hierarchy"),
        "{stderr}"
    );

    // Centers that do not tell two classes apart are mentioned.
    let (same, other) = (at("same.npy"), at("other.safetensors"));
    let entries = [[1.0; 16], [-1.0; 16], [1.0; 16]].concat();
    let centers = Codebook::from_entries(16, entries).unwrap();
    std::fs::write(&same, centers.to_npy()).unwrap();
    let csq = csq[..csq.len() - 2].iter();
    let csq = csq.map(|&arg| if arg == model { &other } else { arg });
    let csq: Vec<&str> = csq.chain(["--centers", &same]).collect();
    let (_, stderr) = report(&csq);
    assert!(
        stderr.contains("two of 3 classes have the same center"),
        "{stderr}"
    );

    // Of options that do nothing here one is told, and files that are read stay.
    let labels = at("kept/labels.npy");
    for (more, expected) in [
        (
            ["--augment", "flip"],
            "--augment: the features of a backbone",
        ),
        (
            ["--backbone-lr-scale", "0.5"],
            "--backbone-lr-scale: the features",
        ),
        (["--log", &other], "--log: expected another name"),
        (["--log", &weights], "this file is read"),
    ] {
        let (success, _, stderr) = run(&[&csq[..], &more].concat());
        assert!(!success && stderr.contains(expected), "{stderr}");
    }
    let of_vectors = format!("features:{kept}");
    let what = ["train", "--data", &of_vectors, "--bits", "16"];
    for (more, expected) in [
        (&["--out", &labels][..], "this file is read"),
        (
            &["--out", &other, "--augment", "flip"],
            "--augment: features of a file",
        ),
    ] {
        let (success, _, stderr) = run(&[&what[..], more].concat());
        assert!(!success && stderr.contains(expected), "{stderr}");
    }

    let eval = ["eval", "--model", &model, "--data", &data, "--json"];
    let with = |cache: &str| report(&[&eval[..], &["--feature-cache", cache]].concat());
    let (of_pictures, stderr) = report(&eval);
    assert!(!stderr.contains("no features"), "{stderr}");
    let (of_features, stderr) = with(&cache);
    assert!(!stderr.contains("no features"), "{stderr}");
    // Vectors of the right length may be another network's.
    let (success, _, stderr) = run(&[
        "eval",
        "--model",
        &model,
        "--data",
        &format!("features:{kept}"),
    ]);
    assert!(
        !success
            && stderr.contains("reads pictures, features:")
            && stderr.contains("give it the pictures"),
        "{stderr}"
    );
    let (_, stderr) = with(&at("elsewhere"));
    assert!(stderr.contains("no features of these pictures"), "{stderr}");
    for found in [&of_pictures, &of_features] {
        assert_eq!(found["protocol"]["leave_one_out"], true);
        assert_eq!(
            (&found["n_queries"], &found["n_database"]),
            (&9.into(), &9.into())
        );
        let error = &found["quantization"];
        assert!(error["squared"].as_f64().unwrap() > 0.0, "{error}");
    }
    let cosine = |found: &serde_json::Value| found["quantization"]["cosine"].as_f64().unwrap();
    let (a, b) = (cosine(&of_pictures), cosine(&of_features));
    assert!((a - b).abs() < 1e-4 && a > 0.0 && a < 1.0, "{a} {b}");

    // The figure is that of the logits themselves.
    let spec: DatasetSpec = data.parse().unwrap();
    let encoder = TorchEncoder::open(&model, Device::Cpu).unwrap();
    assert_eq!(encoder.reads(), Some(PayloadKind::Image));
    let dataset = load(&spec, encoder.picture_shape(), 42).unwrap();
    let logits = encoder.logits_of(&dataset.query, &mut |_| {}).unwrap();
    let error = tanhash::eval::quantization_error(encoder.code_len(), &logits).unwrap();
    // Sums of another number of threads round differently.
    assert!((error.cosine - a).abs() < 1e-6, "{} {a}", error.cosine);
    let codes = encoder.encode_set(&dataset.query, &mut |_| {}).unwrap();
    for (row, logits) in logits.chunks_exact(16).enumerate() {
        let expected = tanhash::code::binarize(encoder.code_len(), logits).unwrap();
        assert_eq!(codes.get(row), expected);
    }

    // Classes that nothing asks for are named; leaving out is in the split that is told.
    std::fs::rename(at("data/test/blue"), at("blue")).unwrap();
    let plain = ["eval", "--model", &model, "--data", &pictures, "--json"];
    let (_, stderr) = report(&plain);
    assert!(
        stderr.contains("no query is of 1 of the 3 classes: blue"),
        "{stderr}"
    );
    let (left_out, _) = report(&[&plain[..], &["--leave-one-out"]].concat());
    assert_eq!(left_out["n_database"], 6);
    let split = left_out["notes"]["split"].as_str().unwrap();
    assert!(
        split.starts_with("query = database = 6 queries, each left out"),
        "{split}"
    );
}
