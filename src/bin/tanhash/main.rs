//! The `tanhash` program: train, evaluate, encode, index, search, measure, check.
//!
//! Exit code 0 on success, 1 with a one-line reason on stderr, 2 for wrong usage. With `--json`, stdout
//! holds JSON and nothing else.

mod catalog;
mod cli;
mod cmd;
#[cfg(feature = "torch")]
mod learning;
mod output;
#[cfg(feature = "torch")]
mod page;
mod records;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    // A panic is a defect of ours or of a library below. The library contains those it expects; for any
    // other the user gets one line and exit code 1.
    let place: Arc<Mutex<String>> = Arc::default();
    let hook = place.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let at = panic
            .location()
            .map(|at| format!(" at {}:{}", at.file(), at.line()))
            .unwrap_or_default();
        *hook.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }));
    match std::panic::catch_unwind(|| cmd::run(arguments)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("tanhash: {}", output::one_line(&error));
            ExitCode::FAILURE
        }
        Err(_) => {
            let place = place.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("tanhash: internal error{place}; please report it");
            ExitCode::FAILURE
        }
    }
}
