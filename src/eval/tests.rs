//! Figures against hand-worked ones, against every order of small sets, and against a plain sort.

use super::*;
use crate::code::{CodeLen, Codes, HashCode};
use crate::random;
use rand_chacha::rand_core::RngCore;

/// Codes of 16 bits at these distances from the all-zero code.
fn at_distances(distances: &[u32]) -> Codes {
    let len = CodeLen::new(16).unwrap();
    let mut codes = Codes::new(len);
    for &distance in distances {
        let word = (1u64 << distance) - 1;
        codes
            .push(&HashCode::from_words(len, &[word]).unwrap())
            .unwrap();
    }
    codes
}

/// The report on one query, all bits zero, label 1.
fn one_query(distances: &[u32], labels: &[u32], protocol: &Protocol) -> Report {
    let (query, database) = (at_distances(&[0]), at_distances(distances));
    evaluate(&query, &[1], &database, labels, protocol).unwrap()
}

fn protocol(cutoff: Cutoff, denominator: Denominator, ties: Ties) -> Protocol {
    Protocol {
        denominator,
        ties,
        ..Protocol::new(cutoff)
    }
}

const LITERATURE: Denominator = Denominator::RelevantInTopR;

#[track_caller]
fn assert_near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} and {b}");
}

/// The average precision of a ranking given as labels, relevant being 1, straight from the definition.
fn naive_ap(ranking: &[u32], r: usize, denominator: Denominator) -> f64 {
    let m = ranking.iter().filter(|&&label| label == 1).count();
    let top = &ranking[..r.min(ranking.len())];
    let found = top.iter().filter(|&&label| label == 1).count();
    let sum: f64 = (1..=top.len())
        .filter(|&k| top[k - 1] == 1)
        .map(|k| top[..k].iter().filter(|&&label| label == 1).count() as f64 / k as f64)
        .sum();
    match denominator {
        _ if found == 0 => 0.0,
        Denominator::RelevantInTopR => sum / found as f64,
        Denominator::MinRelevantR => sum / m.min(r) as f64,
    }
}

#[test]
fn rankings_without_ties_by_hand() {
    let (distances, labels) = ([1, 2, 3, 4, 5], [1, 0, 1, 0, 1]);
    let every_rule = [
        Ties::Expected,
        Ties::DatabaseOrder,
        Ties::Permutations {
            n_orders: 3,
            seed: 1,
        },
    ];
    for ties in every_rule {
        let report = one_query(
            &distances,
            &labels,
            &protocol(Cutoff::All, LITERATURE, ties),
        );
        assert_near(report.map, (1.0 + 2.0 / 3.0 + 3.0 / 5.0) / 3.0);
    }
    // The paradox of the literature's denominator, and the cure.
    let at_2 = |d| protocol(Cutoff::At(2), d, Ties::DatabaseOrder);
    assert_near(one_query(&distances, &labels, &at_2(LITERATURE)).map, 1.0);
    let report = one_query(&distances, &labels, &at_2(Denominator::MinRelevantR));
    assert_near(report.map, 0.5);
    assert_eq!(report.metric(), "mAP@2");
}

/// Calls `visit` with every order of `0..n`.
fn for_each_order(n: usize, visit: &mut impl FnMut(&[usize])) {
    fn extend(order: &mut Vec<usize>, n: usize, visit: &mut impl FnMut(&[usize])) {
        if order.len() == n {
            return visit(order);
        }
        for next in 0..n {
            if !order.contains(&next) {
                order.push(next);
                extend(order, n, visit);
                order.pop();
            }
        }
    }
    extend(&mut Vec::new(), n, visit);
}

#[test]
fn expectation_over_ties_is_the_mean_over_every_order() {
    let mut rng = random::generator(3, 0);
    for case in 0..40 {
        let n = 1 + case % 7;
        let distances: Vec<u32> = (0..n).map(|_| rng.next_u32() % 3).collect();
        let labels: Vec<u32> = (0..n).map(|_| rng.next_u32() % 2).collect();
        for r in 1..=n {
            let (mut sum, mut n_orders) = (0.0, 0);
            for_each_order(n, &mut |order| {
                let mut rows = order.to_vec();
                rows.sort_by_key(|&row| distances[row]);
                let ranking: Vec<u32> = rows.iter().map(|&row| labels[row]).collect();
                sum += naive_ap(&ranking, r, Denominator::MinRelevantR);
                n_orders += 1;
            });
            let expected = sum / f64::from(n_orders);
            let rule = protocol(Cutoff::At(r), Denominator::MinRelevantR, Ties::Expected);
            assert_near(one_query(&distances, &labels, &rule).map, expected);
            if r == n {
                let report = one_query(&distances, &labels, &Protocol::new(Cutoff::All));
                assert_near(report.map, expected);
            }
        }
    }
}

