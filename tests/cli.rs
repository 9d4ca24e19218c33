//! The real program, as a shell or a harness drives it: exit codes, JSON on stdout and nothing else there,
//! one-line errors, and answers equal to a brute force that shares no code with the library.

mod common;

use std::path::{Path, PathBuf};

use common::program::{
    counts, json_lines, npy, phash, quarantine, refuse, succeed, succeed_json, tanhash, text,
};
use common::seeded;
use image::{Rgb, RgbImage};
use rand::Rng;
use serde_json::Value;
use tanhash::plugin::{HashFieldOptions, HashIndex, HashPlugin, SchemaBuilderExt};

/// Packed random rows round a few centers, with copies.
fn packed(rng: &mut impl Rng, n: usize, bytes: usize) -> Vec<u8> {
    let centers: Vec<Vec<u8>> = (0..4)
        .map(|_| (0..bytes).map(|_| rng.random()).collect())
        .collect();
    let mut rows = Vec::with_capacity(n * bytes);
    for _ in 0..n {
        let center = &centers[rng.random_range(0..4)];
        let row: Vec<u8> = match rng.random_range(0..3) {
            0 => (0..bytes).map(|_| rng.random()).collect(),
            1 => center.clone(),
            _ => {
                let mut flip = |byte: &u8| {
                    byte ^ if rng.random_bool(0.5) {
                        0
                    } else {
                        1 << rng.random_range(0..8)
                    }
                };
                center.iter().map(&mut flip).collect()
            }
        };
        rows.extend(row);
    }
    rows
}

/// (distance, row) of every row, nearest first: the definition, byte by byte.
fn brute_force(rows: &[u8], query: &[u8]) -> Vec<(u32, u64)> {
    let distance = |row: &[u8]| {
        row.iter()
            .zip(query)
            .map(|(a, b)| (a ^ b).count_ones())
            .sum()
    };
    let mut all: Vec<(u32, u64)> = (0..)
        .zip(rows.chunks(query.len()))
        .map(|(row, bytes)| (distance(bytes), row))
        .collect();
    all.sort_unstable();
    all
}

fn allowed(row: u64, multiplier: u64, share: f64) -> bool {
    ((row * multiplier % (1 << 32)) as f64) / ((1u64 << 32) as f64) < share
}

#[test]
fn bench_measures_a_kept_index_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (codes, index) = (at("codes.bin"), at("index"));
    std::fs::write(&codes, packed(&mut seeded("bench_open", 7), 500, 8)).unwrap();
    std::fs::create_dir(&index).unwrap();
    let (codes, index) = (text(&codes), text(&index));
    let build = [
        "bench",
        "--codes",
        codes,
        "--queries",
        codes,
        "--bits",
        "64",
        "--k",
        "3",
    ];
    let built = json_lines(&succeed(
        &[
            &build[..],
            &["--engine", "auto", "--filter-share", "0.5", "--keep", index],
        ]
        .concat(),
    ));
    let open = |bits: &'static str| {
        let args = [
            "bench",
            "--open",
            index,
            "--queries",
            codes,
            "--bits",
            bits,
            "--k",
            "3",
        ];
        [&args[..], &["--engine", "auto"]].concat()
    };
    let opened = json_lines(&succeed(&open("64")));
    for key in ["n", "build_s", "index_bytes", "segments", "bits"] {
        assert_eq!(opened[0][key], built[0][key], "{key}");
    }
    refuse(&open("128"), "--bits 64 as built");
    refuse(
        &[&open("64")[..], &["--filter-share", "0.25"]].concat(),
        "[0.5]",
    );
}

