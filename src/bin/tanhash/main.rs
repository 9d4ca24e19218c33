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

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    // A panic is a defect of ours or of a library below; the user still gets one line and exit code 1.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        tracing::debug!("{panic}");
        if std::thread::current().name() == Some("main") {
            eprintln!("tanhash: internal error{place}; please report it");
        }
    }));
    let outcome = std::panic::catch_unwind(|| cmd::run(arguments));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("tanhash: {}", output::one_line(&error));
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}
