//! Seeded mutations of small segment files, checksums made right again, so that the damage reaches the code
//! behind them. Guards that no bytes make the reader panic, read outside the file or go on for ever,
//! whoever asks: open, every engine under every filter, code lookup, merge, verify. `TANHASH_SEED` repeats a
//! run, `TANHASH_FUZZ_CASES` lengthens it.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::damage::{
    CENTROIDS, CLUSTERS, CODE_PLANES, CODES, DOC_IDS, FieldShape, META, MIH_IDS, Outcome, Part,
    Parts, RANK_ROWS, ROW_RANKS, SHELLS, exercise, planes_file, reseal_table, segment_file,
};
use common::seeded;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::segment::{Integrity, TablePolicy};

/// Cases of each test without `TANHASH_FUZZ_CASES`.
const CASES: u64 = 8000;

/// What no case takes, on any machine, unless it goes on for ever.
const CASE_MAX: Duration = Duration::from_secs(20);

fn n_cases() -> u64 {
    let cases = std::env::var("TANHASH_FUZZ_CASES");
    cases
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(CASES)
}

/// Sound files of all shapes.
fn bases(rng: &mut ChaCha8Rng) -> Vec<Parts> {
    use TablePolicy::{Always, Clusters, Mih, MihCopies, Never};
    let shapes: &[(u32, &[FieldShape])] = &[
        (1, &[(0, 16, 1.0, Always)]),
        (9, &[(0, 24, 1.0, Clusters)]),
        (40, &[(0, 64, 1.0, Always)]),
        (60, &[(3, 24, 0.6, Always)]),
        (70, &[(1, 72, 1.0, Clusters), (2, 16, 0.5, Mih)]),
        (33, &[(0, 136, 0.8, Clusters)]),
        (50, &[(0, 128, 1.0, Never)]),
        (300, &[(0, 40, 0.9, Clusters)]),
        (80, &[(0, 40, 0.9, MihCopies)]),
    ];
    let mut bases: Vec<Parts> = shapes
        .iter()
        .map(|(max_doc, fields)| Parts::of(&segment_file(rng, *max_doc, fields)))
        .collect();
    // Last: a chunk in planes. Its cases take longer, so they are few.
    let mut planes = Parts::of(&planes_file(rng, 2060, 72));
    planes.part(CODE_PLANES);
    bases.push(planes);
    for base in &bases {
        let outcome = exercise(&base.to_bytes(), base.max_doc, Integrity::FirstUse, rng);
        assert!(outcome.verified && outcome.errors == 0, "{outcome:?}");
    }
    bases
}

/// Runs the cases of one test, each from a seed of its own that a failure names.
fn run(name: &str, seed: u64, mut mutate: impl FnMut(&mut ChaCha8Rng, &Parts) -> Vec<u8>) {
    let mut rng = seeded(name, seed);
    let bases = bases(&mut rng);
    let mut sums = Outcome::default();
    let (mut n_opened, mut n_verified, mut longest) = (0, 0, Duration::ZERO);
    for case in 0..n_cases() {
        let case_seed: u64 = rng.random();
        let mut rng = ChaCha8Rng::seed_from_u64(case_seed);
        let last = bases.len() - 1;
        let base = match case % 200 {
            199 => &bases[last],
            _ => &bases[rng.random_range(0..last)],
        };
        let bytes = mutate(&mut rng, base);
        let integrity = match rng.random_bool(0.5) {
            true => Integrity::FirstUse,
            false => Integrity::Structure,
        };
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            exercise(&bytes, base.max_doc, integrity, &mut rng)
        }));
        let what = format!(
            "{name}: case {case}, seed {case_seed}, {} documents",
            base.max_doc
        );
        let outcome = outcome.unwrap_or_else(|_| panic!("{what}: see above"));
        longest = longest.max(start.elapsed());
        assert!(start.elapsed() < CASE_MAX, "{what}: {:?}", start.elapsed());
        n_opened += u64::from(outcome.opened);
        n_verified += u64::from(outcome.verified);
        sums.answers += outcome.answers;
        sums.errors += outcome.errors;
    }
    println!(
        "{name}: {} cases, {n_opened} opened, {n_verified} verified, {} answers, {} errors, longest {longest:?}",
        n_cases(),
        sums.answers,
        sums.errors
    );
}