#[test]
fn permutations_approach_the_expectation_and_show_their_spread() {
    let distances = [2; 12];
    let labels = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let exact = one_query(&distances, &labels, &Protocol::new(Cutoff::All));
    let ties = Ties::Permutations {
        n_orders: 4000,
        seed: 9,
    };
    let rule = protocol(Cutoff::All, LITERATURE, ties);
    let sampled = one_query(&distances, &labels, &rule);
    assert!((sampled.map - exact.map).abs() < 0.01);
    assert_eq!(sampled.map_per_order.len(), 4000);
    assert!(sampled.map_std.unwrap() > 0.05 && exact.map_std.is_none());
    assert_eq!(one_query(&distances, &labels, &rule).map, sampled.map);
    // All equal codes in class order flatter; the fair figure is far below.
    let flattered = one_query(
        &distances,
        &labels,
        &protocol(Cutoff::All, LITERATURE, Ties::DatabaseOrder),
    );
    assert_near(flattered.map, 1.0);
    assert!(exact.map < 0.5);
}

#[test]
fn left_out_queries_are_those_that_the_denominator_has_nothing_for() {
    // One of three tied items is relevant, nothing to a query of class 7.
    let (query, database) = (at_distances(&[0, 0]), at_distances(&[1, 1, 1]));
    let run = |denominator, ties| {
        let mut rule = protocol(Cutoff::At(1), denominator, ties);
        rule.empty_queries = EmptyQueries::Skip;
        evaluate(&query, &[1, 7], &database, &[0, 1, 0], &rule).unwrap()
    };
    let sampled = Ties::Permutations {
        n_orders: 3000,
        seed: 4,
    };
    let expected = run(Denominator::MinRelevantR, Ties::Expected);
    assert_near(expected.map, 1.0 / 3.0);
    let found = run(Denominator::MinRelevantR, sampled);
    assert!((found.map - 1.0 / 3.0).abs() < 0.03, "{}", found.map);
    assert_eq!((found.n_empty_queries, expected.n_empty_queries), (1, 1));
    assert_near(found.per_class[0].map, found.map);
    // What has nothing in the first R is left out of the one, not of the other.
    let literature = run(LITERATURE, sampled);
    assert_eq!(literature.n_empty_queries, 2);
    let by = literature.map_by_denominator;
    assert_eq!(by.min_relevant_r, found.map);
    // An order in which nothing is found has no query left, and 0.
    assert_near(by.relevant_in_top_r.unwrap(), found.map);
    assert_near(literature.per_class[0].map, 1.0);
}

#[test]
fn nothing_relevant() {
    for cutoff in [Cutoff::All, Cutoff::At(1)] {
        let mut rule = Protocol::new(cutoff);
        let query = at_distances(&[0, 0]);
        let database = at_distances(&[1, 2]);
        let run = |rule: &Protocol| evaluate(&query, &[1, 7], &database, &[1, 0], rule).unwrap();
        let report = run(&rule);
        assert_near(report.map, 0.5);
        assert_eq!(report.n_empty_queries, 1);
        let classes: Vec<(u32, usize, f64)> = report
            .per_class
            .iter()
            .map(|class| (class.label, class.n_queries, class.map))
            .collect();
        assert_eq!(classes, [(1, 1, 1.0), (7, 1, 0.0)]);
        rule.empty_queries = EmptyQueries::Skip;
        assert_near(run(&rule).map, 1.0);
    }
}

#[test]
fn agrees_with_a_plain_sort_at_every_width() {
    for bits in [16, 64, 72, 128, 192, 256, 320, 512, 1024] {
        let len = CodeLen::new(bits).unwrap();
        let mut rng = random::generator(bits as u64, 1);
        let mut codes = |n: usize| {
            let mut packed = vec![0; n * len.bytes()];
            rng.fill_bytes(&mut packed);
            // Few free bits, so that distances tie.
            for row in packed.chunks_mut(len.bytes()) {
                row[1..len.bytes() - 1].fill(0x5a);
            }
            let labels: Vec<u32> = (0..n).map(|_| rng.next_u32() % 4).collect();
            (Codes::from_packed(len, &packed).unwrap(), labels)
        };
        let (query, query_labels) = codes(37);
        let (database, database_labels) = codes(333);
        for (cutoff, denominator) in [
            (Cutoff::All, LITERATURE),
            (Cutoff::At(2), LITERATURE),
            (Cutoff::At(50), LITERATURE),
            (Cutoff::At(50), Denominator::MinRelevantR),
            (Cutoff::At(5000), LITERATURE),
        ] {
            let ties = Ties::Permutations {
                n_orders: 2,
                seed: 5,
            };
            let rule = protocol(cutoff, denominator, ties);
            let report =
                evaluate(&query, &query_labels, &database, &database_labels, &rule).unwrap();
            let r = match cutoff {
                Cutoff::All => 333,
                Cutoff::At(r) => r,
            };
            let mut precision_at_1 = 0.0;
            for (stream, &map) in report.map_per_order.iter().enumerate() {
                let order = random::permutation(333, 5, stream as u64);
                let mut sum = 0.0;
                for (row, &label) in query_labels.iter().enumerate() {
                    let code = query.get(row);
                    let distance = |item: u32| database.get(item as usize).distance(&code).unwrap();
                    let mut ranking = order.clone();
                    ranking.sort_by_key(|&item| distance(item));
                    let relevant: Vec<u32> = ranking
                        .iter()
                        .map(|&item| u32::from(database_labels[item as usize] == label))
                        .collect();
                    sum += naive_ap(&relevant, r, denominator);
                    let nearest: Vec<usize> = (0..333)
                        .filter(|&i| distance(ranking[i]) == distance(ranking[0]))
                        .collect();
                    let hits: u32 = nearest.iter().map(|&i| relevant[i]).sum();
                    precision_at_1 += f64::from(hits) / nearest.len() as f64;
                }
                assert_near(map, sum / 37.0);
            }
            assert_near(report.at_k[0].precision, precision_at_1 / 74.0);
            assert_eq!(report.curve.len(), bits + 1);
            assert_near(report.curve[bits].n_retrieved, 333.0);
        }
    }
}

