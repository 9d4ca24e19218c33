//! The solver against the states of an independent one, recorded in `fixtures/methods/shc/`, and what
//! every result keeps.

use rand::Rng;

use super::*;

#[derive(Deserialize)]
struct Reference {
    centers: Recorded,
}

#[derive(Deserialize)]
struct Recorded {
    classes: usize,
    bits: usize,
    min_distance: usize,
    cycles: usize,
    similarity: Vec<f64>,
    start: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    released: bool,
    mu: f64,
    beta: f64,
    eta: f64,
    h: Vec<f64>,
    m: Vec<f64>,
    lambda: Vec<f64>,
    alpha: Vec<f64>,
}

fn check_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = 1e-9 * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() <= bound,
            "{what}, entry {at}: expected {expected}, found {found}"
        );
    }
}

#[test]
fn cycles_go_as_recorded() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/methods/shc/reference.json"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    let recorded = reference.centers;
    let similarity = ClassSimilarity::new(recorded.classes, recorded.similarity).unwrap();
    let start = Codebook::from_entries(recorded.bits, recorded.start).unwrap();
    for case in recorded.cases {
        let options = SemanticOptions {
            variant: match case.released {
                true => Variant::Released,
                false => Variant::Paper,
            },
            mu: case.mu,
            beta: case.beta,
            eta: case.eta,
            ..SemanticOptions::default()
        };
        let mut solver = Solver::new(&similarity, &start, recorded.min_distance, &options);
        for _ in 0..recorded.cycles {
            solver.cycle(None);
        }
        let name = format!("released {}, mu {}", case.released, case.mu);
        // Kept up column by column; the similarity is not symmetric.
        let (running, loss) = (solver.loss, solver.semantic_loss());
        assert!(
            (running - loss).abs() < 1e-9 * loss,
            "{name}: {running} {loss}"
        );
        check_close(&format!("{name}: M"), &solver.m, &case.m);
        check_close(&format!("{name}: H"), &solver.h, &case.h);
        check_close(&format!("{name}: Lambda"), &solver.lambda, &case.lambda);
        check_close(&format!("{name}: alpha"), &solver.alpha, &case.alpha);
    }
}

/// Classes in groups of four: alike within a group.
fn groups(n_classes: usize) -> ClassSimilarity {
    let entries = (0..n_classes * n_classes).map(|at| match (at / n_classes, at % n_classes) {
        (a, b) if a == b => 1.0,
        (a, b) if a / 4 == b / 4 => 0.5,
        _ => 0.0,
    });
    ClassSimilarity::new(n_classes, entries.collect()).unwrap()
}

#[test]
fn results_keep_the_distance_and_report_what_they_are() {
    let similarity = groups(20);
    for variant in [Variant::Paper, Variant::Released] {
        for (bits, min_distance) in [(16, None), (24, Some(4))] {
            let options = SemanticOptions {
                variant,
                min_distance,
                restarts: 2,
                ..SemanticOptions::default()
            };
            let made = semantic_centers(&similarity, bits, &options, 1).unwrap();
            let report = &made.report;
            let wished = min_distance.unwrap_or(gilbert_varshamov(20, bits));
            assert_eq!((report.wished_distance, report.bits), (wished, bits));
            assert_eq!(report.d_min, made.codebook.min_distance());
            assert!(report.d_min >= wished, "{} < {wished}", report.d_min);
            assert_eq!(report.s_loss, s_loss(&similarity, &made.codebook));
            assert!(report.s_loss_before_refine <= report.s_loss_start);
            // Random centers are at about 1 / bits for each pair; the search gets well below the solver.
            assert!(
                report.s_loss < 0.7 * report.s_loss_before_refine,
                "{report:?}"
            );
            let again = semantic_centers(&similarity, bits, &options, 1).unwrap();
            assert_eq!(again.codebook, made.codebook);
            let unrefined = SemanticOptions {
                refine: false,
                ..options
            };
            let plain = semantic_centers(&similarity, bits, &unrefined, 1).unwrap();
            assert_eq!(plain.report.s_loss, plain.report.s_loss_before_refine);
        }
    }
}

#[test]
fn the_search_counts_changes_right() {
    // A similarity that is not symmetric, so that a missing symmetrization would show.
    let n = 7;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let entries = (0..n * n).map(|at| match at % (n + 1) {
        0 => 1.0,
        _ => rng.random_range(-0.5..0.8),
    });
    let similarity = ClassSimilarity::new(n, entries.collect()).unwrap();
    let start = separated(n, 8, 1, &mut rng).unwrap();
    let found = refine(&start, &similarity, 1, &mut rng);
    assert!(found.min_distance() >= 1);
    // No single flip that keeps the distance lowers the loss: the search ends in a local optimum.
    let reached = s_loss(&similarity, &found);
    assert!(reached < s_loss(&similarity, &start));
    for at in 0..n * 8 {
        let mut entries = found.entries().to_vec();
        entries[at] = -entries[at];
        let other = Codebook::from_entries(8, entries).unwrap();
        assert!(
            other.min_distance() < 1 || s_loss(&similarity, &other) >= reached - 1e-12,
            "flipping entry {at} is better"
        );
    }
}

#[test]
fn bits_that_do_not_suffice_are_named() {
    let options = SemanticOptions {
        min_distance: Some(12),
        ..SemanticOptions::default()
    };
    let error = semantic_centers(&groups(20), 16, &options, 0).unwrap_err();
    assert!(error.to_string().contains("use more bits"), "{error}");
    let options = SemanticOptions {
        beta: 0.0,
        ..SemanticOptions::default()
    };
    let error = semantic_centers(&groups(20), 16, &options, 0).unwrap_err();
    assert!(error.to_string().contains("beta"), "{error}");
}
