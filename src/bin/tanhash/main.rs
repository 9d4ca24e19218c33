//! The `tanhash` program: train, evaluate, encode, index, search, measure, check.
//!
//! Exit code 0 on success, 1 with a one-line reason on stderr, 2 for wrong usage. With `--json`, stdout
//! holds JSON and nothing else.

mod arrays;
mod catalog;
mod cli;
mod cmd;
mod files;
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

/// What a command needs in its environment, because it is read before `main`; a value that the user has set
/// stays. libtorch's threads spin while they wait for each other unless told not to, which stalls a busy
/// machine.
///
/// glibc's allocator is told what to do with large blocks. A network takes the same ones again for every
/// batch, and would spend up to half of its time on pages that it has just given back, so they are kept; in
/// one arena, because threads with arenas of their own would keep as much each. Without a network arenas
/// are faster, and pictures that are decoded must not be kept by each thread: blocks of their size are asked
/// of the system.
#[cfg(unix)]
fn environment(command: &cli::Command) -> &'static [(&'static str, &'static str)] {
    use cli::Command;
    match command {
        Command::Index(arguments) if !arguments.may_run_a_model() => {
            &[("MALLOC_MMAP_THRESHOLD_", "1048576")]
        }
        Command::Train(_)
        | Command::Demo(_)
        | Command::Adapt(_)
        | Command::Eval(_)
        | Command::Features(_)
        | Command::Encode(_)
        | Command::Index(_)
        | Command::Rehash(_)
        | Command::Search(_) => &[
            ("OMP_WAIT_POLICY", "passive"),
            ("MALLOC_ARENA_MAX", "1"),
            ("MALLOC_MMAP_MAX_", "0"),
            ("MALLOC_TRIM_THRESHOLD_", "8000000000"),
        ],
        _ => &[],
    }
}

/// Starts the program once more with its [`environment`], if this command needs one.
#[cfg(unix)]
fn with_environment(command: &cli::Command) {
    use std::os::unix::process::CommandExt;

    let missing: Vec<_> = environment(command)
        .iter()
        .filter(|(name, _)| std::env::var_os(name).is_none())
        .copied()
        .collect();
    if missing.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // Returns only if it failed, and then this process does the work as it is.
        let _ = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .envs(missing)
            .exec();
    }
}

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    #[cfg(unix)]
    with_environment(&arguments.command);
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn one_arena(line: &str) -> bool {
        let arguments = cli::Arguments::try_parse_from(line.split(' ')).unwrap();
        let names = environment(&arguments.command).iter();
        names.clone().any(|(name, _)| *name == "MALLOC_ARENA_MAX")
    }

    #[test]
    fn blocks_are_kept_in_one_arena_where_a_network_may_run() {
        for line in [
            "tanhash index --index i --input pictures --model m",
            "tanhash index --index i --input pictures --append",
            "tanhash index --index i --vectors v.npy --model m",
            "tanhash eval --data fashion-mnist --model m",
        ] {
            assert!(one_arena(line), "{line}");
        }
        for line in [
            "tanhash index --index i --codes c.bin --bits 64",
            "tanhash index --index i --input pictures --encoder phash",
            "tanhash index --index i --vectors v.npy --encoder-file e",
            "tanhash verify --index i",
        ] {
            assert!(!one_arena(line), "{line}");
        }
    }
}
