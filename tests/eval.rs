//! Figures against an oracle that shares no code with the library: rankings are sorted in full, every measure is
//! written from its definition, and expectations over ties are means of many orders or sums over tied places.
//! Iterative quantization stands against values that numpy made.

mod common;

use common::seeded;
use rand::Rng;
use rand::seq::SliceRandom;
use tanhash::encode::{Encoder, Itq};
use tanhash::eval::{
    Cutoff, Denominator, EmptyQueries, Evaluation, Hierarchy, LabelSets, Protocol, Report, Ties,
    bit_statistics, evaluate,
};
use tanhash::{CodeLen, Codes, Payload};

#[track_caller]
fn near(what: &str, found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-9,
        "{what}: {found}, by the definition {expected}"
    );
}

/// Codes in which few bits are free, so that most distances tie.
fn tied_codes(
    rng: &mut impl Rng,
    len: CodeLen,
    n: usize,
    free_bits: usize,
) -> (Codes, Vec<Vec<u8>>) {
    let rows: Vec<Vec<u8>> = (0..n)
        .map(|_| {
            let mut row = vec![0x5a; len.bytes()];
            for bit in 0..free_bits {
                let at = bit * 7919 % len.bits();
                row[at / 8] =
                    row[at / 8] & !(1 << (at % 8)) | u8::from(rng.random_bool(0.4)) << (at % 8);
            }
            row
        })
        .collect();
    (Codes::from_packed(len, &rows.concat()).unwrap(), rows)
}

fn distance(a: &[u8], b: &[u8]) -> usize {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a ^ b).count_ones() as usize)
        .sum()
}

/// One query before the oracle: the distance, relevance and gain of every item that is ranked.
struct Seen {
    items: Vec<(usize, bool, f64)>,
}

impl Seen {
    /// Items by distance; ties in the order given.
    fn sorted(&self) -> Vec<(usize, bool, f64)> {
        let mut items = self.items.clone();
        items.sort_by_key(|item| item.0);
        items
    }

    /// The mean gain at each rank over all orders of ties: that of the tied.
    fn expected(&self, value: impl Fn(&(usize, bool, f64)) -> f64) -> Vec<f64> {
        let sorted = self.sorted();
        let mean = |at: usize| {
            let tied: Vec<f64> = sorted.iter().filter(|i| i.0 == at).map(&value).collect();
            tied.iter().sum::<f64>() / tied.len() as f64
        };
        sorted.iter().map(|item| mean(item.0)).collect()
    }

    fn ap(&self, order: &[(usize, bool, f64)], r: usize) -> Option<(f64, f64)> {
        let all = order.iter().filter(|item| item.1).count();
        let (mut found, mut sum) = (0.0, 0.0);
        for (rank, item) in (1..=r).zip(order) {
            if item.1 {
                found += 1.0;
                sum += found / rank as f64;
            }
        }
        (found > 0.0).then(|| (sum / found, sum / all.min(r) as f64))
    }

    fn ndcg(&self, k: usize) -> f64 {
        let discounted = |gains: &[f64]| -> f64 {
            (1..=k)
                .zip(gains)
                .map(|(rank, gain)| gain / (rank as f64 + 1.0).log2())
                .sum()
        };
        let mut best: Vec<f64> = self.items.iter().map(|item| item.2).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        match discounted(&best) {
            0.0 => 0.0,
            ideal => discounted(&self.expected(|item| item.2)) / ideal,
        }
    }