#[test]
fn within_a_radius() {
    let report = one_query(&[0, 2, 2, 3], &[1, 1, 0, 1], &Protocol::new(Cutoff::All));
    assert_near(report.within_radius.precision, 2.0 / 3.0);
    assert_near(report.within_radius.recall, 2.0 / 3.0);
    let report = one_query(&[5, 6], &[1, 1], &Protocol::new(Cutoff::All));
    assert_eq!(report.within_radius.precision, 0.0);
    assert_eq!(report.within_radius.empty, 1.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let (one, two) = (at_distances(&[0]), at_distances(&[1, 2]));
    let none = at_distances(&[]);
    let all = Protocol::new(Cutoff::All);
    let run = |query: &Codes, query_labels: &[u32], database_labels: &[u32], rule: &Protocol| {
        evaluate(query, query_labels, &two, database_labels, rule)
            .unwrap_err()
            .to_string()
    };
    assert!(run(&none, &[], &[0, 1], &all).contains("the query set needs"));
    assert!(run(&one, &[1], &[0], &all).contains("got 2 codes and 1 labels"));
    let long = Codes::from_packed(CodeLen::new(64).unwrap(), &[0; 8]).unwrap();
    assert!(run(&long, &[1], &[0, 1], &all).contains("64 bits"));
    let orders = |n_orders| Ties::Permutations { n_orders, seed: 0 };
    let wrong = [
        protocol(Cutoff::At(5), LITERATURE, Ties::Expected),
        Protocol::new(Cutoff::At(0)),
        Protocol {
            radius: 17,
            ..all.clone()
        },
        Protocol {
            ks: vec![0],
            ..all.clone()
        },
        protocol(Cutoff::All, LITERATURE, orders(0)),
        protocol(Cutoff::All, LITERATURE, orders(10_001)),
    ];
    for rule in wrong {
        run(&one, &[1], &[0, 1], &rule);
    }
    assert_eq!("all".parse::<Cutoff>().unwrap(), Cutoff::All);
    assert_eq!("1000".parse::<Cutoff>().unwrap(), Cutoff::At(1000));
    assert!("0".parse::<Cutoff>().is_err() && "-1".parse::<Cutoff>().is_err());
}

#[test]
fn ties_by_class_are_those_of_a_grouped_database() {
    // All tied; the relevant label comes second.
    let (distances, labels) = ([3, 3, 3, 3], [1, 0, 1, 0]);
    let rule = |ties| protocol(Cutoff::All, LITERATURE, ties);
    let by_class = one_query(&distances, &labels, &rule(Ties::ClassOrder));
    assert_near(by_class.map, (1.0 / 3.0 + 2.0 / 4.0) / 2.0);
    let by_row = one_query(&distances, &labels, &rule(Ties::DatabaseOrder));
    assert_near(by_row.map, (1.0 + 2.0 / 3.0) / 2.0);
}

#[test]
fn an_r_past_the_database_is_all() {
    let (distances, labels) = ([1, 1, 2, 2], [1, 0, 0, 1]);
    let rule = |cutoff| protocol(cutoff, Denominator::MinRelevantR, Ties::Expected);
    let all = one_query(&distances, &labels, &rule(Cutoff::All));
    let past = one_query(&distances, &labels, &rule(Cutoff::At(9)));
    assert_eq!(all.map_by_denominator, past.map_by_denominator);
    assert!(past.map_by_denominator.relevant_in_top_r.is_some());
    let less = one_query(&distances, &labels, &rule(Cutoff::At(3)));
    assert!(less.map_by_denominator.relevant_in_top_r.is_none());
}

#[test]
fn the_report_records_its_protocol() {
    let mut report = one_query(&[1, 2], &[1, 0], &Protocol::new(Cutoff::At(1)));
    report.notes.insert("train_seed".into(), "7".into());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["protocol"]["cutoff"], 1);
    assert_eq!(json["protocol"]["denominator"], "relevant_in_top_r");
    assert_eq!(json["protocol"]["ties"]["permutations"]["n_orders"], 5);
    assert_eq!(json["protocol"]["ties"]["permutations"]["seed"], 0);
    assert_eq!(json["notes"]["train_seed"], "7");
    let report = one_query(&[1, 2], &[1, 0], &Protocol::new(Cutoff::All));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["protocol"]["cutoff"], "all");
    assert_eq!(json["protocol"]["ties"], "expected");
}