/// A number that is likely to be the wrong one.
fn number(rng: &mut ChaCha8Rng, near: u64) -> u64 {
    match rng.random_range(0..9) {
        0 => 0,
        1 => 1,
        2 => near.wrapping_add(1),
        3 => near.wrapping_sub(1),
        4 => near.wrapping_mul(2),
        5 => u64::from(u32::MAX),
        6 => 0xffff,
        7 => rng.random_range(0..100),
        _ => 1 << rng.random_range(0..64),
    }
}

/// Changes some of the bytes, whole words as often as bits.
fn mutate_bytes(rng: &mut ChaCha8Rng, bytes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..[1, 1, 1, 2, 4, 16][rng.random_range(0..6)] {
        let at = rng.random_range(0..bytes.len());
        let word_at = at / 4 * 4;
        let n_words = bytes.len() / 4;
        match rng.random_range(0..6) {
            0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = rng.random(),
            3 if word_at + 4 <= bytes.len() => {
                let word = &mut bytes[word_at..word_at + 4];
                let was = u32::from_le_bytes((&*word).try_into().unwrap());
                word.copy_from_slice(&(number(rng, u64::from(was)) as u32).to_le_bytes());
            }
            4 if word_at + 4 <= bytes.len() => {
                let from = 4 * rng.random_range(0..n_words);
                bytes.copy_within(from..from + 4, word_at);
            }
            _ => {
                let end = (at + rng.random_range(1..40)).min(bytes.len());
                bytes[at..end].fill([0, 0xff][rng.random_range(0..2)]);
            }
        }
    }
}

#[test]
fn damaged_sections_end_in_errors_or_answers() {
    run("damaged_sections", 21, |rng, base| {
        let mut parts = base.clone();
        let from = usize::from(rng.random_bool(0.9));
        let chosen = rng.random_range(from..parts.sections.len());
        mutate_bytes(rng, &mut parts.sections[chosen].bytes);
        parts.to_bytes()
    });
}

/// The meta section says something else, and the lengths of the others may follow.
#[test]
fn damaged_meta_ends_in_errors_or_answers() {
    run("damaged_meta", 22, |rng, base| {
        let mut parts = base.clone();
        let mut text = String::from_utf8(parts.part(META).bytes.clone()).unwrap();
        let key =
            ["n_codes", "n_clusters", "n_shells", "bits", "code_len_bits"][rng.random_range(0..5)];
        let place = text.find(&format!("\"{key}\":"));
        match (rng.random_range(0..6), place) {
            (0, _) => {
                let mut bytes = text.clone().into_bytes();
                mutate_bytes(rng, &mut bytes);
                parts.part(META).bytes = bytes;
                return parts.to_bytes();
            }
            (1, _) => {
                // Any number, one of a substring more often than not.
                let digits: Vec<usize> = text
                    .match_indices(|c: char| c.is_ascii_digit())
                    .map(|(at, _)| at)
                    .collect();
                let at = digits[rng.random_range(0..digits.len())];
                let digit = rng.random_range(0..10).to_string();
                text.replace_range(at..at + 1, &digit);
            }
            (2, _) => {
                if let Some(at) = text.find(",\"clusters\"") {
                    text.truncate(at);
                    text.push('}');
                }
            }
            (_, Some(at)) => {
                let start = at + key.len() + 3;
                let end = start + text[start..].find([',', '}']).unwrap();
                let was: u64 = text[start..end].parse().unwrap();
                let now = number(rng, was);
                text.replace_range(start..end, &now.to_string());
                // The sections as long as the new number asks for, so that it is believed.
                if rng.random_bool(0.7) && now < 2000 {
                    resize(&mut parts, key, now as usize);
                }
            }
            _ => {}
        }
        parts.part(META).bytes = text.into_bytes();
        parts.to_bytes()
    });
}