    /// HP@1 to HP@k.
    fn hp(&self, k: usize) -> Vec<f64> {
        let mut best: Vec<f64> = self.items.iter().map(|item| item.2).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        let found = self.expected(|item| item.2);
        (1..=k)
            .map(|k| {
                let sum = |gains: &[f64]| gains.iter().take(k).sum::<f64>();
                if sum(&best) == 0.0 {
                    0.0
                } else {
                    sum(&found) / sum(&best)
                }
            })
            .collect()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

const TREE: &str = "root\n- a\n-- 0\n-- 1\n- b\n-- c\n--- 2\n--- 3\n-- 4\n";

/// Similarities of `TREE` by hand: heights are 3 of the root, 2 of b, 1 of a and c.
const SIMILARITY: [[f64; 5]; 5] = [
    [1.0, 2.0 / 3.0, 0.0, 0.0, 0.0],
    [2.0 / 3.0, 1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 2.0 / 3.0, 1.0 / 3.0],
    [0.0, 0.0, 2.0 / 3.0, 1.0, 1.0 / 3.0],
    [0.0, 0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0],
];

/// Compares everything that is an expectation over ties.
fn check_expectations(report: &Report, seen: &[Seen], k_max: usize) {
    for at in &report.at_k {
        let k = at.k;
        let found = |seen: &Seen| -> f64 {
            seen.expected(|item| f64::from(u8::from(item.1)))
                .iter()
                .take(k)
                .sum()
        };
        near(
            "P@k",
            at.precision,
            mean(seen.iter().map(|seen| found(seen) / k as f64)),
        );
        let recall = seen.iter().map(|seen| {
            let m = seen.items.iter().filter(|item| item.1).count();
            if m == 0 { 0.0 } else { found(seen) / m as f64 }
        });
        near("recall@k", at.recall, mean(recall));
        near(
            "nDCG@k",
            at.ndcg,
            mean(seen.iter().map(|seen| seen.ndcg(k))),
        );
        if let Some(hp) = at.hierarchical_precision {
            near("HP@k", hp, mean(seen.iter().map(|seen| seen.hp(k)[k - 1])));
        }
    }
    if let Some(hierarchical) = &report.hierarchical {
        assert_eq!(hierarchical.k, k_max);
        let area = |hp: &[f64]| -> f64 {
            let strips = hp
                .windows(2)
                .map(|pair| 0.5 * (pair[0] + pair[1]) / k_max as f64);
            strips.sum()
        };
        let mahp = mean(seen.iter().map(|seen| area(&seen.hp(k_max))));
        near("mAHP", hierarchical.mahp, mahp);
    }
    let pairs = |wanted: bool| -> Vec<usize> {
        let items = seen.iter().flat_map(|seen| &seen.items);
        items
            .filter(|item| item.1 == wanted)
            .map(|item| item.0)
            .collect()
    };
    let (relevant, other) = (pairs(true), pairs(false));
    let mean_distance = |pairs: &[usize]| mean(pairs.iter().map(|&d| d as f64));
    if !relevant.is_empty() {
        near(
            "mean distance",
            report.distances.relevant_mean.unwrap(),
            mean_distance(&relevant),
        );
    }
    near(
        "mean distance",
        report.distances.other_mean.unwrap(),
        mean_distance(&other),
    );
    for within in &report.curve {
        let inside = |item: &&(usize, bool, f64)| item.0 <= within.radius as usize;
        let precision = seen.iter().map(|seen| {
            let items: Vec<_> = seen.items.iter().filter(inside).collect();
            let hits = items.iter().filter(|item| item.1).count();
            if items.is_empty() {
                0.0
            } else {
                hits as f64 / items.len() as f64
            }
        });
        near(
            "precision within a radius",
            within.precision,
            mean(precision),
        );
    }
}

#[test]
fn every_measure_equals_its_definition() {
    let similarities = Hierarchy::parse(TREE)
        .unwrap()
        .classes(&["0", "1", "2", "3", "4"])
        .unwrap()
        .similarities();
    for seed in 0..24u64 {
        let mut rng = seeded("every_measure_equals_its_definition", seed);
        let len = CodeLen::new([16, 64, 72, 200][seed as usize % 4]).unwrap();
        let free_bits = rng.random_range(0..9);
        let leave_one_out = seed % 3 == 0;
        let n_database = rng.random_range(2..90);
        let n_query = if leave_one_out {
            n_database
        } else {
            rng.random_range(1..20)
        };
        let (database, database_rows) = tied_codes(&mut rng, len, n_database, free_bits);
        let mut labels = |n: usize| -> Vec<u32> {
            // Class 4 is often missing, so that some queries find nothing relevant.
            (0..n).map(|_| rng.random_range(0..50) / 12).collect()
        };
        let database_labels = labels(n_database);
        let (query, query_rows, query_labels) = match leave_one_out {
            true => (
                database.clone(),
                database_rows.clone(),
                database_labels.clone(),
            ),
            false => {
                let query_labels = labels(n_query);
                let (codes, rows) = tied_codes(&mut rng, len, n_query, free_bits);
                (codes, rows, query_labels)
            }
        };
        let seen: Vec<Seen> = (0..n_query)
            .map(|q| Seen {
                items: (0..n_database)
                    .filter(|&row| !(leave_one_out && row == q))
                    .map(|row| {
                        let (of_query, of_item) = (query_labels[q], database_labels[row]);
                        let gain = SIMILARITY[of_query as usize][of_item as usize];
                        let distance = distance(&query_rows[q], &database_rows[row]);
                        (distance, of_query == of_item, gain)
                    })
                    .collect(),
            })
            .collect();
        let r = rng.random_range(1..n_database + 3);
        let mut protocol = Protocol::new(Cutoff::At(r));
        protocol.ties = Ties::DatabaseOrder;
        protocol.leave_one_out = leave_one_out;
        protocol.ks = vec![1, 3, 10, 200];
        protocol.hierarchy_k = 13;
        let evaluation =
            Evaluation::new(&query, &query_labels, &database, &database_labels).unwrap();
        let evaluation = evaluation.similarities(&similarities).unwrap();
        let report = evaluation.run(&protocol).unwrap();
        let ap: Vec<Option<(f64, f64)>> =
            seen.iter().map(|seen| seen.ap(&seen.sorted(), r)).collect();
        let zero = |value: Option<f64>| value.unwrap_or(0.0);
        let by = &report.map_by_denominator;
        let top_r = mean(ap.iter().map(|ap| zero(ap.map(|ap| ap.0))));
        near(
            "mAP@R, relevant found",
            by.relevant_in_top_r.unwrap(),
            top_r,
        );
        near("mAP@R", report.map, top_r);
        near(
            "mAP@R, min",
            by.min_relevant_r,
            mean(ap.iter().map(|ap| zero(ap.map(|ap| ap.1)))),
        );
        for (found, ap) in report.ap_per_query.iter().zip(&ap) {
            near("AP of a query", *found, zero(ap.map(|ap| ap.0)));
        }
        assert_eq!(
            report.n_empty_queries,
            ap.iter().filter(|ap| ap.is_none()).count()
        );
        check_expectations(&report, &seen, 13);

        protocol.empty_queries = EmptyQueries::Skip;
        let skipping = evaluation.run(&protocol).unwrap();
        let found: Vec<f64> = ap.iter().flatten().map(|ap| ap.0).collect();
        let expected = if found.is_empty() {
            0.0
        } else {
            mean(found.iter().copied())
        };
        near("mAP@R without empty queries", skipping.map, expected);

        // Without similarities the gain is relevance.
        let binary: Vec<Seen> = seen
            .iter()
            .map(|seen| Seen {
                items: seen
                    .items
                    .iter()
                    .map(|i| (i.0, i.1, f64::from(u8::from(i.1))))
                    .collect(),
            })
            .collect();
        let plain = evaluate(
            &query,
            &query_labels,
            &database,
            &database_labels,
            &protocol,
        )
        .unwrap();
        assert!(plain.hierarchical.is_none());
        check_expectations(&plain, &binary, 13);
    }
}

#[test]
fn expectations_are_means_over_orders() {
    for seed in 0..6u64 {
        let mut rng = seeded("expectations_are_means_over_orders", seed);
        let len = CodeLen::new(16).unwrap();
        let (database, rows) = tied_codes(&mut rng, len, 12, 2);
        let labels: Vec<u32> = (0..12).map(|_| rng.random_range(0..3)).collect();
        let mut protocol = Protocol::new(Cutoff::At(5));
        protocol.ties = Ties::Expected;
        protocol.denominator = Denominator::MinRelevantR;
        protocol.leave_one_out = true;
        let report = evaluate(&database, &labels, &database, &labels, &protocol).unwrap();
        assert!(report.map_by_denominator.relevant_in_top_r.is_none());
        let (mut at_all, mut at_5) = (Vec::new(), Vec::new());
        for _ in 0..4000 {
            for q in 0..12 {
                let mut items: Vec<(usize, bool, f64)> = (0..12)
                    .filter(|&row| row != q)
                    .map(|row| {
                        (
                            distance(&rows[q], &rows[row]),
                            labels[q] == labels[row],
                            0.0,
                        )
                    })
                    .collect();
                items.shuffle(&mut rng);
                let seen = Seen { items };
                let order = seen.sorted();
                at_all.push(seen.ap(&order, 11).map_or(0.0, |ap| ap.1));
                at_5.push(seen.ap(&order, 5).map_or(0.0, |ap| ap.1));
            }
        }
        // The spread of a mean of 48,000 numbers from 0 to 1 is below .0023.
        let close = |found: f64, drawn: Vec<f64>| {
            let drawn = mean(drawn.into_iter());
            assert!((found - drawn).abs() < 0.01, "{found}, over orders {drawn}");
        };
        close(report.map_all_expected, at_all);
        close(report.map, at_5);
    }
}

#[test]
fn one_code_for_all_and_nothing_relevant() {
    // Ten equal codes, two of the query's class: every order is equally likely.
    let len = CodeLen::new(32).unwrap();
    let database = Codes::from_packed(len, &[7; 40]).unwrap();
    let query = Codes::from_packed(len, &[7; 4]).unwrap();
    let labels = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let report = evaluate(
        &query,
        &[1],
        &database,
        &labels,
        &Protocol::new(Cutoff::All),
    )
    .unwrap();
    // The mean over the 45 places of two relevant items a < b: (1/a + 2/b) / 2.
    let places = (1..=10).flat_map(|a| (a + 1..=10).map(move |b| (a, b)));
    let expected = mean(places.map(|(a, b)| (1.0 / f64::from(a) + 2.0 / f64::from(b)) / 2.0));
    near("AP of equal codes", report.map, expected);
    near("P@1", report.at_k[0].precision, 0.2);
    near("P@10", report.at_k[1].precision, 0.2);
    near("within 0", report.curve[0].precision, 0.2);
    assert_eq!(
        (report.distances.auc, report.distances.separability),
        (Some(0.5), None)
    );
    assert_eq!(
        (report.bit_balance.n_constant, report.bit_balance.bias),
        (32, 1.0)
    );
    let (_, correlation) = bit_statistics(&database).unwrap();
    assert_eq!((correlation.mean, correlation.max_pair), (0.0, None));

    // Nothing of class 9 there is: 0 for everything, or left out.
    let mut protocol = Protocol::new(Cutoff::At(3));
    let report = evaluate(&query, &[9], &database, &labels, &protocol).unwrap();
    assert_eq!(
        (report.map, report.map_all_expected, report.at_k[0].ndcg),
        (0.0, 0.0, 0.0)
    );
    assert_eq!(
        (report.n_empty_queries, report.distances.relevant_mean),
        (1, None)
    );
    protocol.empty_queries = EmptyQueries::Skip;
    let report = evaluate(&query, &[9], &database, &labels, &protocol).unwrap();
    assert_eq!((report.map, report.map_all_expected), (0.0, 0.0));
}

#[test]
fn perfect_rankings_have_the_values_the_definitions_give() {
    // Five classes far apart, eight codes each: leave-one-out finds every class without a fault.
    let len = CodeLen::new(40).unwrap();
    let labels: Vec<u32> = (0..40).map(|i| i % 5).collect();
    let rows: Vec<u8> = labels
        .iter()
        .flat_map(|&class| (0..5).map(move |byte| if byte == class { 0xff } else { 0 }))
        .collect();
    let codes = Codes::from_packed(len, &rows).unwrap();
    let similarities = Hierarchy::parse("r 0\nr 1\nr 2\nr 3\nr 4")
        .unwrap()
        .numbered_classes(5)
        .unwrap()
        .similarities();
    let mut protocol = Protocol::new(Cutoff::All);
    protocol.leave_one_out = true;
    let evaluation = Evaluation::new(&codes, &labels, &codes, &labels).unwrap();
    let report = evaluation
        .similarities(&similarities)
        .unwrap()
        .run(&protocol)
        .unwrap();
    near("mAP", report.map, 1.0);
    near("nDCG@10", report.at_k[1].ndcg, 1.0);
    near("P@10", report.at_k[1].precision, 0.7);
    near("recall@10", report.at_k[1].recall, 1.0);
    let hierarchical = report.hierarchical.unwrap();
    near("mAHP@250", hierarchical.mahp, 0.996);
    near("perfect", hierarchical.mahp_perfect, 0.996);
    assert_eq!(report.distances.auc, Some(1.0));
    assert_eq!(report.distances.relevant_mean, Some(0.0));
    assert_eq!(report.distances.other_mean, Some(16.0));
}

#[test]
fn label_sets_are_relevant_if_they_share_a_class() {
    for seed in 0..4u64 {
        let mut rng = seeded("label_sets_are_relevant_if_they_share_a_class", seed);
        let len = CodeLen::new(24).unwrap();
        let (database, rows) = tied_codes(&mut rng, len, 40, 5);
        let mut sets = LabelSets::new(100).unwrap();
        let classes: Vec<Vec<u32>> = (0..40)
            .map(|_| (0..100).filter(|_| rng.random_bool(0.02)).collect())
            .collect();
        classes
            .iter()
            .for_each(|classes| sets.push(classes).unwrap());
        let mut protocol = Protocol::new(Cutoff::At(7));
        protocol.ties = Ties::DatabaseOrder;
        protocol.leave_one_out = true;
        let report = evaluate(&database, &sets, &database, &sets, &protocol).unwrap();
        let seen: Vec<Seen> = (0..40)
            .map(|q| Seen {
                items: (0..40)
                    .filter(|&row| row != q)
                    .map(|row| {
                        let shared = classes[q].iter().any(|class| classes[row].contains(class));
                        let gain = f64::from(u8::from(shared));
                        (distance(&rows[q], &rows[row]), shared, gain)
                    })
                    .collect(),
            })
            .collect();
        let map = mean(
            seen.iter()
                .map(|s| s.ap(&s.sorted(), 7).map_or(0.0, |ap| ap.0)),
        );
        near("mAP@7", report.map, map);
        check_expectations(&report, &seen, 250);
        let similarities = Hierarchy::parse("r 0\nr 1")
            .unwrap()
            .numbered_classes(2)
            .unwrap()
            .similarities();
        let evaluation = Evaluation::new(&database, &sets, &database, &sets).unwrap();
        assert!(evaluation.similarities(&similarities).is_err());
    }
}

#[test]
fn leave_one_out_needs_one_set() {
    let len = CodeLen::new(16).unwrap();
    let (a, b) = (
        Codes::from_packed(len, &[1, 2, 3, 4]).unwrap(),
        Codes::from_packed(len, &[1, 2, 3, 5]).unwrap(),
    );
    let mut protocol = Protocol::new(Cutoff::All);
    protocol.leave_one_out = true;
    let problem = |q: &Codes, ql: &[u32], d: &Codes, dl: &[u32]| {
        evaluate(q, ql, d, dl, &protocol).unwrap_err().to_string()
    };
    assert!(problem(&a, &[0, 1], &b, &[0, 1]).contains("two sets, of 2 and 2 codes"));
    assert!(problem(&a, &[0, 1], &a, &[0, 0]).contains("two sets"));
    let one = Codes::from_packed(len, &[1, 2]).unwrap();
    assert!(problem(&one, &[0], &one, &[0]).contains("one code"));
    let similarities = Hierarchy::parse("r 0\nr 1")
        .unwrap()
        .numbered_classes(2)
        .unwrap()
        .similarities();
    let error = Evaluation::new(&a, &[0, 1], &b, &[0, 2])
        .unwrap()
        .similarities(&similarities);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("database 1 has label 2")
    );
}

#[test]
fn itq_equals_numpy() {
    let text = include_str!("../fixtures/methods/itq/reference.json");
    let reference: serde_json::Value = serde_json::from_str(text).unwrap();
    let number = |name: &str| reference[name].as_u64().unwrap() as usize;
    let numbers = |name: &str| -> Vec<f64> {
        reference[name]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap())
            .collect()
    };
    let (dim, bits) = (number("dim"), number("bits"));
    let vectors: Vec<f32> = numbers("vectors").iter().map(|&v| v as f32).collect();
    let len = CodeLen::new(bits).unwrap();
    let n_iterations = number("iterations") as u32;
    let fit = Itq::fit_from(&vectors, dim, len, &numbers("start"), n_iterations).unwrap();
    let errors = numbers("errors");
    assert_eq!(fit.errors.len(), errors.len());
    for (found, expected) in fit.errors.iter().zip(&errors) {
        near("quantization error", *found, *expected);
    }
    assert!(fit.errors.windows(2).all(|pair| pair[1] <= pair[0] + 1e-12));
    let logits = numbers("logits");
    let rows = vectors.chunks(dim).zip(logits.chunks(bits));
    for (row, expected) in rows {
        let found = fit.itq.logits(row).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (f64::from(*found) - expected).abs() < 2e-5,
                "{found} and {expected}"
            );
        }
        let code = fit
            .itq
            .encode(&[Payload::Vector(row.into())])
            .unwrap()
            .remove(0)
            .unwrap();
        for (bit, expected) in expected.iter().enumerate() {
            assert_eq!(code.bit(bit), *expected > 0.0, "bit {bit}");
        }
    }
}
