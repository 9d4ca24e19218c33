//! The real program: how it is run, what it is given and what it said.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

pub fn tanhash(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tanhash"))
        .args(args)
        .output()
        .unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn succeed(args: &[&str]) -> String {
    let output = tanhash(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn json_lines(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The JSON of a command, its exit code and its stderr.
pub fn run(args: &[&str]) -> (Value, i32, String) {
    let output = tanhash(&[args, &["--json"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let stdout = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (stdout, output.status.code().unwrap(), stderr)
}

/// The JSON of a command that succeeds.
pub fn succeed_json(args: &[&str]) -> Value {
    let (value, code, stderr) = run(args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
    assert!(!value.is_null(), "{args:?}: expected JSON");
    value
}

/// The JSON, if any, of a command that ends with exit code 1 and a line that says this.
pub fn fail(args: &[&str], expected: &str) -> Value {
    let (value, code, stderr) = run(args);
    assert_eq!(code, 1, "{args:?}: {stderr}");
    assert_says(args, stderr.lines().last().unwrap_or_default(), expected);
    value
}

/// Exit code 1, nothing on stdout, one line on stderr that names what is expected.
pub fn refuse(args: &[&str], expected: &str) {
    let output = tanhash(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert_says(args, &stderr, expected);
}

/// The program's name, then what is wrong, and that at once.
fn assert_says(args: &[&str], line: &str, expected: &str) {
    assert!(
        line.contains(expected),
        "{args:?}: expected {expected:?} in {line}"
    );
    let message = line.strip_prefix("tanhash: ").unwrap_or_default();
    assert!(
        message.starts_with(|first: char| !":. ".contains(first)),
        "{args:?}: {line}"
    );
    assert!(
        !line.contains("panicked") && !line.contains("internal error"),
        "{args:?}: {line}"
    );
}

/// Building an index of pictures without a model.
pub fn phash<'a>(inputs: &[&'a Path], index: &'a Path) -> Vec<&'a str> {
    let mut args = vec!["index", "--encoder", "phash", "--index", text(index)];
    args.push("--input");
    args.extend(inputs.iter().map(|input| text(input)));
    args
}

/// Documents, codes, refused pictures and parts that were no record.
pub fn counts(summary: &Value) -> [u64; 4] {
    ["documents", "codes", "failed", "damaged"].map(|name| summary[name].as_u64().unwrap())
}

pub fn quarantine(index: &Path) -> Vec<Value> {
    json_lines(&fs::read_to_string(index.join("quarantine.jsonl")).unwrap_or_default())
}

pub fn picture(seed: u32) -> RgbImage {
    RgbImage::from_fn(24, 20, |x, y| {
        let value = ((x / 5 + seed % 7) * (y / 4 + seed / 7) * 29 + seed * 13) as u8;
        Rgb([value, value.wrapping_mul(3), value ^ 90])
    })
}

pub fn png(seed: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture(seed)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// A WebDataset shard: a picture and a caption a key, of odd keys in a `.json` member, of even ones in a
/// `.txt` one.
pub fn shard(path: &Path, keys: std::ops::Range<u32>) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for key in keys {
        let caption = format!("number {key}");
        let caption = match key % 2 {
            0 => ("txt", caption),
            _ => ("json", json!({"caption": caption, "width": 24}).to_string()),
        };
        for (extension, bytes) in [("jpg", png(key)), (caption.0, caption.1.into_bytes())] {
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

/// A `.npy` matrix of floats with rows of `dim`, by other code than the library's.
pub fn npy(path: &Path, dim: usize, values: &[f32]) {
    let rows = values.len() / dim;
    let header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}
