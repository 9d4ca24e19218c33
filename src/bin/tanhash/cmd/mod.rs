//! One file a command; each turns its typed arguments into calls of the library.

pub mod adapt;
pub mod bench;
pub mod centers;
pub mod dedup;
pub mod demo;
pub mod encode;
pub mod eval;
pub mod features;
pub mod fit;
pub mod index;
pub mod inspect;
pub mod merge;
pub mod rehash;
pub mod search;
pub mod train;
pub mod verify;

use anyhow::Result;

use crate::cli::{Arguments, Command};

/// What holds for every command.
#[derive(Clone, Copy)]
pub struct Common {
    /// JSON on stdout.
    pub json: bool,
    /// The seed of everything random.
    pub seed: u64,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let common = Common {
        json: arguments.json,
        seed: arguments.seed,
    };
    match arguments.command {
        Command::Train(args) => train::run(*args, common),
        Command::Adapt(args) => adapt::run(args, common),
        Command::Centers(args) => centers::run(args, common),
        Command::Eval(args) => eval::run(args, common),
        Command::Fit(args) => fit::run(args, common),
        Command::Features(args) => features::run(args, common),
        Command::Encode(args) => encode::run(args, common),
        Command::Index(args) => index::run(args, common),
        Command::Merge(args) => merge::run(args, common),
        Command::Rehash(args) => rehash::run(args, common),
        Command::Search(args) => search::run(args, common),
        Command::Bench(args) => bench::run(args),
        Command::Dedup(args) => dedup::run(args, common),
        Command::Verify(args) => verify::run(args, common),
        Command::Inspect(args) => inspect::run(args, common),
        Command::Demo(args) => demo::run(args, common),
    }
}
