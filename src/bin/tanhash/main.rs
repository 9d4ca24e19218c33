//! The `tanhash` program: train, evaluate, encode, index, search, measure, check.
//!
//! Exit code 0 on success, 1 with a one-line reason on stderr, 2 for wrong usage. With `--json`, stdout
//! holds JSON and nothing else.

mod arrays;
mod catalog;
mod cli;
mod cmd;
#[cfg(feature = "torch")]
mod learning;
mod output;
mod page;
mod plot;
mod records;
mod report;
mod schema;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;

/// libtorch's threads spin while they wait for each other unless `OMP_WAIT_POLICY` says otherwise, and it is
/// read before `main`. So commands that compute with libtorch start once more with the policy that does not
/// stall on a busy machine; a policy that the user has set stays.
#[cfg(all(feature = "torch", unix))]
fn let_threads_sleep(command: &cli::Command) {
    use std::os::unix::process::CommandExt;

    const POLICY: &str = "OMP_WAIT_POLICY";
    let computes = matches!(
        command,
        cli::Command::Train(_)
            | cli::Command::Adapt(_)
            | cli::Command::Eval(_)
            | cli::Command::Features(_)
            | cli::Command::Encode(_)
            | cli::Command::Demo(_)
            | cli::Command::Index(_)
            | cli::Command::Rehash(_)
            | cli::Command::Search(_)
    );
    if !computes || std::env::var_os(POLICY).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // Returns only if it failed, and then this process does the work as it is.
        let _ = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(POLICY, "passive")
            .exec();
    }
}

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    #[cfg(all(feature = "torch", unix))]
    let_threads_sleep(&arguments.command);
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
