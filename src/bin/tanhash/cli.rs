//! The command line.

use clap::{Parser, Subcommand};

use crate::cmd;

/// Exact Hamming search, deep hashing and hybrid text and image search on tantivy
#[derive(Parser)]
#[command(
    name = "tanhash",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// Print results as JSON, one document or one line each, and nothing else, on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// The seed of everything random
    #[arg(long, global = true, default_value_t = 42)]
    pub seed: u64,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    Train(Box<cmd::train::Args>),
    Adapt(cmd::adapt::Args),
    Centers(cmd::centers::Args),
    Eval(cmd::eval::Args),
    Fit(cmd::fit::Args),
    Features(cmd::features::Args),
    Encode(cmd::encode::Args),
    Index(cmd::index::Args),
    Merge(cmd::merge::Args),
    Rehash(cmd::rehash::Args),
    Search(cmd::search::Args),
    Dedup(cmd::dedup::Args),
    Bench(cmd::bench::Args),
    Verify(cmd::verify::Args),
    Inspect(cmd::inspect::Args),
    Demo(cmd::demo::Args),
}