#[test]
fn bench_answers_equal_a_brute_force() {
    let mut rng = seeded("bench_answers", 31);
    for (bits, n, segments) in [
        (16, 3_000, 1),
        (64, 5_000, 1),
        (72, 900, 3),
        (256, 2_000, 1),
        (1024, 300, 2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (codes, queries, answers) = (at("codes.bin"), at("queries.bin"), at("answers.jsonl"));
        let rows = packed(&mut rng, n, bits / 8);
        std::fs::write(&codes, &rows).unwrap();
        let wanted = [&rows[..5 * bits / 8], &packed(&mut rng, 5, bits / 8)].concat();
        std::fs::write(&queries, &wanted).unwrap();
        let (bits_text, segments_text) = (bits.to_string(), segments.to_string());
        for (filter, kept, delete) in [
            (None, false, None),
            (Some(0.3), false, None),
            (Some(0.3), true, Some(0.2)),
            (Some(0.01), false, Some(0.2)),
            (Some(0.01), true, None),
            (None, false, Some(0.5)),
        ] {
            let shares: Vec<String> = [filter, delete]
                .iter()
                .flatten()
                .map(|share: &f64| share.to_string())
                .collect();
            let mut args = vec![
                "bench",
                "--codes",
                text(&codes),
                "--queries",
                text(&queries),
                "--bits",
                &bits_text,
                "--k",
                "1,10,100",
                "--radius",
                "0,5,16",
                "--engine",
                "auto,scan,mih",
                "--segments",
                &segments_text,
                "--out-distances",
                text(&answers),
            ];
            let mut shares = shares.iter();
            if filter.is_some() {
                args.extend(["--filter-share", shares.next().unwrap()]);
                args.extend(kept.then_some("--kept-filter"));
            }
            if delete.is_some() {
                args.extend(["--delete-share", shares.next().unwrap()]);
            }
            let lines = json_lines(&succeed(&args));
            assert_eq!(lines.len(), 6 * 3);
            for line in &lines {
                assert_eq!(line["exact"], true);
                let how = filter.map(|_| if kept { "kept" } else { "query" });
                assert_eq!(line["filter"].as_str(), how);
                assert_eq!(
                    (&line["n"], &line["queries"]),
                    (&Value::from(n), &Value::from(10))
                );
                assert!(
                    line["ms_p50"].as_f64().unwrap() > 0.0
                        && line["index_bytes"].as_u64().unwrap() > 0
                );
            }
            let lines = json_lines(&std::fs::read_to_string(&answers).unwrap());
            assert_eq!(lines.len(), 6 * 3 * 10);
            for line in lines {
                let query =
                    &wanted[line["query"].as_u64().unwrap() as usize * bits / 8..][..bits / 8];
                let mut expected: Vec<(u32, u64)> = brute_force(&rows, query)
                    .into_iter()
                    .filter(|&(_, row)| {
                        filter.is_none_or(|share| allowed(row, 2_654_435_761, share))
                    })
                    .filter(|&(_, row)| {
                        delete.is_none_or(|share| !allowed(row, 2_246_822_519, share))
                    })
                    .collect();
                match line["op"].as_str().unwrap() {
                    "knn" => expected.truncate(line["k"].as_u64().unwrap() as usize),
                    _ => expected.retain(|&(distance, _)| {
                        u64::from(distance) <= line["radius"].as_u64().unwrap()
                    }),
                }
                let numbers = |name: &str| -> Vec<u64> {
                    line[name]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|number| number.as_u64().unwrap())
                        .collect()
                };
                let distances: Vec<u64> = expected.iter().map(|hit| u64::from(hit.0)).collect();
                assert_eq!(numbers("distances"), distances, "{bits} bits: {line}");
                let ids = numbers("ids");
                if segments == 1 {
                    assert_eq!(
                        ids,
                        expected.iter().map(|hit| hit.1).collect::<Vec<_>>(),
                        "{bits} bits: {line}"
                    );
                }
                for (id, distance) in ids.iter().zip(numbers("distances")) {
                    let row = &rows[*id as usize * bits / 8..][..bits / 8];
                    assert_eq!(
                        u64::from(brute_force(row, query)[0].0),
                        distance,
                        "{bits} bits, row {id}"
                    );
                }
            }
        }
    }
}

/// 30 pictures of stripes in three folders, and two files that are none.
fn photos(dir: &Path) {
    for (class, name) in [(0u32, "red_stripes"), (1, "green_waves"), (2, "blue_spots")] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        for number in 0..10u32 {
            let picture = RgbImage::from_fn(48, 40, |x, y| {
                let value = match class {
                    0 => (x * (3 + number)) as u8,
                    1 => (y * (5 + number) + x) as u8,
                    _ => ((x / 6 + y / 6) * (20 + number)) as u8,
                };
                let mut pixel = [value / 4; 3];
                pixel[class as usize] = value;
                Rgb(pixel)
            });
            picture
                .save(dir.join(name).join(format!("{number}.png")))
                .unwrap();
        }
    }
    std::fs::write(dir.join("red_stripes/broken.jpg"), b"this is no picture").unwrap();
    std::fs::write(dir.join("green_waves/empty.png"), b"").unwrap();
}

