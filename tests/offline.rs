//! Offline builds by the real program: killed and resumed, from every kind of input, sound and broken. Guards
//! counts, names, exit codes, and that nothing but the broken part is harmed. `TANHASH_BUILD_KILLS` sets the
//! number of killed builds.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::seeded;
use image::{Rgb, RgbImage};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rand::Rng;
use serde_json::{Value, json};
use tanhash::plugin::{HashIndex, HashPlugin};
use tantivy::schema::Value as _;
use tantivy::{DocAddress, TantivyDocument};

fn tanhash(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tanhash"))
        .args(args)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON of a command, its exit code and its stderr.
fn run(args: &[&str]) -> (Value, i32, String) {
    let output = tanhash(&[args, &["--json"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let stdout = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (stdout, output.status.code().unwrap(), stderr)
}

fn succeed(args: &[&str]) -> Value {
    let (value, code, stderr) = run(args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
    value
}

/// Exit code 1 and one line that says this.
fn fail(args: &[&str], expected: &str) -> Value {
    let (value, code, stderr) = run(args);
    assert_eq!(code, 1, "{args:?}: {stderr}");
    let line = stderr.lines().last().unwrap_or_default();
    assert!(
        line.contains(expected),
        "{args:?}: expected {expected:?} in {stderr}"
    );
    value
}

fn counts(summary: &Value) -> [u64; 4] {
    ["documents", "codes", "failed", "damaged"].map(|name| summary[name].as_u64().unwrap())
}

fn picture(seed: u32) -> RgbImage {
    RgbImage::from_fn(24, 20, |x, y| {
        let value = ((x / 5 + seed % 7) * (y / 4 + seed / 7) * 29 + seed * 13) as u8;
        Rgb([value, value.wrapping_mul(3), value ^ 90])
    })
}

fn png(seed: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture(seed)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

type Contents = BTreeMap<String, (Vec<String>, Option<String>)>;

/// Every live document: its stored text and its code.
fn contents(dir: &Path, field: &str) -> Contents {
    let index = HashIndex::open_in_dir(dir, HashPlugin::new()).unwrap();
    let searcher = index.searcher().unwrap();
    let (key, field) = (index.field("key").unwrap(), index.field(field).unwrap());
    let mut found = BTreeMap::new();
    for (segment, reader) in (0..).zip(searcher.segment_readers()) {
        for doc in reader.doc_ids_alive() {
            let address = DocAddress::new(segment, doc);
            let document: TantivyDocument = searcher.doc(address).unwrap();
            let name = document
                .get_first(key)
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned();
            let stored = ["label", "text"].iter().map(|name| {
                let value = document.get_first(index.field(name).unwrap());
                value
                    .and_then(|value| value.as_str().map(str::to_owned))
                    .unwrap_or_default()
            });
            let code = index.code(&searcher, field, address).unwrap();
            let entry = (stored.collect(), code.map(|code| code.to_hex()));
            assert!(found.insert(name.clone(), entry).is_none(), "{name} twice");
        }
    }
    found
}

fn quarantine(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("quarantine.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_killed_build_resumes_to_the_same_index() {
    let rounds: u64 = std::env::var("TANHASH_BUILD_KILLS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(4);
    let mut rng = seeded("a_killed_build", 71);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let photos = at("photos");
    for number in 0..300u32 {
        let folder = photos.join(format!("class {}", number % 5));
        fs::create_dir_all(&folder).unwrap();
        let bytes = match number % 25 {
            7 => b"this is no picture".to_vec(),
            19 => Vec::new(),
            _ => png(number),
        };
        fs::write(folder.join(format!("{number}.png")), bytes).unwrap();
    }
    let build = |index: &Path| {
        let mut args = vec![
            "index",
            "--encoder",
            "phash",
            "--input",
            text(&photos),
            "--index",
        ];
        args.extend([text(index), "--commit-every", "64", "--resume"]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let straight = at("straight");
    let args = build(&straight);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let began = std::time::Instant::now();
    let expected = succeed(&args);
    let took = began.elapsed();
    assert_eq!(counts(&expected), [300, 276, 24, 0]);
    let mut n_kills = 0;
    for round in 0..rounds {
        let index = at(&format!("killed-{round}"));
        let args = build(&index);
        for _ in 0..3 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_tanhash"))
                .args(&args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(
                rng.random_range(0..took.as_micros() as u64),
            ));
            n_kills += u64::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut resumed = succeed(&args);
        for name in ["seconds", "resumed_at", "quarantine"] {
            resumed[name] = expected[name].clone();
        }
        assert_eq!(resumed, expected, "round {round}");
        assert_eq!(
            contents(&index, "image"),
            contents(&straight, "image"),
            "round {round}"
        );
        assert_eq!(quarantine(&index), quarantine(&straight), "round {round}");
        succeed(&["verify", "--index", text(&index)]);
    }
    assert!(n_kills > 0, "no build was killed before its end");
    println!("{n_kills} kills of {rounds} builds");
}

/// A PNG header of these dimensions with nothing behind it.
fn png_header(side: u32) -> Vec<u8> {
    let mut bytes = png(1);
    bytes[16..20].copy_from_slice(&side.to_be_bytes());
    bytes[20..24].copy_from_slice(&side.to_be_bytes());
    let checksum = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// 8 x 8 pixels of one colour in four components.
fn cmyk_jpeg() -> Vec<u8> {
    let segment = |marker: u8, body: &[u8]| {
        let len = (body.len() as u16 + 2).to_be_bytes();
        [&[0xff, marker][..], &len, body].concat()
    };
    let mut quantizers = [8; 65];
    quantizers[0] = 0;
    // One code of one bit: the difference has 7 bits, or the block ends.
    let table = |class: u8, symbol: u8| {
        let mut table = [0; 18];
        (table[0], table[1], table[17]) = (class, 1, symbol);
        segment(0xc4, &table)
    };
    let frame = [
        8, 0, 8, 0, 8, 4, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0,
    ];
    [
        vec![0xff, 0xd8],
        segment(0xee, b"Adobe\0\x64\0\0\0\0\0"),
        segment(0xdb, &quantizers),
        segment(0xc0, &frame),
        table(0x00, 7),
        table(0x10, 0),
        segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]),
        vec![0x7f, 0x00, 0x00, 0x0f, 0xef, 0xff, 0xd9],
    ]
    .concat()
}

#[test]
fn broken_pictures_are_counted_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (photos, index) = (dir.path().join("photos"), dir.path().join("index"));
    fs::create_dir_all(photos.join("deep/er")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(photos.join(name), bytes).unwrap();
    let mut jpeg = std::io::Cursor::new(Vec::new());
    picture(3)
        .write_to(&mut jpeg, image::ImageFormat::Jpeg)
        .unwrap();
    let jpeg = jpeg.into_inner();
    // Sound ones, some of them unusual.
    put("deep/er/good.png", &png(2));
    put("good.jpg", &jpeg);
    let wide = image::ImageBuffer::from_fn(24, 20, |x, y| Rgb([(x * y * 90) as u16, 7, 60_000]));
    image::DynamicImage::ImageRgb16(wide)
        .save(photos.join("sixteen.png"))
        .unwrap();
    let mut animated = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut animated);
    for seed in [4, 5] {
        let frame = image::DynamicImage::ImageRgb8(picture(seed)).into_rgba8();
        encoder.encode_frame(image::Frame::new(frame)).unwrap();
    }
    drop(encoder);
    put("animated.gif", &animated);
    put("cmyk.jpg", &cmyk_jpeg());
    // Broken ones, and what is said of each.
    put("zero.jpg", b"");
    put("cut.jpg", &jpeg[..jpeg.len() - 10]);
    put("huge.png", &png_header(10_000));
    put("bomb.png", &png_header(8_000));
    put("header.tiff", b"II*\0\xff\xff\xff\xff\0\0\0\0");
    put(
        "cmyk-cut.jpg",
        &[0xff, 0xd8, 0xff, 0xc0, 0, 20, 8, 0, 8, 0, 8, 4],
    );
    let mut expected = vec![
        ("zero.jpg", "decode", "zero bytes"),
        ("cut.jpg", "decode", "cut off"),
        ("huge.png", "decode", "10000 x 10000"),
        ("bomb.png", "decode", "40000000 pixels"),
        ("header.tiff", "decode", "TIFF"),
        ("cmyk-cut.jpg", "decode", "JPEG"),
    ];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("gone", photos.join("dangling.jpg")).unwrap();
        symlink("self.jpg", photos.join("self.jpg")).unwrap();
        symlink("..", photos.join("deep/loop")).unwrap();
        fs::create_dir(photos.join("deep/er/folder")).unwrap();
        symlink("folder", photos.join("deep/er/folder.png")).unwrap();
        expected.push(("dangling.jpg", "read", "No such file"));
        expected.push(("self.jpg", "read", "symbolic links"));
        expected.push(("deep/er/folder.png", "read", "expected a file"));
    }
    let args = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&photos),
        "--index",
        text(&index),
    ];
    let (summary, code, stderr) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let n = 5 + expected.len() as u64;
    assert_eq!(counts(&summary), [n, 5, n - 5, 0]);
    #[cfg(unix)]
    assert!(
        stderr.contains("links to folders are not followed") && stderr.contains("deep/loop"),
        "{stderr}"
    );
    let listed = quarantine(&index);
    assert_eq!(listed.len(), expected.len());
    for (key, stage, reason) in &expected {
        let line = listed.iter().find(|line| line["key"] == *key);
        let line = line.unwrap_or_else(|| panic!("{key} is not listed"));
        assert_eq!(line["stage"], *stage, "{line}");
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(line["sha256"].is_string(), *stage == "decode", "{line}");
    }
    let found = contents(&index, "image");
    for (key, (_, code)) in &found {
        assert_eq!(
            code.is_none(),
            expected.iter().any(|(of, _, _)| of == key),
            "{key}"
        );
    }
    assert_eq!(found["deep/er/good.png"].0[0], "er");

    // Left out, or fatal, if asked.
    let other = dir.path().join("skip");
    let skip = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&photos),
        "--index",
        text(&other),
    ];
    let summary = succeed(&[&skip[..], &["--on-bad", "skip"]].concat());
    assert_eq!(
        (&summary["documents"], &summary["skipped"]),
        (&json!(5), &json!(n - 5))
    );
    let strict = dir.path().join("strict");
    let args = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&photos),
        "--index",
        text(&strict),
    ];
    fail(
        &[&args[..], &["--on-bad", "fail"]].concat(),
        "was removed again",
    );
    assert!(!strict.exists());

    // A wrong disk refuses everything, which stops the build; it goes on when that is repaired.
    let (many, stopped) = (dir.path().join("many"), dir.path().join("stopped"));
    fs::create_dir(&many).unwrap();
    for number in 0..200u32 {
        let bytes = if number < 100 {
            png(number)
        } else {
            Vec::new()
        };
        fs::write(many.join(format!("{number:03}.png")), bytes).unwrap();
    }
    let args = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&many),
        "--index",
        text(&stopped),
    ];
    let args = [
        &args[..],
        &[
            "--commit-every",
            "64",
            "--max-failures",
            "20",
            "--partitions",
            "1",
        ],
    ]
    .concat();
    fail(&args, "20 records in a row");
    assert_eq!(contents(&stopped, "image").len(), 64);
    for number in 100..200u32 {
        fs::write(many.join(format!("{number:03}.png")), png(number)).unwrap();
    }
    let summary = succeed(&[&args[..], &["--resume"]].concat());
    assert_eq!(
        (counts(&summary), &summary["resumed_at"]),
        ([200, 200, 0, 0], &json!(64))
    );
}

