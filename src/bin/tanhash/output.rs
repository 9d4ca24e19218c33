//! What goes to stdout and what to stderr.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// One JSON document a line on stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// A line of text on stdout.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())?;
    Ok(())
}

/// A remark that is not the result, on stderr.
pub fn note(text: impl AsRef<str>) {
    eprintln!("tanhash: {}", text.as_ref());
}

/// A progress bar on stderr, invisible unless that is a terminal. `len` is 0 where it is not known.
pub fn progress(len: u64, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match len {
        0 => (
            ProgressBar::no_length(),
            "{msg} {human_pos} ({per_sec}, after {elapsed})",
        ),
        len => (
            ProgressBar::new(len),
            "{msg} [{bar:30}] {human_pos}/{human_len} ({per_sec}, {eta} left)",
        ),
    };
    bar.set_style(
        ProgressStyle::with_template(template)
            .expect("a fixed template")
            .progress_chars("=> "),
    );
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The error and its causes in one line, each cause once.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        if text.is_empty() {
            text = cause;
        } else if text.contains(&cause) {
            continue;
        } else if format!(" {cause}").contains(&format!(" {text}:")) {
            // What only names the file of a cause that names it too, as `FILE: ..` or `corrupt FILE: ..`.
            text = cause;
        } else {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// True if stdout was closed by its reader, as `| head` does.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(causes: &[&'static str]) -> String {
        let mut causes = causes.iter().rev();
        let last = anyhow::Error::msg(*causes.next().unwrap());
        one_line(&causes.fold(last, |error, cause| error.context(*cause)))
    }

    #[test]
    fn an_error_is_one_line_that_says_everything_once() {
        assert_eq!(line(&["bits is 17"]), "bits is 17");
        assert_eq!(line(&["two\nlines"]), "two lines");
        assert_eq!(line(&["a.npy", "is empty"]), "a.npy: is empty");
        assert_eq!(
            line(&["reading a.npy: no such file", "no such file"]),
            "reading a.npy: no such file"
        );
        assert_eq!(line(&["a.npy", "a.npy: is empty"]), "a.npy: is empty");
        assert_eq!(
            line(&["a.npy", "corrupt a.npy: is empty"]),
            "corrupt a.npy: is empty"
        );
        assert_eq!(
            line(&["row 3", "a.npy", "is empty"]),
            "row 3: a.npy: is empty"
        );
    }
}
