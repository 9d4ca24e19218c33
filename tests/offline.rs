//! Offline builds by the real program: killed and resumed, from every kind of input, sound and broken. Guards
//! counts, names, exit codes, and that nothing but the broken part is harmed. `TANHASH_BUILD_KILLS` sets the
//! number of killed builds.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::program::{
    counts, fail, phash, picture, png, quarantine, run, shard, succeed, succeed_json, text,
};
use common::{program, seeded};
use image::Rgb;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rand::Rng;
use serde_json::{Value, json};
use tanhash::plugin::{HashIndex, HashPlugin};
use tantivy::schema::Value as _;
use tantivy::{DocAddress, TantivyDocument};

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

/// Runs a command that goes on where it was killed: to its end at once for one index, and killed at random
/// moments for others. All must end in the same documents, codes and quarantine, and a run after the end
/// change nothing.
fn check_kills(
    name: &str,
    seed: u64,
    args: impl Fn(&Path) -> Vec<String>,
    fields: &[&str],
) -> Value {
    let rounds: u64 = std::env::var("TANHASH_BUILD_KILLS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(4);
    let mut rng = seeded(name, seed);
    let dir = tempfile::tempdir().unwrap();
    let finish = |index: &Path| {
        let args = args(index);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut summary = succeed_json(&args);
        for name in ["seconds", "resumed_at", "quarantine"] {
            summary[name] = Value::Null;
        }
        summary
    };
    let contents_of = |index: &Path| -> Vec<Contents> {
        fields.iter().map(|field| contents(index, field)).collect()
    };
    let straight = dir.path().join("straight");
    let began = std::time::Instant::now();
    let expected = finish(&straight);
    let mut took = began.elapsed();
    let mut n_kills = 0;
    for round in 0..rounds {
        let index = dir.path().join(format!("killed-{round}"));
        for _ in 0..3 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_tanhash"))
                .args(args(&index))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(
                rng.random_range(0..took.as_micros() as u64),
            ));
            match child.try_wait().unwrap() {
                None => n_kills += 1,
                // The first run was slower than this one: the machine was busy.
                Some(_) => took = took * 3 / 4,
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for run in ["resumed", "again"] {
            assert_eq!(finish(&index), expected, "round {round}, {run}");
            assert_eq!(
                contents_of(&index),
                contents_of(&straight),
                "round {round}, {run}"
            );
            assert_eq!(
                quarantine(&index),
                quarantine(&straight),
                "round {round}, {run}"
            );
        }
        succeed_json(&["verify", "--index", text(&index)]);
    }
    assert!(
        n_kills >= rounds,
        "{n_kills} kills before the end of {rounds} runs"
    );
    println!("{n_kills} kills of {rounds} runs");
    expected
}

/// A folder of 300 files in five folders, every 25th broken and every 25th empty, of these numbers.
fn photos(dir: &Path, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let folder = dir.join(format!("class {}", number % 5));
        fs::create_dir_all(&folder).unwrap();
        let bytes = match number % 25 {
            7 => b"this is no picture".to_vec(),
            19 => Vec::new(),
            _ => png(number),
        };
        fs::write(folder.join(format!("{number}.png")), bytes).unwrap();
    }
}

/// Arguments that outlive the paths they name.
fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| arg.to_string()).collect()
}

#[test]
fn a_killed_build_resumes_to_the_same_index() {
    let dir = tempfile::tempdir().unwrap();
    photos(dir.path(), 0..300);
    let args = |index: &Path| {
        let build = phash(&[dir.path()], index);
        owned(&[&build[..], &["--commit-every", "64", "--resume"]].concat())
    };
    let expected = check_kills("a_killed_build", 71, args, &["image"]);
    assert_eq!(counts(&expected), [300, 276, 24, 0]);
}