#[test]
fn manifests_with_bad_lines_lose_those_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for seed in 0..4 {
        fs::write(at(&format!("{seed}.png")), png(seed)).unwrap();
    }
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, png(3));
    let lines = [
        json!({"path": "0.png", "id": "a", "caption": "red hat", "price": 3.5, "when": "2024-05-06", "kind": "/hat/red"}).to_string(),
        "{\"path\": ".to_owned(),
        json!({"image_base64": base64, "id": "b", "price": "cheap"}).to_string(),
        json!({"path": "2.png", "id": "a", "caption": "blue hat", "price": 9, "kind": ["/hat/blue", "/new"], "more": 1}).to_string(),
        String::new(),
        json!({"image_base64": base64, "id": 7}).to_string(),
        json!([1, 2]).to_string(),
    ];
    fs::write(at("m.jsonl"), lines.join("\n")).unwrap();
    let schema = "[[fields]]\nname = 'price'\ntype = 'f64'\nfast = true\n[[fields]]\nname = 'day'\nfrom = 'when'\n\
                  type = 'date'\n[[fields]]\nname = 'kind'\ntype = 'facet'\n";
    fs::write(at("schema.toml"), schema).unwrap();
    let (manifest, schema, index) = (at("m.jsonl"), at("schema.toml"), at("index"));
    let args = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&manifest),
        "--index",
        text(&index),
    ];
    let summary = fail(
        &[&args[..], &["--schema", text(&schema)]].concat(),
        "line 2",
    );
    assert_eq!(
        (counts(&summary), &summary["replaced"]),
        ([3, 3, 0, 3], &json!(1))
    );
    let names: Vec<String> = quarantine(&index)
        .iter()
        .map(|line| format!("{} {}", line["key"], line["reason"]))
        .collect();
    for (name, (line, reason)) in names.iter().zip([
        ("line 2", "JSON"),
        ("line 3", "`price`"),
        ("line 7", "JSON"),
    ]) {
        assert!(name.contains(line) && name.contains(reason), "{name}");
    }
    let found = contents(&index, "image");
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        ["7", "a"],
        "the last of a key stays"
    );
    assert_eq!(found["a"].0[1], "blue hat");
    let search = |query: &str| -> Vec<String> {
        let found = succeed(&["search", "--index", text(&index), "--text", query]);
        let hits = found["hits"].as_array().unwrap();
        hits.iter()
            .map(|hit| hit["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(search("price:[8 TO 10]"), ["a"]);
    assert_eq!(search("kind:/hat"), ["a"]);
    assert_eq!(search("price:3.5"), Vec::<String>::new());

    let csv = "id,path,caption,price\n1,0.png,\"a, quoted\",5\n2,1.png,short\n3,2.png,three,007\n";
    fs::write(at("m.csv"), csv).unwrap();
    let (manifest, index) = (at("m.csv"), at("csv"));
    let args = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&manifest),
        "--index",
        text(&index),
    ];
    let summary = fail(&args, "m.csv, line 3: expected 4 columns, found 3");
    assert_eq!(counts(&summary), [2, 2, 0, 1]);
    let found = succeed(&["search", "--index", text(&index), "--text", "quoted"]);
    assert_eq!(found["hits"][0]["meta"], json!({"price": 5}));
    let found = succeed(&["search", "--index", text(&index), "--text", "three"]);
    assert_eq!(found["hits"][0]["meta"], json!({"price": "007"}));
    fs::write(at("bad.toml"), "[[fields]]\nname = 'text'\ntype = 'u64'\n").unwrap();
    let (bad, other) = (at("bad.toml"), at("other"));
    let args = [
        "index",
        "--encoder",
        "phash",
        "--input",
        text(&manifest),
        "--index",
        text(&other),
    ];
    fail(&[&args[..], &["--schema", text(&bad)]].concat(), "`text`");
}

