//! Each method's loss and its gradient, and the optimizer, against values recorded from torch in
//! `fixtures/methods/`. Guards the equations: a loss with a wrong sign or factor still trains.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tanhash::deep::adam::Adam;
use tanhash::deep::method::orthohash::{Config, Margin, OrthoHash};
use tanhash::deep::weights::{Group, Init, Weights};
use tanhash::deep::{CentersKind, Codebook, Method};
use tch::{Device, Kind, Tensor};

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = format!(
        "{}/fixtures/methods/{name}/reference.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().view([-1])).unwrap()
}

fn check_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = tolerance * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() <= bound,
            "{what}, value {i}: expected {expected}, found {found}"
        );
    }
}

#[derive(Deserialize)]
struct OrthoHashReference {
    n: i64,
    classes: i64,
    bits: i64,
    logits: Vec<f32>,
    codebook: Vec<f32>,
    labels: Vec<i64>,
    indicators: Vec<f32>,
    cases: Vec<OrthoHashCase>,
}

#[derive(Deserialize)]
struct OrthoHashCase {
    name: String,
    margin_kind: Margin,
    margin: f64,
    scale: Option<f64>,
    quantization_weight: f64,
    targets: String,
    classification: f32,
    quantization: f32,
    gradient: Vec<f32>,
}

#[test]
fn orthohash_matches_the_recorded_loss_and_gradient() {
    let reference: OrthoHashReference = fixture("orthohash");
    let codebook =
        Codebook::from_entries(reference.bits as usize, reference.codebook.clone()).unwrap();
    let shape = [reference.n, reference.bits];
    for case in &reference.cases {
        let config = Config {
            margin_kind: case.margin_kind,
            margin: case.margin,
            scale: case.scale,
            quantization_weight: case.quantization_weight,
            centers: CentersKind::Bernoulli,
        };
        let method = OrthoHash::new(config, &codebook, Device::Cpu).unwrap();
        let logits = Tensor::from_slice(&reference.logits)
            .view(shape)
            .set_requires_grad(true);
        let targets = match case.targets.as_str() {
            "single" => Tensor::from_slice(&reference.labels),
            _ => Tensor::from_slice(&reference.indicators).view([reference.n, reference.classes]),
        };
        let terms = method.loss(&logits, &targets).unwrap();
        terms.total().unwrap().backward();

        let classification = f32::try_from(&terms.classification).unwrap();
        let quantization = terms
            .quantization
            .as_ref()
            .map(|q| f32::try_from(q).unwrap());
        check_close(&case.name, &[classification], &[case.classification], 1e-5);
        let quantization = quantization.unwrap_or(0.0);
        check_close(&case.name, &[quantization], &[case.quantization], 1e-5);
        // The clamped arc picture sits where arccos is steep; float32 keeps fewer digits there.
        let tolerance = match case.margin_kind {
            Margin::Cos => 1e-5,
            Margin::Arc => 1e-4,
        };
        check_close(
            &case.name,
            &values(&logits.grad()),
            &case.gradient,
            tolerance,
        );
    }
}

#[test]
fn one_label_as_an_indicator_is_the_same_loss() {
    let reference: OrthoHashReference = fixture("orthohash");
    let codebook = Codebook::from_entries(reference.bits as usize, reference.codebook).unwrap();
    let method = OrthoHash::new(Config::default(), &codebook, Device::Cpu).unwrap();
    let logits = Tensor::from_slice(&reference.logits).view([reference.n, reference.bits]);
    let labels = Tensor::from_slice(&reference.labels);
    let indicators = labels.one_hot(reference.classes).to_kind(Kind::Float);
    let loss = |targets: &Tensor| {
        let total = method.loss(&logits, targets).unwrap().total().unwrap();
        f32::try_from(&total).unwrap()
    };
    check_close("loss", &[loss(&labels)], &[loss(&indicators)], 1e-6);
    let accuracy = method.accuracy(&logits, &labels).unwrap();
    assert_eq!(accuracy, method.accuracy(&logits, &indicators).unwrap());
    assert!(
        accuracy >= 1.0 / 6.0,
        "the first picture sits on its center"
    );
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let codebook =
        Codebook::new(CentersKind::MaxHd, 5, 16, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
    let method = OrthoHash::new(Config::default(), &codebook, Device::Cpu).unwrap();
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    for (logits, targets) in [
        (zeros(&[3, 32], Kind::Float), zeros(&[3], Kind::Int64)),
        (zeros(&[3, 16], Kind::Float), zeros(&[4], Kind::Int64)),
        (zeros(&[3, 16], Kind::Float), zeros(&[3, 6], Kind::Float)),
        (zeros(&[3, 16], Kind::Float), zeros(&[3], Kind::Float)),
    ] {
        let error = method.loss(&logits, &targets).unwrap_err().to_string();
        assert!(error.contains("expected logits [N, 16]"), "{error}");
    }
    let negative = Config {
        margin: -0.1,
        ..Config::default()
    };
    assert!(OrthoHash::new(negative, &codebook, Device::Cpu).is_err());
}

#[derive(Deserialize)]
struct AdamReference {
    weight_decay: f64,
    backbone_lr_scale: f64,
    rates: Vec<f64>,
    start: Pair<Vec<f32>>,
    gradients: Pair<Vec<Vec<f32>>>,
    end: Pair<Vec<f32>>,
}

#[derive(Deserialize)]
struct Pair<T> {
    backbone: T,
    head: T,
}

#[test]
fn adam_matches_torch() {
    let reference: AdamReference = fixture("adam");
    let mut weights = Weights::new(Device::Cpu);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut parameter = |name: &str, group, shape: &[i64], start: &[f32]| {
        let init = Init::Const(0.0);
        let tensor = weights.parameter(name.into(), group, shape, init, &mut rng);
        let mut tensor = tensor.unwrap();
        tch::no_grad(|| tensor.copy_(&Tensor::from_slice(start).view(shape)));
        tensor
    };
    let backbone = parameter("b", Group::Backbone, &[2, 3], &reference.start.backbone);
    let head = parameter("h", Group::Head, &[4], &reference.start.head);
    let mut adam = Adam::new(
        &weights,
        reference.weight_decay,
        reference.backbone_lr_scale,
    )
    .unwrap();
    for (step, &rate) in reference.rates.iter().enumerate() {
        // The gradient of a dot product with a constant is that constant.
        let given = |values: &[f32]| Tensor::from_slice(values);
        let loss = (backbone.view([-1]) * given(&reference.gradients.backbone[step]))
            .sum(Kind::Float)
            + (&head * given(&reference.gradients.head[step])).sum(Kind::Float);
        loss.backward();
        adam.step(rate).unwrap();
    }
    check_close(
        "backbone",
        &values(&backbone),
        &reference.end.backbone,
        1e-6,
    );
    check_close("head", &values(&head), &reference.end.head, 1e-6);
}