#[test]
fn a_photo_folder_becomes_a_searchable_index() {
    let dir = tempfile::tempdir().unwrap();
    let (input, index) = (dir.path().join("photos"), dir.path().join("index"));
    photos(&input);
    let build = phash(&[&input], &index);
    assert_eq!(counts(&succeed_json(&build)), [32, 30, 2, 0]);
    let refused = quarantine(&index);
    let mut keys: Vec<&str> = refused
        .iter()
        .map(|line| line["key"].as_str().unwrap())
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, ["green_waves/empty.png", "red_stripes/broken.jpg"]);

    let index = text(&index);
    assert!(succeed(&["verify", "--index", index]).contains("sound"));
    let inspected = succeed_json(&["inspect", "--index", index]);
    assert_eq!(inspected["documents"], 32);
    assert_eq!(inspected["columns"][0]["n_codes"], 30);

    let picture = input.join("blue_spots/4.png");
    let search =
        |args: &[&str]| -> Value { succeed_json(&[&["search", "--index", index], args].concat()) };
    let found = search(&["--image", text(&picture), "--k", "5"]);
    assert_eq!(found["hits"][0]["key"], "blue_spots/4.png");
    assert_eq!(
        (&found["hits"][0]["distance"], &found["hits"][0]["score"]),
        (&0.into(), &1.0.into())
    );
    assert_eq!(found["hits"].as_array().unwrap().len(), 5);
    let code = found["code"].as_str().unwrap().to_owned();
    assert_eq!(
        search(&["--code", &code, "--k", "5"])["hits"],
        found["hits"]
    );
    let near = search(&["--code", &code, "--radius", "0"]);
    assert!(
        near["hits"]
            .as_array()
            .unwrap()
            .iter()
            .all(|hit| hit["distance"] == 0)
    );
    let words = search(&["--text", "broken"]);
    assert_eq!(
        words["hits"][0]["key"], "red_stripes/broken.jpg",
        "found by its name, without a code"
    );
    let filtered = search(&[
        "--image",
        text(&picture),
        "--filter",
        "label:green_waves",
        "--k",
        "20",
    ]);
    let filtered = filtered["hits"].as_array().unwrap();
    assert_eq!(filtered.len(), 10);
    assert!(filtered.iter().all(|hit| hit["label"] == "green_waves"));
    let both = search(&[
        "--image",
        text(&picture),
        "--text",
        "waves",
        "--explain",
        "--fusion",
        "linear",
    ]);
    assert_eq!(both["legs"].as_array().unwrap().len(), 2);
    assert!(both["hits"][0]["legs"].is_array());
    let plain = succeed(&["search", "--index", index, "--text", "spots", "--explain"]);
    assert!(plain.lines().count() > 10, "{plain}");

    refuse(&build, "found one in");
    refuse(
        &[
            "search",
            "--index",
            index,
            "--image",
            text(&input.join("red_stripes/broken.jpg")),
        ],
        "broken.jpg",
    );
    refuse(
        &["search", "--index", index, "--code", "0011"],
        "64 bits, got 16",
    );
    refuse(&["search", "--index", index, "--code", "zz"], "hexadecimal");
    refuse(
        &[
            "search", "--index", index, "--code", &code, "--radius", "65",
        ],
        "got 65",
    );
    refuse(
        &["search", "--index", index, "--text", "a", "--k", "0"],
        "at least 1",
    );
    refuse(
        &["search", "--index", index, "--text", "nofield:x"],
        "nofield",
    );
    refuse(&["search", "--index", index], "--text");
    refuse(
        &["search", "--index", text(dir.path()), "--text", "a"],
        "found none",
    );

    let file = |wanted: &str| {
        let mut files = std::fs::read_dir(index).unwrap();
        files
            .find_map(|entry| {
                let path = entry.unwrap().path();
                let extension = path.extension()?.to_str()?.to_owned();
                (extension == wanted).then_some(path)
            })
            .unwrap()
    };
    // A sound file in place of another is noticed by the list of files alone.
    let (norms, others) = (file("fieldnorm"), file("pos"));
    let kept = std::fs::read(&norms).unwrap();
    std::fs::copy(&others, &norms).unwrap();
    refuse(
        &["search", "--index", index, "--text", "spots"],
        "fieldnorm: expected SHA-256",
    );
    std::fs::write(&norms, kept).unwrap();
    search(&["--text", "spots"]);

    // A flipped bit in the codes is named, and nothing is answered.
    let codes = file("hcode");
    let mut bytes = std::fs::read(&codes).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(&codes, bytes).unwrap();
    refuse(&["search", "--index", index, "--text", "spots"], "corrupt");
    let output = tanhash(&["verify", "--index", index]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(".hcode"));
}