/// The input has some of the index's pictures, some broken ones and some that the index does not know.
#[test]
fn a_killed_rehash_resumes_to_the_same_index() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (input, known, old) = (at("input"), at("known"), at("old"));
    photos(&known, 0..240);
    photos(&input, 100..280);
    succeed_json(&phash(&[&known], &old));
    let args = |out: &Path| {
        let rehash = ["rehash", "--index", text(&old), "--input", text(&input)];
        let new = ["--encoder", "phash", "--bits", "128", "--field", "wide"];
        let more = ["--commit-every", "32", "--resume", "--out", text(out)];
        owned(&[&rehash[..], &new, &more].concat())
    };
    let expected = check_kills("a_killed_rehash", 73, args, &["image", "wide"]);
    // 140 of the 240 documents are in the input, 11 of those broken; the other 100 get no new code. The 221
    // old codes are counted too.
    assert_eq!(counts(&expected), [240, 221 + 129, 111, 0]);

    // Without --resume what is there stays as it is.
    let out = at("out");
    let args = args(&out);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    succeed_json(&args);
    let anew: Vec<&str> = args
        .iter()
        .copied()
        .filter(|&arg| arg != "--resume")
        .collect();
    fail(&anew, "--resume");
    assert_eq!(contents(&out, "image"), contents(&old, "image"));
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
    let mut n_good = 5;
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
        // Nobody writes into it, so opening it would never end.
        let (inner, input) = (photos.join("pipe.jpg"), dir.path().join("pipe.jsonl"));
        let pipes = Command::new("mkfifo").args([&inner, &input]).status();
        assert!(pipes.unwrap().success());
        fail(&phash(&[&input], &index), "found a pipe");
        expected.push(("pipe.jpg", "read", "found a pipe"));
        symlink("pipe.jpg", photos.join("to-pipe.jpg")).unwrap();
        expected.push(("to-pipe.jpg", "read", "found a pipe"));
        symlink("/dev/zero", photos.join("endless.png")).unwrap();
        expected.push(("endless.png", "read", "found a device"));
        let _socket = std::os::unix::net::UnixListener::bind(photos.join("s.gif")).unwrap();
        expected.push(("s.gif", "read", "found a socket"));
        // A folder whose name is a picture's is read as a folder.
        fs::create_dir(photos.join("folder.jpg")).unwrap();
        put("folder.jpg/inside.png", &png(6));
        n_good += 1;
    }
    let args = phash(&[&photos], &index);
    let (summary, code, stderr) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let n = n_good + expected.len() as u64;
    assert_eq!(counts(&summary), [n, n_good, n - n_good, 0]);
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
    let skip = phash(&[&photos], &other);
    let summary = succeed_json(&[&skip[..], &["--on-bad", "skip"]].concat());
    assert_eq!(
        (&summary["documents"], &summary["skipped"]),
        (&json!(n_good), &json!(n - n_good))
    );
    let strict = dir.path().join("strict");
    let args = phash(&[&photos], &strict);
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
    let args = phash(&[&many], &stopped);
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
    let summary = succeed_json(&[&args[..], &["--resume"]].concat());
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
        json!({"id": "words", "text": "words alone"}).to_string(),
        json!({"path": "missing.png", "id": "gone", "caption": "not there"}).to_string(),
    ];
    fs::write(at("m.jsonl"), lines.join("\n")).unwrap();
    let schema = "[[fields]]\nname = 'price'\ntype = 'f64'\nfast = true\n[[fields]]\nname = 'day'\nfrom = 'when'\n\
                  type = 'date'\n[[fields]]\nname = 'kind'\ntype = 'facet'\n";
    fs::write(at("schema.toml"), schema).unwrap();
    let (manifest, schema, index) = (at("m.jsonl"), at("schema.toml"), at("index"));
    let args = phash(&[&manifest], &index);
    let summary = fail(
        &[&args[..], &["--schema", text(&schema)]].concat(),
        "line 2",
    );
    assert_eq!(
        (counts(&summary), &summary["replaced"]),
        ([5, 3, 1, 3], &json!(1))
    );
    let names: Vec<String> = quarantine(&index)
        .iter()
        .map(|line| format!("{} {}", line["key"], line["reason"]))
        .collect();
    for (name, (line, reason)) in names.iter().zip([
        ("line 2", "JSON"),
        ("line 3", "`price`"),
        ("line 7", "JSON"),
        ("gone", "No such file"),
    ]) {
        assert!(name.contains(line) && name.contains(reason), "{name}");
    }
    let found = contents(&index, "image");
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        ["7", "a", "gone", "words"],
        "the last of a key stays"
    );
    assert_eq!(found["a"].0[1], "blue hat");
    let search = |query: &str| -> Vec<String> {
        let found = succeed_json(&["search", "--index", text(&index), "--text", query]);
        let hits = found["hits"].as_array().unwrap();
        hits.iter()
            .map(|hit| hit["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(search("price:[8 TO 10]"), ["a"]);
    assert_eq!(search("kind:/hat"), ["a"]);
    assert_eq!(search("price:3.5"), Vec::<String>::new());
    assert_eq!(search("words"), ["words"]);
    assert!(found["words"].1.is_none() && found["gone"].1.is_none());

    let csv = "id,path,caption,price\n1,0.png,\"a, quoted\",5\n2,1.png,short\n3,2.png,three,007\n";
    fs::write(at("m.csv"), csv).unwrap();
    let (manifest, index) = (at("m.csv"), at("csv"));
    let args = phash(&[&manifest], &index);
    let summary = fail(&args, "m.csv, line 3: expected 4 columns, found 3");
    assert_eq!(counts(&summary), [2, 2, 0, 1]);
    let found = succeed_json(&["search", "--index", text(&index), "--text", "quoted"]);
    assert_eq!(found["hits"][0]["meta"], json!({"price": 5}));
    let found = succeed_json(&["search", "--index", text(&index), "--text", "three"]);
    assert_eq!(found["hits"][0]["meta"], json!({"price": "007"}));
    let picture = at("0.png");
    let by_picture = ["search", "--index", text(&index), "--image", text(&picture)];
    let filtered = ["--filter", "meta.price:[4 TO 6]"];
    let found = succeed_json(&[&by_picture[..], &filtered].concat());
    assert_eq!(found["hits"].as_array().unwrap().len(), 1);
    assert_eq!(found["hits"][0]["key"], "1");
    fs::write(at("bad.toml"), "[[fields]]\nname = 'text'\ntype = 'u64'\n").unwrap();
    let (bad, other) = (at("bad.toml"), at("other"));
    let args = phash(&[&manifest], &other);
    fail(&[&args[..], &["--schema", text(&bad)]].concat(), "`text`");
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
        let summary = fail(
            &phash(&inputs.each_ref().map(|path| path.as_path()), &index),
            &format!("1.tar: the archive is damaged or ends early after {records} records"),
        );
        assert_eq!(counts(&summary), [8 + records, 8 + records, 0, 1]);
        let found = contents(&index, "image");
        for key in [10, 11] {
            let entry = &found[&format!("{key:09}")];
            assert_eq!(entry.0[1], format!("number {key}"), "the caption's member");
        }
        assert!(found.contains_key("000000005") && !found.contains_key("000000007"));
        succeed_json(&["verify", "--index", text(&index)]);
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
    let build = phash(&inputs.each_ref().map(|path| path.as_path()), &index);
    let args = [&build[..], &["--schema", text(&schema)]].concat();
    let summary = fail(
        &args,
        "bad.parquet: column `price`: expected a whole number of at least 0 for the field `price`, found BYTE_ARRAY",
    );
    assert_eq!(counts(&summary), [10, 10, 0, 2]);
    let found = succeed_json(&[
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
    let args = [&phash(&[&bad], &alone)[..], &["--schema", text(&schema)]].concat();
    fail(&args, "column `price`");
    assert!(!alone.exists(), "nothing was indexed, so nothing stays");
}

#[test]
fn vectors_are_hashed_beside_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let values: Vec<f32> = (0..48).map(|at| (at * 37 % 101) as f32 - 50.0).collect();
    program::npy(&at("v.npy"), 8, &values);
    program::npy(&at("short.npy"), 8, &values[..40]);
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

    // Input of which nothing could get a code is refused at once, and leaves no index behind.
    let photos = at("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("a.png"), b"is not read").unwrap();
    let (itq, ix) = (at("itq.bin"), at("ix"));
    let wide: Vec<f32> = (0..160 * 16).map(|at| (at * 61 % 211) as f32).collect();
    program::npy(&at("wide.npy"), 16, &wide);
    succeed(&[
        "fit",
        "--vectors",
        text(&at("wide.npy")),
        "--bits",
        "16",
        "--out",
        text(&itq),
    ]);
    let (photos, itq, ix) = (text(&photos), text(&itq), text(&ix));
    for (more, expected) in [
        (
            ["--encoder", "phash", "--vectors", text(&vectors)],
            "expected pictures, which are what dhash-64 reads",
        ),
        (
            ["--encoder-file", itq, "--input", photos],
            "got pictures; give other input",
        ),
    ] {
        fail(&[&["index", "--index", ix][..], &more].concat(), expected);
        assert!(!at("ix").exists());
    }
    fail(
        &[
            "encode",
            "--encoder-file",
            itq,
            "--input",
            text(&vectors),
            "--out",
            text(&at("c.bin")),
        ],
        "expected vectors of 16 numbers",
    );
    assert!(!at("c.bin").exists());
    let (alone, grown) = (at("alone"), ["--input", photos, "--append"]);
    fail(
        &[&["index", "--index", text(&alone)][..], &grown].concat(),
        "expected vectors of 8 numbers",
    );
    assert_eq!(contents(&alone, "image").len(), 6);
    let out = at("rehashed");
    let rehash = ["rehash", "--index", text(&alone), "--out", text(&out)];
    let more = ["--field", "more", "--encoder-file", itq];
    fail(
        &[&rehash[..], &more, &["--input", photos]].concat(),
        "rehashed was removed again: expected vectors of 16 numbers",
    );
    assert!(!out.exists());
    let lost = at("no/c.bin");
    fail(
        &[
            "encode",
            "--encoder-file",
            itq,
            "--input",
            text(&at("wide.npy")),
            "--out",
            text(&lost),
        ],
        "expected a folder",
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
        let args = phash(&[&shard], &index);
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
    let summary = succeed_json(&args);
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
    let summary = succeed_json(&args);
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
        let found = succeed_json(&[
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
    succeed_json(&verify);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(merged.join("tanhash.json"))
        .unwrap();
    file.write_all(b"\n").unwrap();
    fail(&verify, "tanhash.json: expected SHA-256");
    succeed_json(&[&verify[..], &["--seal"]].concat());
    succeed_json(&verify);
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
    let (straight, full) = (at("straight"), at("full"));
    let more = ["--commit-every", "100", "--resume"];
    let build = |index| [&phash(&[&manifest], index)[..], &more].concat();
    succeed_json(&build(&straight));
    // 300 KiB a file, in blocks of 512 bytes.
    let script = "ulimit -f 600; trap '' XFSZ; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_tanhash")])
        .args(build(&full))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("--resume goes on") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let committed = contents(&full, "image").len();
    assert!(
        committed >= 100 && committed.is_multiple_of(100),
        "{committed}"
    );
    let resumed = succeed_json(&build(&full));
    assert_eq!(resumed["resumed_at"], committed);
    assert_eq!(contents(&full, "image"), contents(&straight, "image"));
    succeed_json(&["verify", "--index", text(&full)]);
}

/// A network: training, encoding, indexing, another model's codes beside the first one's, and merging.
#[cfg(feature = "torch")]
#[test]
fn a_trained_model_rehashes_to_the_codes_that_it_encodes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let input = at("photos");
    photos(&input, 0..50);
    let data = format!("folder:{}", text(&input));
    let (first, second) = (at("first.safetensors"), at("second.safetensors"));
    for (model, seed, bits) in [(&first, "1", "32"), (&second, "2", "48")] {
        let what = ["train", "--data", &data, "--bits", bits, "--seed", seed];
        let how = ["--epochs", "1", "--batch", "16", "--device", "cpu"];
        succeed_json(&[&what[..], &how, &["--out", text(model)]].concat());
    }
    // What `encode` makes of each picture, by its key.
    let encoded = |model: &Path, bytes: usize| -> BTreeMap<String, String> {
        let out = at("codes.bin");
        let args = ["encode", "--model", text(model), "--input", text(&input)];
        let summary = succeed_json(&[&args[..], &["--out", text(&out)]].concat());
        assert_eq!(
            (&summary["codes"], &summary["failed"]),
            (&json!(46), &json!(4))
        );
        let codes = fs::read(&out).unwrap();
        let rows = program::json_lines(&fs::read_to_string(at("codes.bin.jsonl")).unwrap());
        assert_eq!((codes.len(), rows.len()), (46 * bytes, 46));
        let of_row = |(row, code): (&Value, &[u8])| {
            let code = code.iter().map(|byte| format!("{byte:02x}")).collect();
            (row["key"].as_str().unwrap().to_owned(), code)
        };
        rows.iter().zip(codes.chunks(bytes)).map(of_row).collect()
    };
    let codes_of = |index: &Path, field: &str| -> BTreeMap<String, String> {
        let found = contents(index, field).into_iter();
        found
            .filter_map(|(key, (_, code))| Some((key, code?)))
            .collect()
    };
    let (old_codes, new_codes) = (encoded(&first, 4), encoded(&second, 6));
    // Where nothing can be encoded the files of before stay, and nothing is left beside them.
    let (unreadable, codes) = (at("unreadable"), at("codes.bin"));
    fs::create_dir(&unreadable).unwrap();
    fs::write(unreadable.join("a.png"), "no picture").unwrap();
    let now = || {
        let n_files = fs::read_dir(dir.path()).unwrap().count();
        (fs::read(&codes).unwrap(), n_files)
    };
    let before = now();
    let args = [
        "encode",
        "--model",
        text(&second),
        "--input",
        text(&unreadable),
    ];
    let out = ["--out", text(&codes)];
    fail(&[&args[..], &out].concat(), "none of 1 could be encoded");
    assert_eq!(now(), before);
    let of_codes = |codes: &BTreeMap<String, String>| {
        let codes: std::collections::BTreeSet<_> = codes.values().cloned().collect();
        codes.len()
    };
    assert!(of_codes(&old_codes) > 5 && of_codes(&new_codes) > 5);

    let build = |input: &Path, index: &Path| {
        let args = ["index", "--model", text(&first), "--input", text(input)];
        succeed_json(&[&args[..], &["--index", text(index)]].concat())
    };
    let (old, part, merged) = (at("old"), at("part"), at("merged"));
    assert_eq!(counts(&build(&input, &old)), [50, 46, 4, 0]);
    assert_eq!(codes_of(&old, "image"), old_codes);
    build(&input.join("class 3"), &part);
    let merge = ["merge", "--index", text(&merged), "--input"];
    succeed_json(&[&merge[..], &[text(&old), text(&part)]].concat());
    // An index has a copy of its model.
    fs::remove_file(&first).unwrap();

    let out = at("out");
    let rehash = ["rehash", "--index", text(&merged), "--input", text(&input)];
    let new = ["--model", text(&second), "--field", "better"];
    let summary = succeed_json(&[&rehash[..], &new, &["--out", text(&out)]].concat());
    // The ten documents of the part have other keys, none of them in the input. Old codes are counted too.
    assert_eq!(counts(&summary), [60, 56 + 46, 14, 0]);
    assert_eq!(codes_of(&out, "better"), new_codes);
    assert_eq!(contents(&out, "image"), contents(&merged, "image"));
    let copied = codes_of(&out, "image");
    assert!(old_codes.iter().all(|(key, code)| copied[key] == *code));
    succeed_json(&["verify", "--index", text(&out)]);
    let picture = input.join("class 1/1.png");
    for (field, codes) in [("image", &old_codes), ("better", &new_codes)] {
        let search = ["search", "--index", text(&out), "--field", field];
        let found = succeed_json(&[&search[..], &["--image", text(&picture)]].concat());
        assert_eq!(found["hits"][0]["distance"], 0, "{field}");
        assert_eq!(found["code"], codes["class 1/1.png"], "{field}");
    }
}
