//! Each method's loss and its gradient, and the optimizer, against values recorded from torch in
//! `fixtures/methods/`. Guards the equations: a loss with a wrong sign or factor still trains.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tanhash::centers::ClassDistances;
use tanhash::centers::semantic::Variant;
use tanhash::deep::hash_head::{HashHead, HeadKind};
use tanhash::deep::method::central::Central;
use tanhash::deep::method::classifier::Classifier;
use tanhash::deep::method::dpn::{self, Dpn};
use tanhash::deep::method::greedyhash::{self, GreedyHash};
use tanhash::deep::method::hashnet::{self, HashNet};
use tanhash::deep::method::orthohash::{Config, Margin, OrthoHash, Scale};
use tanhash::deep::method::shc::SimilarityBuilder;
use tanhash::deep::method::shrewd::{self, Shrewd, empirical_kl};
use tanhash::deep::optimizer::{Optimizer, OptimizerKind};
use tanhash::deep::weights::{Group, Init, Weights};
use tanhash::deep::{CentersKind, Codebook, Method, StepInfo};
use tch::{Device, Kind, Tensor};

/// The first step of a run.
const START: StepInfo = StepInfo {
    epoch: 0,
    step: 0,
    seed: 0,
};

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
            scale: case.scale.map_or(Scale::SqrtBits, Scale::Fixed),
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
        let terms = method.loss(&logits, &targets, START).unwrap();
        terms.total().unwrap().backward();

        let term = |name: &str| terms.get(name).map(|term| f32::try_from(term).unwrap());
        let classification = term("classification").unwrap();
        let quantization = term("quantization");
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
        let total = method
            .loss(&logits, targets, START)
            .unwrap()
            .total()
            .unwrap();
        f32::try_from(&total).unwrap()
    };
    check_close("loss", &[loss(&labels)], &[loss(&indicators)], 1e-6);
    let accuracy = method.accuracy(&logits, &labels).unwrap().unwrap();
    assert_eq!(
        Some(accuracy),
        method.accuracy(&logits, &indicators).unwrap()
    );
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
        let error = method
            .loss(&logits, &targets, START)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected logits [N, 16]"), "{error}");
    }
    let negative = Config {
        margin: -0.1,
        ..Config::default()
    };
    assert!(OrthoHash::new(negative, &codebook, Device::Cpu).is_err());
}