fn shard(path: &Path, keys: std::ops::Range<u32>) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for key in keys {
        let json = json!({"caption": format!("number {key}"), "width": 24}).to_string();
        for (extension, bytes) in [("jpg", png(key)), ("json", json.into_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, format!("{key:09}.{extension}"), &bytes[..])
                .unwrap();
        }
    }
    tar.into_inner().unwrap();
}

#[test]
fn a_shard_that_ends_early_gives_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    shard(&at("0.tar"), 0..4);
    shard(&at("1.tar"), 4..8);
    shard(&at("2.tar"), 8..12);
    let whole = fs::read(at("1.tar")).unwrap();
    let place = |name: &[u8]| {
        whole
            .windows(name.len())
            .position(|part| part == name)
            .unwrap()
    };
    // Within the third picture; and between two members, where a reader could take it for the end.
    for (cut, records) in [
        (place(b"000000006.jpg") + 600, 2),
        (place(b"000000006.jpg"), 2),
    ] {
        fs::write(at("1.tar"), &whole[..cut]).unwrap();
        let index = at(&format!("index-{cut}"));
        let inputs = [at("0.tar"), at("1.tar"), at("2.tar")];
        let args = [
            "index",
            "--encoder",
            "phash",
            "--index",
            text(&index),
            "--input",
        ];
        let args = [&args[..], &inputs.each_ref().map(|path| text(path))].concat();
        let summary = fail(
            &args,
            &format!("1.tar: the archive is damaged or ends early after {records} records"),
        );
        assert_eq!(counts(&summary), [8 + records, 8 + records, 0, 1]);
        let found = contents(&index, "image");
        assert_eq!(
            found["000000011"].0[1], "number 11",
            "the caption of the .json member"
        );
        assert!(found.contains_key("000000005") && !found.contains_key("000000007"));
        succeed(&["verify", "--index", text(&index)]);
    }
}