#[test]
fn dedup_finds_what_a_brute_force_does() {
    let mut rng = seeded("cli_dedup", 33);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (codes, index, out) = (at("codes.bin"), at("index"), at("out.jsonl"));
    let rows = packed(&mut rng, 300, 8);
    std::fs::write(&codes, &rows).unwrap();
    let index = text(&index);
    let codes = text(&codes);
    succeed(&["index", "--codes", codes, "--bits", "64", "--index", index]);

    let radius = 4;
    let mut expected: Vec<(String, String, u64)> = Vec::new();
    let mut groups: Vec<usize> = (0..300).collect();
    for (left, code) in rows.chunks(8).enumerate() {
        for (distance, right) in brute_force(&rows, code) {
            if distance <= radius && right > left as u64 {
                expected.push((left.to_string(), right.to_string(), distance.into()));
                let (from, to) = (groups[right as usize], groups[left]);
                let rename = |group: &mut usize| {
                    if *group == from.max(to) {
                        *group = from.min(to);
                    }
                };
                groups.iter_mut().for_each(rename);
            }
        }
    }
    expected.sort_unstable();
    assert!(!expected.is_empty());
    let of = |value: &Value| value["key"].as_str().unwrap().to_owned();
    let arguments = ["dedup", index, "--radius", "4", "--json"];
    for engine in ["auto", "scan", "mih", "cluster"] {
        let more = ["--pairs", "--engine", engine, "--threads", "2"];
        let mut pairs = json_lines(&succeed(&[&arguments[..], &more].concat()));
        let summary = pairs.pop().unwrap()["summary"].take();
        assert_eq!(summary["pairs"], expected.len());
        let found = pairs.iter().map(|pair| {
            let distance = pair["distance"].as_u64().unwrap();
            let (left, right) = (of(&pair["left"]), of(&pair["right"]));
            // One indexing thread or several: which of the two comes first is not the row's to say.
            let is_later = left.parse::<u64>().unwrap() > right.parse::<u64>().unwrap();
            if is_later {
                (right, left, distance)
            } else {
                (left, right, distance)
            }
        });
        let mut found: Vec<_> = found.collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{engine}");
    }

    let written = ["--out", text(&out)];
    let summary = json_lines(&succeed(&[&arguments[..], &written].concat()));
    assert_eq!(summary.len(), 1);
    let summary = &summary[0]["summary"];
    let found = json_lines(&std::fs::read_to_string(&out).unwrap());
    assert_eq!(summary["groups"], found.len());
    let mut members = 0;
    for group in &found {
        let keys: Vec<usize> = (group["members"].as_array().unwrap().iter())
            .map(|member| of(member).parse().unwrap())
            .collect();
        members += keys.len();
        let first = groups[keys[0]];
        assert!(keys.iter().all(|&key| groups[key] == first));
        assert_eq!(groups.iter().filter(|&&of| of == first).count(), keys.len());
        assert_eq!(group["members"][0]["distance"], 0);
    }
    assert_eq!(summary["duplicates"], members - found.len());
    assert_eq!(
        (&summary["documents"], &summary["codes"]),
        (&300.into(), &300.into())
    );

    let plain = succeed(&["dedup", "--index", index, "--radius", "4"]);
    assert_eq!(plain.lines().count(), members + 1);
    assert!(
        plain.lines().last().unwrap().contains("that could go"),
        "{plain}"
    );
    let counted = succeed(&["dedup", index, "--radius", "4", "--pairs", "--count"]);
    assert_eq!(counted.lines().count(), 1);
    assert!(
        counted.contains(&format!("{} pairs", expected.len())),
        "{counted}"
    );

    refuse(&["dedup", index, "--radius", "65"], "got 65");
    refuse(&["dedup", index, "--field", "key"], "[\"image\"]");
    refuse(&["dedup", text(dir.path())], "found none");
    assert_eq!(tanhash(&["dedup"]).status.code(), Some(2));
    assert_eq!(
        tanhash(&["dedup", index, "--engine", "fast"]).status.code(),
        Some(2)
    );

    // An index of another program: without a hash field, and with two.
    let other = |name: &str, n_fields: usize| -> PathBuf {
        let mut schema = tantivy::schema::Schema::builder();
        schema.add_text_field("title", tantivy::schema::TEXT);
        for number in 0..n_fields {
            let options = HashFieldOptions::new(64);
            schema
                .add_hash_field(&format!("code{number}"), options)
                .unwrap();
        }
        let path = at(name);
        std::fs::create_dir(&path).unwrap();
        match n_fields {
            0 => drop(tantivy::Index::create_in_dir(&path, schema.build()).unwrap()),
            _ => drop(HashIndex::create_in_dir(&path, schema.build(), HashPlugin::new()).unwrap()),
        }
        path
    };
    refuse(&["dedup", text(&other("none", 0))], "hash field");
    let two = other("two", 2);
    refuse(&["dedup", text(&two)], "--field");
    let counted = succeed(&["dedup", text(&two), "--field", "code1", "--count"]);
    assert!(counted.starts_with("0 documents"), "{counted}");
}

#[test]
fn codes_files_are_indexed_and_bad_ones_refused() {
    let mut rng = seeded("codes_files", 32);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let codes = at("codes.bin");
    std::fs::write(&codes, packed(&mut rng, 100, 8)).unwrap();
    let index = at("index");
    succeed(&[
        "index",
        "--codes",
        text(&codes),
        "--bits",
        "64",
        "--index",
        text(&index),
    ]);
    let search = ["search", "--index", text(&index), "--k", "200"];
    let found = succeed_json(&[&search[..], &["--code", "0000000000000000"]].concat());
    assert_eq!(
        found["hits"].as_array().unwrap().len(),
        100,
        "k past the number of documents"
    );
    refuse(
        &["search", "--index", text(&index), "--image", text(&codes)],
        "no encoder",
    );

    let bench = |bits: &'static str, more: &[&'static str]| -> Vec<String> {
        let mut args = vec![
            "bench",
            "--codes",
            text(&codes),
            "--queries",
            text(&codes),
            "--bits",
            bits,
        ];
        args.extend(more);
        args.into_iter().map(str::to_owned).collect()
    };
    for (args, expected) in [
        (bench("72", &["--k", "1"]), "no whole number of rows"),
        (bench("65", &["--k", "1"]), "got 65"),
        (bench("64", &["--k", "0"]), "at least 1"),
        (bench("64", &["--radius", "65"]), "got 65"),
        (bench("64", &[]), "--k"),
        (bench("64", &["--k", "1", "--filter-share", "2"]), "got 2"),
    ] {
        refuse(
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
            expected,
        );
    }
    refuse(
        &[
            "bench",
            "--codes",
            "none.bin",
            "--queries",
            "none.bin",
            "--bits",
            "64",
            "--k",
            "1",
        ],
        "none.bin",
    );
    let usage = tanhash(&["bench", "--codes"]);
    assert_eq!(usage.status.code(), Some(2));
    let usage = tanhash(&[
        "bench",
        "--codes",
        "a",
        "--queries",
        "b",
        "--bits",
        "64",
        "--engine",
        "magic",
    ]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("magic"));
}

