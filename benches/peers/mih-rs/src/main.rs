//! The crate mih-rs as a process: builds an index of 64-bit codes, then answers the requests of `worker.py`,
//! one a line: `time knn 10 500`, `answer radius 8 100`. Replies are JSON, one line each.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::Instant;

use mih_rs::Index;

type Failure = Box<dyn std::error::Error>;

fn read(path: &str) -> Result<Vec<u64>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let words = bytes.as_chunks::<8>().0;
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

fn memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn reply(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Times `search` on every query, after one pass that is not timed.
fn time(queries: &[u64], mut search: impl FnMut(u64) -> usize) -> String {
    for &query in queries {
        black_box(search(query));
    }
    let mut times: Vec<f64> = queries
        .iter()
        .map(|&query| {
            let started = Instant::now();
            black_box(search(query));
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    format!(
        r#"{{"ms_mean":{mean},"ms_p50":{},"ms_p99":{}}}"#,
        at(0.5),
        at(0.99)
    )
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [codes, queries] = &args[..] else {
        return Err("expected CODES QUERIES, two files of 64-bit codes".into());
    };
    let (codes, queries) = (read(codes)?, read(queries)?);
    let before = memory_mib();
    let started = Instant::now();
    let index = Index::new(codes)?;
    let (build_s, blocks) = (started.elapsed().as_secs_f64(), index.num_blocks());
    // The codes themselves were there before, and are part of the index.
    let mib = memory_mib() - before + index.codes().len() as f64 * 8.0 / f64::from(1 << 20);
    reply(&format!(
        r#"{{"build_s":{build_s},"mib":{mib},"blocks":{blocks}}}"#
    ))?;

    let (mut range, mut topk) = (index.range_searcher(), index.topk_searcher());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [what, op, argument, n, ..] = words[..] else {
            return Err(format!("expected WHAT OP ARGUMENT QUERIES, got {line:?}").into());
        };
        let (argument, n): (usize, usize) = (argument.parse()?, n.parse()?);
        let queries = &queries[..n.min(queries.len())];
        let text = match (what, op) {
            ("time", "knn") => time(queries, |query| topk.run(query, argument).len()),
            ("time", "radius") => time(queries, |query| range.run(query, argument).len()),
            ("answer", "knn") => {
                let distances = queries.iter().map(|&query| {
                    let hits = topk.run(query, argument).iter();
                    let mut distances: Vec<u32> = hits
                        .map(|&id| (index.codes()[id as usize] ^ query).count_ones())
                        .collect();
                    distances.sort_unstable();
                    distances
                });
                format!(
                    r#"{{"distances":{:?}}}"#,
                    distances.collect::<Vec<Vec<u32>>>()
                )
            }
            ("answer", "radius") => {
                let counts = queries
                    .iter()
                    .map(|&query| range.run(query, argument).len());
                format!(r#"{{"counts":{:?}}}"#, counts.collect::<Vec<usize>>())
            }
            _ => return Err(format!("no such request: {line:?}").into()),
        };
        reply(&text)?;
    }
    Ok(())
}
