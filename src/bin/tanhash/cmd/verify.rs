//! `tanhash verify`: every checksum, every table, every count.

use std::path::PathBuf;

use anyhow::{Result, bail};
use tanhash::ErrorKind;
use tanhash::plugin::{
    CHECKSUMS_FILE, HashIndex, HashPlugin, VerifyReport, verify_checksums, write_checksums,
};

use crate::cmd::Common;
use crate::output;

/// Check every file of an index
#[derive(clap::Args)]
pub struct Args {
    /// The index
    #[arg(long)]
    index: PathBuf,
    /// Write SHA256SUMS anew if the index is sound, after an application has changed it
    #[arg(long)]
    seal: bool,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    // An index too damaged to open is a finding too, and harnesses read findings from the report.
    let mut report = match HashIndex::open_in_dir(&args.index, HashPlugin::new()) {
        Ok(index) => index.verify()?,
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt { .. }) => {
            let mut report = VerifyReport::default();
            report.problems.push(error.to_string());
            report
        }
        Err(error) => return Err(error.into()),
    };
    if args.seal && report.is_ok() {
        write_checksums(&args.index)?;
    }
    let listed = verify_checksums(&args.index)?;
    let has_list = listed.is_some();
    report.problems.extend(listed.unwrap_or_default());
    if common.json {
        output::json(&report)?;
    } else {
        output::line(format!(
            "{} files, {} segments, {} live documents",
            report.files, report.segments, report.documents
        ))?;
        for (field, codes) in &report.codes {
            output::line(format!("field {field}: {codes} codes"))?;
        }
        for problem in &report.problems {
            output::line(problem)?;
        }
    }
    match report.problems.as_slice() {
        [] => {
            if !common.json && has_list {
                output::line(format!("every file as {CHECKSUMS_FILE} says"))?;
            }
            if !common.json {
                output::line("sound")?;
            }
            Ok(())
        }
        [first, ..] => bail!(
            "{} files or sections are damaged, the first: {first}",
            report.problems.len()
        ),
    }
}