#[test]
fn eval_measures_files_of_codes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // One query; database codes at distances 0, 1, 2 and 16, of classes 1, 0, 1, 2.
    let (q, ql) = (at("q.bin", &[0, 0]), at("q.txt", b"1\n"));
    let d = at("d.bin", &[0, 0, 1, 0, 3, 0, 0xff, 0xff]);
    let dl = at("d.txt", b"1\n0\n1\n2\n");
    let tree = at("tree.txt", b"thing\n- animal\n-- cat\n-- dog\n- car\n");
    let names = at("names.txt", b"cat\ndog\ncar\n");
    let report = dir.path().join("report");
    let codes = |extra: &[&'static str]| -> Vec<String> {
        let fixed = [
            "eval",
            "--query-codes",
            &q,
            "--query-labels",
            &ql,
            "--database-codes",
            &d,
            "--database-labels",
            &dl,
            "--bits",
            "16",
        ];
        fixed
            .iter()
            .map(|s| s.to_string())
            .chain(extra.iter().map(|s| s.to_string()))
            .collect()
    };
    let call = |mut args: Vec<String>, more: &[&str]| -> Vec<String> {
        args.extend(more.iter().map(|s| s.to_string()));
        args
    };
    fn refs(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    let args = call(
        codes(&["--json", "--r", "2"]),
        &[
            "--hierarchy",
            &tree,
            "--class-names",
            &names,
            "--report",
            text(&report),
        ],
    );
    let found = &json_lines(&succeed(&refs(&args)))[0];
    let near = |value: &Value, expected: f64| {
        assert!(
            (value.as_f64().unwrap() - expected).abs() < 1e-9,
            "{value} and {expected}"
        );
    };
    near(&found["map"], 1.0);
    near(&found["map_by_denominator"]["min_relevant_r"], 0.5);
    near(&found["map_all_expected"], (1.0 + 2.0 / 3.0) / 2.0);
    assert_eq!(found["protocol"]["ties"]["permutations"]["seed"], 42);
    // Class 1 is the dog: similarities 1, .5, 1, 0 in rank order, at best 1, 1, .5, 0; 2.5 from rank 3 on.
    let hp = [1.0, 0.75];
    near(&found["hierarchical"]["hp"][1], hp[1]);
    near(
        &found["hierarchical"]["mahp"],
        ((hp[0] + hp[1]) / 2.0 + (hp[1] + 1.0) / 2.0 + 247.0) / 250.0,
    );
    assert_eq!(found["distances"]["relevant"][2], 1);
    assert_eq!(found["bit_balance"]["n_constant"], 0);
    let page = std::fs::read_to_string(report.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(page.contains("mAHP@250") && page.contains("seed 42") && !page.contains("<script"));
    assert!(!page.contains("http") && page.contains("command:"));
    let json: Value =
        serde_json::from_slice(&std::fs::read(report.join("report.json")).unwrap()).unwrap();
    assert_eq!(json["map"], found["map"]);

    let expected = succeed(&refs(&codes(&[])));
    assert!(
        expected.starts_with("mAP@all 0.8333, 16 bits, 1 queries, 4 items"),
        "{expected}"
    );
    // Items of several classes beside a query of one, which is a set of one.
    let sets = at("sets.txt", b"2 1\n0\n1\n2\n");
    let of_sets = codes(&[]).into_iter().map(|arg| match arg == dl {
        true => sets.clone(),
        false => arg,
    });
    let found = succeed(&refs(&of_sets.collect::<Vec<_>>()));
    assert_eq!(found.replace("sets.txt", "d.txt"), expected);
    let orders = call(codes(&["--json"]), &["--orders", "3", "--seed", "9"]);
    let found = &json_lines(&succeed(&refs(&orders)))[0];
    assert_eq!(found["map_per_order"].as_array().unwrap().len(), 3);
    assert_eq!(found["protocol"]["ties"]["permutations"]["seed"], 9);
    let alone = [
        "eval",
        "--query-codes",
        &d,
        "--query-labels",
        &dl,
        "--bits",
        "16",
        "--leave-one-out",
        "--json",
    ];
    let found = &json_lines(&succeed(&alone))[0];
    // Rows 0 and 2 find each other second, after row 1 at distance 1; the others find nothing.
    near(&found["map"], (0.5 + 0.5) / 4.0);
    let skipping = [&alone[..], &["--skip-empty"]].concat();
    let found = &json_lines(&succeed(&skipping))[0];
    near(&found["map"], 0.5);
    assert_eq!(found["protocol"]["empty_queries"], "skip");
    let by_class = [&alone[..], &["--class-order"]].concat();
    let found = &json_lines(&succeed(&by_class))[0];
    assert_eq!(found["protocol"]["ties"], "class_order");
    assert_eq!(found["n_empty_queries"], 2);

    let broken = |name: &str, content: &[u8], option: &str, problem: &str| {
        let path = at(name, content);
        let mut args = codes(&["--json"]);
        match args.iter().position(|arg| arg == option) {
            Some(place) => args[place + 1] = path,
            None => args.extend([option.to_owned(), path]),
        }
        refuse(&refs(&args), problem);
    };
    broken("cut.bin", &[0, 0, 1], "--database-codes", "cut.bin");
    broken(
        "few.txt",
        b"1\n0\n1\n",
        "--database-labels",
        "4 codes and 3 labels",
    );
    broken(
        "minus.txt",
        b"1\n0\n-1\n2\n",
        "--database-labels",
        "line 3: a label is a number from 0",
    );
    broken("empty.bin", b"", "--query-codes", "at least one code");
    broken(
        "short.txt",
        b"cat\ndog\n",
        "--class-names",
        "a name for each of 3 classes",
    );
    broken(
        "graph.txt",
        b"a 0\nb 0\na 1\n",
        "--hierarchy",
        "a node of a tree has one parent",
    );
    broken(
        "lacks.txt",
        b"a 0\na 1\n",
        "--hierarchy",
        "class 2 \"2\" is not in it",
    );
    broken(
        "logits.npy",
        b"no array",
        "--database-logits",
        "expected a .npy file",
    );
    // Logits are those of the database codes: bits 0, 1, 0 and 1, and all 16, are set in its rows.
    let mut logits: Vec<f32> = vec![-0.5; 4 * 16];
    for set in [16, 32, 33].into_iter().chain(48..64) {
        logits[set] = 2.0;
    }
    let write = |name: &str, logits: &[f32]| {
        let path = dir.path().join(name);
        npy(&path, 16, logits);
        text(&path).to_owned()
    };
    let right = write("right.npy", &logits);
    let of_logits = call(codes(&["--json"]), &["--database-logits", &right]);
    let found = &json_lines(&succeed(&refs(&of_logits)))[0];
    let squared = (45.0 * 0.25 + 19.0) / 64.0;
    near(&found["quantization"]["squared"], squared);
    logits[33] = -2.0;
    let of_logits = call(
        codes(&[]),
        &["--database-logits", &write("wrong.npy", &logits)],
    );
    refuse(
        &refs(&of_logits),
        "row 2: expected logits above 0 where the code has a 1, got -2 and 1 at bit 1",
    );
    // Two codes alike, the relevant one second: 1/2 in this order, 1 in the other.
    let (tie, tie_labels) = (at("tie.bin", &[0, 0, 0, 0]), at("tie.txt", b"0\n1\n"));
    for (option, expected) in [(None, 0.75), (Some("--database-order"), 0.5)] {
        let mut args = vec![
            "eval",
            "--query-codes",
            &q,
            "--query-labels",
            &ql,
            "--bits",
            "16",
        ];
        args.extend([
            "--database-codes",
            &tie,
            "--database-labels",
            &tie_labels,
            "--json",
        ]);
        args.extend(option);
        near(&json_lines(&succeed(&args))[0]["map"], expected);
    }
    refuse(&refs(&codes(&["--r", "0"])), "R is");
    refuse(
        &refs(&codes(&["--orders", "0"])),
        "ties take 1 to 10000 permutations, got 0",
    );
    refuse(
        &refs(&codes(&["--leave-one-out"])),
        "two sets, of 1 and 4 codes",
    );
    refuse(
        &[
            "eval",
            "--query-codes",
            &q,
            "--query-labels",
            &ql,
            "--bits",
            "16",
        ],
        "--leave-one-out",
    );
    refuse(
        &[
            "eval",
            "--query-codes",
            &q,
            "--query-labels",
            &ql,
            "--bits",
            "17",
        ],
        "16 to 1024 bits",
    );
}

#[test]
fn vectors_are_fitted_encoded_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (n, dim) = (240, 24);
    let mut rng = seeded("vectors_are_fitted_encoded_and_measured", 3);
    let centers: Vec<f32> = (0..4 * dim).map(|_| rng.random_range(-3.0..3.0)).collect();
    let values: Vec<f32> = (0..n * dim)
        .map(|i| centers[i / dim % 4 * dim + i % dim] + rng.random_range(-1.0..1.0f32))
        .collect();
    let labels: String = (0..n).map(|row| format!("{}\n", row % 4)).collect();
    let (vectors, labels_file) = (at("v.npy"), at("l.txt"));
    npy(Path::new(&vectors), dim, &values);
    std::fs::write(&labels_file, labels).unwrap();
    let itq = at("itq.bin");
    let fit = json_lines(&succeed(&[
        "fit",
        "--vectors",
        &vectors,
        "--bits",
        "16",
        "--iterations",
        "50",
        "--out",
        &itq,
        "--json",
    ]))
    .remove(0);
    let errors: Vec<f64> = fit["quantization_errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_f64().unwrap())
        .collect();
    assert!(errors.len() == 51 && errors[50] < errors[0], "{errors:?}");
    let (by_file, at_once, lsh) = (at("a.bin"), at("b.bin"), at("c.bin"));
    let out = succeed(&[
        "encode",
        "--encoder-file",
        &itq,
        "--input",
        &vectors,
        "--out",
        &by_file,
        "--json",
    ]);
    assert_eq!(json_lines(&out)[0]["model_id"], fit["model_id"]);
    succeed(&[
        "encode",
        "--encoder",
        "itq",
        "--fit",
        &vectors,
        "--input",
        &vectors,
        "--bits",
        "16",
        "--out",
        &at_once,
    ]);
    assert_eq!(
        std::fs::read(&by_file).unwrap(),
        std::fs::read(&at_once).unwrap()
    );
    succeed(&[
        "encode",
        "--encoder",
        "lsh",
        "--input",
        &vectors,
        "--bits",
        "64",
        "--out",
        &lsh,
    ]);
    for (codes, bits) in [(&by_file, "16"), (&lsh, "64")] {
        let found = succeed(&[
            "eval",
            "--query-codes",
            codes,
            "--query-labels",
            &labels_file,
            "--bits",
            bits,
            "--leave-one-out",
            "--json",
        ]);
        let map = json_lines(&found)[0]["map"].as_f64().unwrap();
        // By chance it is a quarter.
        assert!(map > 0.9, "{codes}: {map}");
    }
    // The same encoder in an index, which keeps a copy of it.
    let (index, copy) = (at("index"), at("copy.bin"));
    std::fs::copy(&itq, &copy).unwrap();
    let build = [
        "index",
        "--encoder",
        "itq",
        "--vectors",
        &vectors,
        "--index",
        &index,
    ];
    refuse(&build, "expected --encoder-file beside --encoder itq");
    let mut wrong = build.to_vec();
    wrong.extend(["--encoder-file", &copy, "--bits", "32"]);
    refuse(&wrong, "expected codes of 32 bits, it makes 16");
    wrong = vec![
        "index",
        "--encoder-file",
        &copy,
        "--dim",
        "9",
        "--index",
        &index,
    ];
    wrong.extend(["--input", &labels_file]);
    refuse(&wrong, "it reads vectors of 24 numbers, got 9");
    let mut build = build.to_vec();
    build.extend(["--encoder-file", &copy, "--json"]);
    assert_eq!(json_lines(&succeed(&build))[0]["codes"], n);
    std::fs::remove_file(&copy).unwrap();
    let packed = std::fs::read(&by_file).unwrap();
    let wanted = packed
        .chunks(2)
        .filter(|code| *code == &packed[..2])
        .count();
    let code: String = packed[..2]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let find = [
        "search", "--index", &index, "--code", &code, "--radius", "0", "--json",
    ];
    assert_eq!(json_lines(&succeed(&find))[0]["total"], wanted);
    // Added to without the file, by the copy: each code is there once more.
    let rows: String = (0..n)
        .map(|row| format!("{{\"key\":\"more-{row}\"}}\n"))
        .collect();
    let keys = at("keys.jsonl");
    std::fs::write(&keys, rows).unwrap();
    let append = [
        "index",
        "--append",
        "--vectors",
        &vectors,
        "--input",
        &keys,
        "--index",
        &index,
    ];
    succeed(&append);
    assert_eq!(json_lines(&succeed(&find))[0]["total"], 2 * wanted);
    // By key, so a row that was there before takes the place of itself.
    let merged = at("merged");
    succeed(&["merge", "--input", &index, "--index", &merged]);
    assert!(Path::new(&merged).join("itq.bin").is_file());

    refuse(
        &["fit", "--vectors", &vectors, "--bits", "32", "--out", &itq],
        "at most as many bits",
    );
    refuse(
        &[
            "encode",
            "--encoder",
            "itq",
            "--input",
            &vectors,
            "--bits",
            "16",
            "--out",
            &lsh,
        ],
        "--fit",
    );
    std::fs::write(&itq, &std::fs::read(&itq).unwrap()[1..]).unwrap();
    refuse(
        &[
            "encode",
            "--encoder-file",
            &itq,
            "--input",
            &vectors,
            "--out",
            &lsh,
        ],
        "corrupt ITQ file",
    );
}

#[test]
fn centers_are_made_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let (similarity, out) = (dir.path().join("s.npy"), dir.path().join("centers.npy"));
    // Two groups of four classes.
    let entries = (0..64).map(|at| match (at / 8, at % 8) {
        (a, b) if a == b => 1.0,
        (a, b) if a / 4 == b / 4 => 0.5,
        _ => 0.0,
    });
    let bytes = tanhash::npy::float_bytes(8, &entries.collect::<Vec<f64>>());
    std::fs::write(&similarity, bytes).unwrap();
    let args = [
        "--json",
        "centers",
        "--similarity",
        text(&similarity),
        "--bits",
        "16",
        "--out",
        text(&out),
    ];
    let report = &json_lines(&succeed(&args))[0];
    assert_eq!(report["gv_distance"], 7);
    assert!(report["d_min"].as_u64().unwrap() >= 7, "{report}");
    let loss = |name: &str| report[name].as_f64().unwrap();
    assert!(loss("s_loss") <= loss("s_loss_before_refine"), "{report}");
    assert!(
        loss("s_loss_before_refine") <= loss("s_loss_start"),
        "{report}"
    );
    let (rows, columns, centers) = tanhash::npy::read_matrix(&out).unwrap();
    assert_eq!((rows, columns), (8, 16));
    assert!(centers.iter().all(|entry| entry.abs() == 1.0));

    let mut more = args.to_vec();
    more.extend(["--min-distance", "12"]);
    refuse(&more, "use more bits");
    let distances = ["centers", "--similarity", text(&out), "--bits", "16"];
    refuse(&distances, "expected as many rows as columns, found 8 x 16");
    refuse(
        &["centers", "--bits", "16"],
        "--similarity FILE, --hierarchy FILE or --classes N",
    );
    let random = [
        "centers",
        "--method",
        "max-hd",
        "--classes",
        "4",
        "--bits",
        "16",
    ];
    succeed(&random);
    refuse(
        &[&random[..], &["--variant", "paper"]].concat(),
        "--variant is of the method shc, got max-hd",
    );

    // The same two groups as a tree: a half within a group, nothing across. So the same centers.
    let tree = dir.path().join("tree.txt");
    std::fs::write(
        &tree,
        "r\n- a\n-- 0\n-- 1\n-- 2\n-- 3\n- b\n-- 4\n-- 5\n-- 6\n-- 7\n",
    )
    .unwrap();
    let names = dir.path().join("names.txt");
    std::fs::write(&names, "3\n7\n0\n").unwrap();
    let from_tree = dir.path().join("of-tree.npy");
    let mut of_tree = vec![
        "--json",
        "centers",
        "--hierarchy",
        text(&tree),
        "--bits",
        "16",
    ];
    of_tree.extend(["--class-names", text(&names), "--out", text(&from_tree)]);
    // The Gilbert-Varshamov distance of three centers would leave the tree little to say.
    of_tree.extend(["--min-distance", "4"]);
    let report = &json_lines(&succeed(&of_tree))[0];
    assert_eq!(report["n_classes"], 3);
    let (rows, columns, centers) = tanhash::npy::read_matrix(&from_tree).unwrap();
    assert_eq!((rows, columns), (3, 16));
    let apart = |a: usize, b: usize| {
        (0..16)
            .filter(|i| centers[a * 16 + i] != centers[b * 16 + i])
            .count()
    };
    // 3 and 0 are in one group, 7 is not.
    assert!(
        apart(0, 2) < apart(0, 1) && apart(0, 2) < apart(1, 2),
        "{centers:?}"
    );
    // Leaves that are named by numbers need no other names.
    let numbers = ["centers", "--hierarchy", text(&tree), "--bits", "16"];
    succeed(&[&numbers[..], &["--out", text(&from_tree)]].concat());
    assert_eq!(
        std::fs::read(&from_tree).unwrap(),
        std::fs::read(&out).unwrap()
    );
    std::fs::write(&tree, "r\n- cat\n- dog\n").unwrap();
    refuse(&numbers, "give names with --class-names");
    refuse(&numbers, "class 0 \"0\" is not in it; it has leaves");

    let plain = [
        "centers",
        "--classes",
        "10",
        "--bits",
        "64",
        "--method",
        "max-hd",
    ];
    assert!(succeed(&plain).contains("10 centers of 64 bits by max-hd"));
}

