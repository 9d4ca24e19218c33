//! `tanhash verify`: every checksum, every table, every count.

use std::path::PathBuf;

use anyhow::{Result, bail};
use tanhash::ErrorKind;
use tanhash::plugin::{HashIndex, HashPlugin, VerifyReport};

use crate::cmd::Common;
use crate::output;

/// Check every file of an index
#[derive(clap::Args)]
pub struct Args {
    /// The index
    #[arg(long)]
    index: PathBuf,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    // An index too damaged to open is a finding too, and harnesses read findings from the report.
    let report = match HashIndex::open_in_dir(&args.index, HashPlugin::new()) {
        Ok(index) => index.verify()?,
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt { .. }) => {
            let mut report = VerifyReport::default();
            report.problems.push(error.to_string());
            report
        }
        Err(error) => return Err(error.into()),
    };
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
            if !common.json {
                output::line("sound")?;
            }
            Ok(())
        }
        [first, ..] => bail!("{} files or sections are damaged, the first: {first}", report.problems.len()),
    }
}
