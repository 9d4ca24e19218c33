//! Processes killed while they add, delete, commit and merge. Guards that what was acknowledged is there
//! afterwards, with its codes, and that the index is sound whatever the moment.
//!
//! The victim is this test binary again, told by an environment variable to write until it is killed; its
//! entry point does nothing in an ordinary run. `TANHASH_KILLS` sets the number of kills.

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::encoder::Lookup;
use common::{Doc, check_against_model, schema, seeded};
use rand::Rng;
use tanhash::plugin::{HashIndex, HashPlugin, WriterOptions};
use tanhash::segment::TablePolicy;
use tantivy::Term;

const VICTIM_DIR: &str = "TANHASH_CRASH_VICTIM_DIR";
const BITS: usize = 64;
const BATCH: u64 = 25;

fn plugin() -> HashPlugin {
    HashPlugin::builder()
        .tables(TablePolicy::Always)
        .build()
        .unwrap()
}

/// The document of a key; every seventh has no code.
fn doc(key: u64) -> Doc {
    let image = (!key.is_multiple_of(7)).then(|| Lookup::code(BITS, &key.to_le_bytes()));
    Doc {
        key,
        rank: key % 5,
        image,
        other: None,
    }
}

/// After round `r`, keys `0..(r + 1) * BATCH` were added, and each round deleted its own first key.
fn model(rounds: u64) -> BTreeMap<u64, Doc> {
    let keys = (0..rounds * BATCH).filter(|key| !key.is_multiple_of(BATCH));
    keys.map(|key| (key, doc(key))).collect()
}

/// Writes for ever; a line in `acknowledged` says that a commit has returned.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os(VICTIM_DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let (_, fields) = schema(BITS, None);
    let index = HashIndex::open_in_dir(dir.join("index"), plugin()).unwrap();
    let options = WriterOptions {
        num_threads: 1,
        memory_budget_bytes: 15_000_000,
        ..Default::default()
    };
    let writer = index.writer(options).unwrap();
    let mut acknowledged = OpenOptions::new()
        .append(true)
        .open(dir.join("acknowledged"))
        .unwrap();
    let committed = index.searcher().unwrap().num_docs();
    let mut round = committed / (BATCH - 1);
    println!("ready");
    loop {
        let documents =
            (round * BATCH..(round + 1) * BATCH).map(|key| doc(key).to_tantivy(&fields));
        writer.add_documents(documents.collect()).unwrap();
        writer
            .delete_term(Term::from_field_u64(fields.key, round * BATCH))
            .unwrap();
        writer.commit().unwrap();
        round += 1;
        writeln!(acknowledged, "{round}").unwrap();
        if round.is_multiple_of(9) {
            writer.merge_all().unwrap();
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let kills: u64 = std::env::var("TANHASH_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(30);
    let mut rng = seeded("nothing_acknowledged_is_lost", 21);
    let dir = tempfile::tempdir().unwrap();
    let (schema, fields) = schema(BITS, None);
    let path = dir.path().join("index");
    drop(HashIndex::create_in_dir(&path, schema, plugin()).unwrap());
    std::fs::write(dir.path().join("acknowledged"), "").unwrap();
    let mut unacknowledged = 0;
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let ready = stdout
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("ready"));
        assert!(
            ready,
            "kill {kill}: the victim could not open what the last one left"
        );
        std::thread::sleep(Duration::from_micros(rng.random_range(0..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();

        let acknowledged = std::fs::read_to_string(dir.path().join("acknowledged")).unwrap();
        let acknowledged: u64 = acknowledged
            .lines()
            .last()
            .map_or(0, |line| line.parse().unwrap());
        let index = HashIndex::open_in_dir(&path, plugin()).unwrap();
        let report = index.verify().unwrap();
        assert!(report.is_ok(), "kill {kill}: {:?}", report.problems);
        let rounds = report.documents / (BATCH - 1);
        assert!(
            (acknowledged..=acknowledged + 1).contains(&rounds),
            "kill {kill}: {acknowledged} commits acknowledged, {rounds} found"
        );
        unacknowledged += rounds - acknowledged;
        let query = Lookup::code(BITS, b"query");
        check_against_model(
            &index,
            &fields,
            &model(rounds),
            &query,
            &format!("kill {kill}"),
        );
        // The next victim starts from what is there, so that is what is acknowledged from now on.
        std::fs::write(dir.path().join("acknowledged"), format!("{rounds}\n")).unwrap();
    }
    println!("{kills} kills, {unacknowledged} commits landed unacknowledged");
}