/// The section of `docs/guide/cli.md` about a command.
fn section<'a>(page: &'a str, command: &str) -> &'a str {
    let section = page.split_once(&format!("\n## {command}\n"));
    let section = section
        .unwrap_or_else(|| panic!("cli.md: no section {command}"))
        .1;
    section.split("\n## ").next().unwrap()
}

#[test]
fn the_page_of_the_program_names_every_option() {
    let page = include_str!("../docs/guide/cli.md");
    let options = |help: &str| -> Vec<String> {
        let lines = help.lines().map(str::trim_start);
        let lines = lines.filter(|line| line.starts_with("--") || line.starts_with("-h"));
        let words = lines.flat_map(|line| line.split([' ', ',', '=', '[', '<']));
        words
            .filter(|word| word.starts_with("--"))
            .map(str::to_owned)
            .collect()
    };
    let help = succeed(&["--help"]);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.split_once("\n\n").unwrap().0.lines();
    // A line of a command is indented by two; its description may go on below, deeper.
    let commands = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands = commands.map(|line| line.split_whitespace().next().unwrap());
    let mut problems = Vec::new();
    let mut of_all = vec!["--features".to_owned(), "--path".to_owned()];
    for command in commands.filter(|command| *command != "help") {
        let own = section(page, command);
        // `rehash` builds as `index` does, and says so.
        let text = match command {
            "rehash" => own.to_owned() + section(page, "index"),
            _ => own.to_owned(),
        };
        let named = |option: &str| {
            text.match_indices(option).any(|(at, _)| {
                let next = text[at + option.len()..].chars().next();
                !next.is_some_and(|next| next.is_ascii_alphanumeric() || next == '-')
            })
        };
        let known = options(&succeed(&[command, "--help"]));
        assert!(known.contains(&"--help".to_owned()), "{command}: {known:?}");
        for option in &known {
            let global = ["--help", "--json", "--seed"].contains(&option.as_str());
            if !global && !named(option) {
                problems.push(format!("cli.md, {command}: nothing about {option}"));
            }
        }
        of_all.extend(known);
    }
    assert!(of_all.len() > 150, "{} options were found", of_all.len());
    for word in page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
        let name = word.strip_prefix("--").unwrap_or_default();
        let is_option = name.starts_with(|c: char| c.is_ascii_lowercase());
        if is_option && !of_all.iter().any(|known| known == word) {
            problems.push(format!("cli.md: no command has the option {word}"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