/// A table of keys, pictures and numbers.
fn table(path: &Path, price_type: &str, rows: std::ops::Range<u32>) {
    let message = format!(
        "message m {{ REQUIRED BYTE_ARRAY key (UTF8); REQUIRED BYTE_ARRAY image; REQUIRED {price_type} price; }}"
    );
    let schema = Arc::new(parse_message_type(&message).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    // Two row groups, so that a resumed run passes over one.
    let middle = rows.start + (rows.end - rows.start) / 2;
    for rows in [rows.start..middle, middle..rows.end] {
        let mut group = writer.next_row_group().unwrap();
        for column in 0..3 {
            let mut writer = group.next_column().unwrap().unwrap();
            let text = |row: u32| match column {
                0 => ByteArray::from(format!("row {row}").as_str()),
                1 => ByteArray::from(png(row)),
                _ => ByteArray::from("dear"),
            };
            if column == 2 && price_type == "INT64" {
                let values: Vec<i64> = rows.clone().map(i64::from).collect();
                writer
                    .typed::<Int64Type>()
                    .write_batch(&values, None, None)
                    .unwrap();
            } else {
                let values: Vec<ByteArray> = rows.clone().map(text).collect();
                writer
                    .typed::<ByteArrayType>()
                    .write_batch(&values, None, None)
                    .unwrap();
            }
            writer.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn a_table_with_a_column_of_the_wrong_type_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    table(&at("good.parquet"), "INT64", 0..10);
    table(&at("bad.parquet"), "BYTE_ARRAY", 10..20);
    fs::write(at("none.parquet"), b"no table at all").unwrap();
    fs::write(
        at("schema.json"),
        r#"{"fields": [{"name": "price", "type": "u64", "fast": true}]}"#,
    )
    .unwrap();
    let (schema, index) = (at("schema.json"), at("index"));
    let inputs = [at("bad.parquet"), at("none.parquet"), at("good.parquet")];
    let args = [
        "index",
        "--encoder",
        "phash",
        "--index",
        text(&index),
        "--schema",
        text(&schema),
        "--input",
    ];
    let args = [&args[..], &inputs.each_ref().map(|path| text(path))].concat();
    let summary = fail(
        &args,
        "bad.parquet: column `price`: expected a whole number of at least 0 for the field `price`, found BYTE_ARRAY",
    );
    assert_eq!(counts(&summary), [10, 10, 0, 2]);
    let found = succeed(&[
        "search",
        "--index",
        text(&index),
        "--text",
        "price:[7 TO 8]",
    ]);
    assert_eq!(found["total"], 2);
    let prices = found["hits"].as_array().unwrap().iter();
    let mut prices: Vec<u64> = prices
        .map(|hit| hit["fields"]["price"].as_u64().unwrap())
        .collect();
    prices.sort_unstable();
    assert_eq!(prices, [7, 8]);
    assert!(
        contents(&index, "image")
            .values()
            .all(|(_, code)| code.is_some())
    );

    let alone = at("alone");
    let bad = at("bad.parquet");
    let args = [
        "index",
        "--encoder",
        "phash",
        "--index",
        text(&alone),
        "--schema",
        text(&schema),
        "--input",
        text(&bad),
    ];
    fail(&args, "column `price`");
    assert!(!alone.exists(), "nothing was indexed, so nothing stays");
}

fn npy(path: &Path, rows: usize, dim: usize) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    for number in 0..rows * dim {
        bytes.extend_from_slice(&((number * 37 % 101) as f32 - 50.0).to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn vectors_are_hashed_beside_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    npy(&at("v.npy"), 6, 8);
    npy(&at("short.npy"), 5, 8);
    let lines: Vec<String> = (0..6)
        .map(|row| json!({"id": format!("k{row}"), "text": format!("word{row}")}).to_string())
        .collect();
    fs::write(at("text.jsonl"), lines.join("\n")).unwrap();
    let (vectors, lines) = (at("v.npy"), at("text.jsonl"));
    let index = |name: &str, vectors: &Path, more: &[&str]| {
        let out = at(name);
        let args = [
            "index",
            "--encoder",
            "lsh",
            "--vectors",
            text(vectors),
            "--index",
            text(&out),
        ];
        run(&[&args[..], more].concat())
    };
    assert_eq!(counts(&index("alone", &vectors, &[]).0), [6, 6, 0, 0]);
    assert_eq!(
        counts(&index("both", &vectors, &["--input", text(&lines)]).0),
        [6, 6, 0, 0]
    );
    let (alone, both) = (
        contents(&at("alone"), "image"),
        contents(&at("both"), "image"),
    );
    for row in 0..6 {
        assert_eq!(alone[&row.to_string()].1, both[&format!("k{row}")].1);
    }
    assert_eq!(both["k3"].0[1], "word3");
    let (_, code, stderr) = index("less", &at("short.npy"), &["--input", text(&lines)]);
    assert!(code == 1 && stderr.contains("one row a record"), "{stderr}");
    fs::write(at("cut.npy"), &fs::read(&vectors).unwrap()[..100]).unwrap();
    let (_, code, stderr) = index("cut", &at("cut.npy"), &[]);
    assert!(
        code == 1 && stderr.contains("expected 192 bytes of values"),
        "{stderr}"
    );
}

#[test]
fn indexes_are_appended_to_merged_rehashed_and_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    shard(&at("a.tar"), 0..6);
    shard(&at("b.tar"), 4..9);
    let build = |shard: &str, index: &str, more: &[&str]| {
        let (shard, index) = (at(shard), at(index));
        let args = [
            "index",
            "--encoder",
            "phash",
            "--input",
            text(&shard),
            "--index",
            text(&index),
        ];
        run(&[&args[..], more].concat())
    };
    build("a.tar", "a", &[]);
    build("b.tar", "b", &[]);
    build("a.tar", "grown", &[]);
    let (summary, code, stderr) = build("b.tar", "grown", &["--append"]);
    assert_eq!(
        (code, &summary["replaced"], &summary["live"]),
        (0, &json!(2), &json!(9)),
        "{stderr}"
    );
    let (_, code, stderr) = build("b.tar", "grown", &["--append", "--bits", "128"]);
    assert!(code == 1 && stderr.contains("begun with"), "{stderr}");
    let (a, b, merged) = (at("a"), at("b"), at("merged"));
    let args = [
        "merge",
        "--index",
        text(&merged),
        "--input",
        text(&a),
        text(&b),
    ];
    let summary = succeed(&args);
    assert_eq!(
        (&summary["documents"], &summary["replaced"]),
        (&json!(9), &json!(2))
    );
    assert_eq!(contents(&merged, "image"), contents(&at("grown"), "image"));
    fail(&args, "expected no directory");
    let wide = at("wide");
    build("a.tar", "wide", &["--bits", "128"]);
    let other = at("other");
    fail(
        &[
            "merge",
            "--index",
            text(&other),
            "--input",
            text(&a),
            text(&wide),
        ],
        "found others",
    );
    assert!(!other.exists());

    let (rehashed, shard) = (at("rehashed"), at("a.tar"));
    let args = [
        "rehash",
        "--index",
        text(&merged),
        "--input",
        text(&shard),
        "--out",
        text(&rehashed),
    ];
    let args = [
        &args[..],
        &["--encoder", "phash", "--bits", "128", "--field", "wide"],
    ]
    .concat();
    let summary = succeed(&args);
    assert_eq!(
        (&summary["documents"], &summary["failed"]),
        (&json!(9), &json!(3))
    );
    assert_eq!(
        contents(&rehashed, "image"),
        contents(&merged, "image"),
        "the old codes are copied"
    );
    let (new, direct) = (contents(&rehashed, "wide"), contents(&wide, "image"));
    for (key, (_, code)) in &new {
        assert_eq!(
            code,
            &direct.get(key).and_then(|(_, code)| code.clone()),
            "{key}"
        );
    }
    let picture = at("query.png");
    fs::write(&picture, png(3)).unwrap();
    for field in ["image", "wide"] {
        let found = succeed(&[
            "search",
            "--index",
            text(&rehashed),
            "--field",
            field,
            "--image",
            text(&picture),
        ]);
        assert_eq!(found["hits"][0]["distance"], 0, "{field}");
    }

    let verify = ["verify", "--index", text(&merged)];
    succeed(&verify);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(merged.join("tanhash.json"))
        .unwrap();
    file.write_all(b"\n").unwrap();
    fail(&verify, "tanhash.json: expected SHA-256");
    succeed(&[&verify[..], &["--seal"]].concat());
    succeed(&verify);
}

/// A file that may not grow further is what a full disk looks like to a writer.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing_that_was_committed() {
    let mut rng = seeded("a_full_disk", 72);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let line = |key: u32| {
        // Text that does not compress, so that the merged file is larger than any before.
        let words: Vec<String> = (0..60)
            .map(|_| format!("{:016x}", rng.random::<u64>()))
            .collect();
        json!({"id": key, "text": words.join(" ")}).to_string()
    };
    let lines: Vec<String> = (0..800).map(line).collect();
    let manifest = at("m.jsonl");
    fs::write(&manifest, lines.join("\n")).unwrap();
    let build = |index: &str| -> Vec<String> {
        let args = [
            "index",
            "--encoder",
            "phash",
            "--commit-every",
            "100",
            "--resume",
            "--input",
        ];
        let mut args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        args.extend([
            text(&manifest).to_owned(),
            "--index".to_owned(),
            text(&at(index)).to_owned(),
        ]);
        args
    };
    let straight = build("straight");
    succeed(&straight.iter().map(String::as_str).collect::<Vec<_>>());
    // 300 KiB a file, in blocks of 512 bytes.
    let script = "ulimit -f 600; trap '' XFSZ; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_tanhash")])
        .args(build("full"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("--resume goes on") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let committed = contents(&at("full"), "image").len();
    assert!(
        committed >= 100 && committed.is_multiple_of(100),
        "{committed}"
    );
    let resumed = build("full");
    let summary = succeed(&resumed.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(summary["resumed_at"], committed);
    assert_eq!(
        contents(&at("full"), "image"),
        contents(&at("straight"), "image")
    );
    succeed(&["verify", "--index", text(&at("full"))]);
}