#[derive(Deserialize)]
struct OptimizerReference {
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

fn check_optimizer(kind: OptimizerKind, reference: &OptimizerReference) {
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
    let (decay, scale) = (reference.weight_decay, reference.backbone_lr_scale);
    let mut optimizer = Optimizer::new(kind, &[&weights], decay, scale).unwrap();
    for (step, &rate) in reference.rates.iter().enumerate() {
        // The gradient of a dot product with a constant is that constant.
        let given = |values: &[f32]| Tensor::from_slice(values);
        let loss = (backbone.view([-1]) * given(&reference.gradients.backbone[step]))
            .sum(Kind::Float)
            + (&head * given(&reference.gradients.head[step])).sum(Kind::Float);
        loss.backward();
        optimizer.step(rate).unwrap();
    }
    let end = &reference.end;
    check_close(
        &format!("{kind}, backbone"),
        &values(&backbone),
        &end.backbone,
        1e-6,
    );
    check_close(&format!("{kind}, head"), &values(&head), &end.head, 1e-6);
}

#[test]
fn optimizers_match_torch() {
    let reference: Optimizers = fixture("optimizers");
    check_optimizer(OptimizerKind::ADAM, &reference.adam);
    check_optimizer(OptimizerKind::SGD, &reference.sgd);
    check_optimizer(OptimizerKind::RMSPROP, &reference.rmsprop);
    let bad = OptimizerKind::Sgd { momentum: 1.0 };
    assert!(Optimizer::new(bad, &[], 0.0, 1.0).is_err());
}

#[derive(Deserialize)]
struct Optimizers {
    adam: OptimizerReference,
    sgd: OptimizerReference,
    rmsprop: OptimizerReference,
}

#[derive(Deserialize)]
struct Baselines {
    n: i64,
    classes: i64,
    bits: i64,
    logits: Vec<f32>,
    codebook: Vec<f32>,
    labels: Vec<i64>,
    indicators: Vec<f32>,
    layer: Vec<f32>,
    cases: Vec<BaselineCase>,
}

#[derive(Deserialize)]
struct BaselineCase {
    method: String,
    targets: String,
    settings: serde_json::Value,
    terms: std::collections::BTreeMap<String, f32>,
    gradient: Vec<f32>,
    layer_gradient: Vec<f32>,
}

#[test]
fn baselines_match_the_recorded_losses_and_gradients() {
    let reference: Baselines = fixture("baselines");
    let (n_classes, bits) = (reference.classes as usize, reference.bits as usize);
    let codebook = Codebook::from_entries(bits, reference.codebook.clone()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for case in &reference.cases {
        let name = format!("{}, {}, {}", case.method, case.targets, case.settings);
        let setting = |name: &str| case.settings[name].as_f64().unwrap();
        let mut at = START;
        let method: Box<dyn Method> = match case.method.as_str() {
            "csq" => {
                let weight = setting("quantization_weight");
                Box::new(Central::new("csq", weight, &codebook, Device::Cpu).unwrap())
            }
            "dpn" => {
                let config = dpn::Config {
                    margin: setting("margin"),
                    ..dpn::Config::default()
                };
                Box::new(Dpn::new(config, &codebook, Device::Cpu).unwrap())
            }
            "greedyhash" => {
                let config = greedyhash::Config {
                    penalty: setting("penalty"),
                };
                let method = GreedyHash::new(config, n_classes, bits, Device::Cpu, &mut rng);
                Box::new(method.unwrap())
            }
            _ => {
                at.epoch = setting("epoch") as usize;
                let config = hashnet::Config {
                    alpha: setting("alpha"),
                    continuation_epochs: setting("continuation_epochs") as usize,
                };
                Box::new(HashNet::new(config, n_classes, bits).unwrap())
            }
        };
        let own = method
            .weights()
            .map(|own| own.entries()[0].tensor.shallow_clone());
        if let Some(layer) = &own {
            let given = Tensor::from_slice(&reference.layer).view([reference.classes, -1]);
            tch::no_grad(|| layer.shallow_clone().copy_(&given));
        }
        let logits = Tensor::from_slice(&reference.logits)
            .view([reference.n, reference.bits])
            .set_requires_grad(true);
        let targets = match case.targets.as_str() {
            "single" => Tensor::from_slice(&reference.labels),
            _ => Tensor::from_slice(&reference.indicators).view([reference.n, reference.classes]),
        };
        let terms = method.loss(&logits, &targets, at).unwrap();
        terms.total().unwrap().backward();
        assert_eq!(terms.terms().len(), case.terms.len(), "{name}");
        for (term, value) in terms.terms() {
            let value = f32::try_from(value).unwrap();
            check_close(
                &format!("{name}: {term}"),
                &[value],
                &[case.terms[*term]],
                1e-5,
            );
        }
        check_close(&name, &values(&logits.grad()), &case.gradient, 1e-5);
        match own {
            Some(layer) => {
                check_close(&name, &values(&layer.grad()), &case.layer_gradient, 1e-5);
            }
            None => assert!(case.layer_gradient.is_empty()),
        }
    }
}

/// An example of no class adds nothing to the sum over examples, and gets no gradient.
#[test]
fn orthohash_passes_over_an_example_without_a_class() {
    let codebook = Codebook::seeded(CentersKind::MaxHd, 5, 16, 0).unwrap();
    let config = Config::default();
    let method = OrthoHash::new(config, &codebook, Device::Cpu).unwrap();
    tch::manual_seed(3);
    let two = Tensor::randn([2, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let both = Tensor::from_slice2(&[[0f32, 1.0, 1.0, 0.0, 0.0], [0.0; 5]]);
    let loss = |logits: &Tensor, targets: &Tensor| {
        let terms = method.loss(logits, targets, START).unwrap();
        terms.total().unwrap()
    };
    let total = loss(&two, &both);
    total.backward();
    let one = loss(&two.narrow(0, 0, 1), &both.narrow(0, 0, 1));
    let (total, one) = (f32::try_from(&total).unwrap(), f32::try_from(&one).unwrap());
    assert!((total - one / 2.0).abs() < 1e-6, "{total} {one}");
    let gradient = values(&two.grad());
    assert!(gradient[..16].iter().any(|value| *value != 0.0));
    assert_eq!(gradient[16..], [0.0; 16]);
}

#[test]
fn methods_of_one_label_refuse_several() {
    let codebook = Codebook::seeded(CentersKind::MaxHd, 5, 16, 0).unwrap();
    let method = Dpn::new(dpn::Config::default(), &codebook, Device::Cpu).unwrap();
    let logits = Tensor::zeros([3, 16], (Kind::Float, Device::Cpu));
    let several = Tensor::ones([3, 5], (Kind::Float, Device::Cpu));
    let error = method
        .loss(&logits, &several, START)
        .unwrap_err()
        .to_string();
    assert!(error.contains("one label a picture"), "{error}");
}

#[derive(Deserialize)]
struct ShrewdReference {
    n: i64,
    classes: usize,
    bits: i64,
    m: i64,
    logits: Vec<f32>,
    labels: Vec<i64>,
    distances: Vec<f32>,
    draws: Vec<f32>,
    cases: std::collections::BTreeMap<String, ShrewdCase>,
    classification_weight: f64,
    similarity_weight: f64,
    layer: Vec<f32>,
    bias: Vec<f32>,
    layer_gradient: Vec<f32>,
    bias_gradient: Vec<f32>,
}

#[derive(Deserialize)]
struct ShrewdCase {
    value: f32,
    gradient: Vec<f32>,
}

#[test]
fn shrewd_matches_the_recorded_terms_and_gradients() {
    let reference: ShrewdReference = fixture("shrewd");
    let logits = || {
        Tensor::from_slice(&reference.logits)
            .view([reference.n, reference.bits])
            .set_requires_grad(true)
    };
    let check = |name: &str, value: &Tensor, leaf: &Tensor| {
        let case = &reference.cases[name];
        value.backward();
        check_close(name, &[f32::try_from(value).unwrap()], &[case.value], 1e-5);
        check_close(name, &values(&leaf.grad()), &case.gradient, 1e-5);
    };
    let distances = ClassDistances::new(reference.classes, reference.distances.clone()).unwrap();
    let config = shrewd::Config {
        classification_weight: 0.0,
        similarity_weight: Some(1.0),
        kl_weight: 0.0,
        ..shrewd::Config::default()
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let (n_classes, bits) = (reference.classes, reference.bits as usize);
    let method = Shrewd::new(
        config.clone(),
        n_classes,
        bits,
        Some(&distances),
        Device::Cpu,
        &mut rng,
    );
    let (leaf, labels) = (logits(), Tensor::from_slice(&reference.labels));
    let terms = method.unwrap().loss(&leaf, &labels, START).unwrap();
    check("similarity", terms.get("similarity").unwrap(), &leaf);

    // Distances of pictures in place of classes: the same, if they are those of their classes.
    let of = |a: usize, b: usize| {
        let (a, b) = (reference.labels[a] as usize, reference.labels[b] as usize);
        reference.distances[a * n_classes + b]
    };
    let n = reference.n as usize;
    let pictures = (0..n * n).map(|at| of(at / n, at % n)).collect();
    let pictures = ClassDistances::new(n, pictures).unwrap();
    let config = shrewd::Config {
        weakly_supervised: true,
        ..config
    };
    let method = Shrewd::new(
        config.clone(),
        n_classes,
        bits,
        Some(&pictures),
        Device::Cpu,
        &mut rng,
    );
    let (leaf, rows) = (
        logits(),
        Tensor::arange(reference.n, (Kind::Int64, Device::Cpu)),
    );
    let terms = method.unwrap().loss(&leaf, &rows, START).unwrap();
    check("similarity", terms.get("similarity").unwrap(), &leaf);
    assert!(Shrewd::new(config, n_classes, bits, None, Device::Cpu, &mut rng).is_err());

    let leaf = logits();
    let draws = Tensor::from_slice(&reference.draws).view([reference.m, reference.bits]);
    check("kl", &empirical_kl(&leaf.sigmoid(), &draws).unwrap(), &leaf);

    // All terms but the random one, with the classification layer.
    let config = shrewd::Config {
        classification_weight: reference.classification_weight,
        similarity_weight: Some(reference.similarity_weight),
        kl_weight: 0.0,
        ..shrewd::Config::default()
    };
    let given = Some(&distances);
    let method = Shrewd::new(config, n_classes, bits, given, Device::Cpu, &mut rng).unwrap();
    let own = method.weights().unwrap().entries();
    let [layer, bias] = [0, 1].map(|at| own[at].tensor.shallow_clone());
    tch::no_grad(|| {
        let values = Tensor::from_slice(&reference.layer).view([n_classes as i64, reference.bits]);
        layer.shallow_clone().copy_(&values);
        bias.shallow_clone()
            .copy_(&Tensor::from_slice(&reference.bias));
    });
    let leaf = logits();
    let terms = method.loss(&leaf, &labels, START).unwrap();
    assert_eq!(terms.terms().len(), 2);
    check("total", &terms.total().unwrap(), &leaf);
    check_close(
        "layer",
        &values(&layer.grad()),
        &reference.layer_gradient,
        1e-5,
    );
    check_close(
        "bias",
        &values(&bias.grad()),
        &reference.bias_gradient,
        1e-5,
    );
}

#[test]
fn shrewd_stays_finite_where_outputs_are_equal() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let config = shrewd::Config::default();
    let method = Shrewd::new(config, 3, 16, None, Device::Cpu, &mut rng).unwrap();
    let logits = Tensor::zeros([4, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let targets = Tensor::from_slice(&[1i64, 1, 1, 1]);
    let terms = method.loss(&logits, &targets, START).unwrap();
    terms.total().unwrap().backward();
    assert!(values(&logits.grad()).iter().all(|value| value.is_finite()));
    // The target sample is another one in every step, and the same in the same step.
    let kl = |step| {
        let at = StepInfo { step, ..START };
        let logits = Tensor::arange(64, (Kind::Float, Device::Cpu)).view([4, 16]) * 0.01;
        let terms = method.loss(&logits, &targets, at).unwrap();
        f32::try_from(terms.get("kl").unwrap()).unwrap()
    };
    assert_eq!(kl(1), kl(1));
    assert_ne!(kl(1), kl(2));
}

#[derive(Deserialize)]
struct ShcReference {
    similarity: ShcSimilarity,
    classifier: std::collections::BTreeMap<String, ClassifierCase>,
}

#[derive(Deserialize)]
struct ClassifierCase {
    value: f32,
    gradient: Vec<f32>,
}

#[derive(Deserialize)]
struct ShcSimilarity {
    n: i64,
    classes: usize,
    labels: Vec<i64>,
    logits: Vec<f32>,
    paper: Vec<f64>,
    released: Vec<f64>,
}

#[test]
fn shc_similarities_match_the_recorded_ones() {
    let reference: ShcReference = fixture("shc");
    let recorded = reference.similarity;
    let logits = Tensor::from_slice(&recorded.logits).view([recorded.n, -1]);
    for (variant, expected) in [
        (Variant::Paper, &recorded.paper),
        (Variant::Released, &recorded.released),
    ] {
        let mut builder = SimilarityBuilder::new(recorded.classes, variant);
        // In two parts: sums go on over batches.
        builder
            .add(&logits.narrow(0, 0, 5), &recorded.labels[..5])
            .unwrap();
        let rest = logits.narrow(0, 5, recorded.n - 5);
        builder.add(&rest, &recorded.labels[5..]).unwrap();
        assert!(builder.add(&rest, &recorded.labels).is_err());
        let similarity = builder.finish().unwrap();
        for (found, expected) in similarity.entries().iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-9,
                "{variant}: {found} {expected}"
            );
        }
    }
    let mut builder = SimilarityBuilder::new(recorded.classes, Variant::Paper);
    builder.add(&logits.narrow(0, 0, 2), &[0, 1]).unwrap();
    let error = builder.finish().unwrap_err().to_string();
    assert!(error.contains("class 2 has no train picture"), "{error}");
}

/// Cross entropy, and the released program's, of probabilities taken for logits.
#[test]
fn shc_classifiers_match_the_recorded_losses_and_gradients() {
    let reference: ShcReference = fixture("shc");
    let recorded = reference.similarity;
    for variant in [Variant::Paper, Variant::Released] {
        let case = &reference.classifier[&variant.to_string()];
        let logits = Tensor::from_slice(&recorded.logits)
            .view([recorded.n, -1])
            .set_requires_grad(true);
        let classifier = Classifier::new(recorded.classes, variant);
        let terms = classifier.loss(&logits, &Tensor::from_slice(&recorded.labels), START);
        let total = terms.unwrap().total().unwrap();
        total.backward();
        let name = variant.to_string();
        check_close(
            &name,
            &[f32::try_from(&total).unwrap()],
            &[case.value],
            1e-5,
        );
        check_close(&name, &values(&logits.grad()), &case.gradient, 1e-5);
    }
}

/// Where the centers of an example's classes cancel out a coin decides, the same for every example.
#[test]
fn centers_that_cancel_out_leave_a_coin() {
    let (bits, x) = (64, Kind::Float);
    let row = |sign: f32| (0..bits).map(move |bit| if bit % 3 == 0 { sign } else { -sign });
    let codebook = Codebook::from_entries(bits, row(1.0).chain(row(-1.0)).collect()).unwrap();
    let central = Central::new("csq", 0.0, &codebook, Device::Cpu).unwrap();
    let logits = Tensor::zeros([2, bits as i64], (x, Device::Cpu)).set_requires_grad(true);
    let both = Tensor::ones([2, 2], (x, Device::Cpu));
    let terms = central.loss(&logits, &both, START).unwrap();
    terms.total().unwrap().backward();
    // At 0 the gradient is (1/2 - t) 2 / (N K), t the bit of the target.
    let found = values(&logits.grad());
    let expected = 1.0 / (2 * bits) as f32;
    assert!(
        found
            .iter()
            .all(|value| (value.abs() - expected).abs() < 1e-7),
        "{found:?}"
    );
    let (first, second) = found.split_at(bits);
    assert_eq!(first, second);
    assert!(first.iter().any(|&value| value > 0.0) && first.iter().any(|&value| value < 0.0));
}

#[test]
fn scales_are_those_of_the_paper() {
    assert_eq!(Scale::SqrtBits.value(10, 64), 8.0);
    assert_eq!("2.5".parse::<Scale>().unwrap().value(10, 64), 2.5);
    // The supplement's figure for 100 classes.
    let recommended = "log-classes".parse::<Scale>().unwrap();
    assert!((recommended.value(100, 64) - 6.4985).abs() < 1e-4);
    assert!("log".parse::<Scale>().is_err());
}

#[test]
fn normalization_adapts_to_a_target_set() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut weights = Weights::new(Device::Cpu);
    let mut head = HashHead::new(&mut weights, HeadKind::NORM, 5, 8, &mut rng).unwrap();
    let noise = weights
        .parameter(
            "n".into(),
            Group::Head,
            &[40, 5],
            Init::Normal(1.0),
            &mut rng,
        )
        .unwrap()
        .detach();
    // Far from 0, where sums of squares would cancel out.
    let features = noise * 3.0 + 1000.0;
    let parts = [features.narrow(0, 0, 7), features.narrow(0, 7, 33)];
    let mut batches = parts.iter().map(|part| Ok(part.shallow_clone()));
    assert_eq!(head.adapt(&mut batches).unwrap(), 40);
    let logits = head.forward(&features, false).unwrap();
    let mean = logits.mean_dim(&[0i64][..], false, Kind::Float);
    let variance = logits.var_dim(&[0i64][..], true, false);
    check_close("mean", &values(&mean), &[0.0; 8], 2e-2);
    // The epsilon of the normalization shows where the variance is small.
    let outputs = features.to_kind(Kind::Double).linear(
        &weights.entries()[0].tensor.to_kind(Kind::Double),
        None::<&Tensor>,
    );
    let spread = outputs.var_dim(&[0i64][..], true, false);
    let expected = (&spread / (&spread + 1e-5)).to_kind(Kind::Float);
    check_close("variance", &values(&variance), &values(&expected), 1e-2);

    let few = &mut std::iter::once(Ok(features.narrow(0, 0, 1)));
    assert!(head.adapt(few).is_err());
    let mut linear = HashHead::new(
        &mut Weights::new(Device::Cpu),
        HeadKind::LINEAR,
        5,
        8,
        &mut rng,
    );
    let error = linear
        .as_mut()
        .unwrap()
        .adapt(&mut std::iter::empty())
        .unwrap_err();
    assert!(
        error.to_string().contains("no batch normalization"),
        "{error}"
    );
}