/// Makes the sections of the first field as long as a number of its meta section now says, and right what a
/// search looks at first: the last start, and the row past the last shell.
fn resize(parts: &mut Parts, key: &str, now: usize) {
    let (json, field_id) = (parts.part(META).json(), parts.part(META).field_id);
    let number = |of: &str, stored: &serde_json::Value| match key == of {
        true => now,
        false => stored.as_u64().unwrap_or(0) as usize,
    };
    let n_codes = number("n_codes", &json["n_codes"]);
    let n_shells = number("n_shells", &json["clusters"]["n_shells"]);
    let words = number("", &json["bits"]).div_ceil(64);
    let width = (usize::BITS - now.saturating_sub(1).leading_zeros()) as usize;
    let sections = parts.sections.iter_mut();
    for part in sections.filter(|part| part.field_id == field_id) {
        let len = match (key, part.kind) {
            ("n_codes", CODES | CODE_PLANES) | ("n_clusters", CENTROIDS) => {
                now.div_ceil(8) * 64 * words
            }
            ("n_codes", DOC_IDS | MIH_IDS) | ("n_shells", SHELLS) => now * 4,
            ("n_codes", ROW_RANKS | RANK_ROWS) => (now * width).div_ceil(8) + 8,
            ("n_clusters", CLUSTERS) => (2 * now + 1) * 4,
            _ => part.bytes.len(),
        };
        part.bytes.resize(len, 0);
        let last = match part.kind {
            CLUSTERS => n_shells,
            SHELLS => n_codes,
            _ => continue,
        };
        if let Some(idx) = (len / 4).checked_sub(1) {
            part.set_word(idx, last as u32);
        }
    }
}

#[test]
fn damaged_tables_end_in_errors_or_answers() {
    run("damaged_tables", 23, |rng, base| {
        let mut parts = base.clone();
        let chosen = rng.random_range(0..parts.sections.len());
        let other = rng.random_range(0..parts.sections.len());
        match rng.random_range(0..8) {
            0 => {
                parts.sections.remove(chosen);
            }
            1 => {
                let copy = parts.sections[chosen].clone();
                parts.sections.insert(other, copy);
            }
            2 => parts.sections.swap(chosen, other),
            3 => {
                let bytes = parts.sections[other].bytes.clone();
                parts.sections[chosen].bytes = bytes;
            }
            4 => {
                let section: &mut Part = &mut parts.sections[chosen];
                let len = section.bytes.len();
                let len =
                    [0, len / 2, len.saturating_sub(1), len + 1, len + 64][rng.random_range(0..5)];
                section.bytes.resize(len, 0);
            }
            5 => {
                let section = &mut parts.sections[chosen];
                match rng.random_range(0..4) {
                    0 => section.kind = rng.random_range(0..16),
                    1 => section.param = number(rng, u64::from(section.param)) as u32,
                    2 => section.field_id = number(rng, u64::from(section.field_id)) as u32,
                    _ => section.flags = rng.random_range(0..4),
                }
            }
            6 => parts.n_fields = number(rng, u64::from(parts.n_fields)) as u32,
            _ => {
                // Raw bytes of the table and the trailer.
                let mut bytes = parts.to_bytes();
                let table_at = bytes.len() - 40 - 40 * parts.sections.len();
                let end = bytes.len() - 12;
                if rng.random_bool(0.5) {
                    let at = table_at + 40 * chosen + [16, 24][rng.random_range(0..2)];
                    let was = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                    bytes[at..at + 8].copy_from_slice(&number(rng, was).to_le_bytes());
                } else {
                    mutate_bytes(rng, &mut bytes[table_at..end]);
                }
                reseal_table(&mut bytes, table_at);
                return bytes;
            }
        }
        parts.to_bytes()
    });
}

/// Without right checksums: `FirstUse` refuses, `Structure` reads on.
#[test]
fn damage_anywhere_ends_in_errors_or_answers() {
    run("damage_anywhere", 24, |rng, base| {
        let mut bytes = base.to_bytes();
        mutate_bytes(rng, &mut bytes);
        if rng.random_bool(0.2) {
            bytes.truncate(rng.random_range(0..bytes.len()));
        }
        bytes
    });
}
