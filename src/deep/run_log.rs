//! The log of a run: one JSON line a step, and its curves beside it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::deep::curves;
use crate::deep::method::LossTerms;
use crate::deep::train::TrainOptions;
use crate::error::{Error, Result};
use crate::files::write_whole;

/// One logged step. Times and rates are of this process, from its first step on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainProgress {
    /// `classifier` in SHC's stage 1, else `hashing`.
    pub stage: String,
    /// The epoch of the stage under way, counted from 0.
    pub epoch: usize,
    /// Epochs of the stage.
    pub epochs: usize,
    /// Steps taken in all stages, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The sum that is minimized, of this batch.
    pub loss: f64,
    /// Its terms by name, weighted; in JSON they stand beside the other fields.
    #[serde(flatten)]
    pub terms: BTreeMap<String, f64>,
    /// The share of the batch that the method itself tells right, where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The validation figure, at the end of an epoch that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// The head's learning rate.
    pub lr: f64,
    /// Pictures a second since the last logged step.
    pub pictures_per_s: f64,
    /// Seconds since this process began to train.
    pub seconds: f64,
    /// Seconds that the rest of the run will take at the stage's pace.
    pub seconds_left: f64,
}

impl TrainProgress {
    /// The values of a loss's terms.
    pub(crate) fn values(terms: &LossTerms) -> Result<BTreeMap<String, f64>> {
        let terms = terms.terms().iter();
        terms
            .map(|(name, value)| Ok(((*name).to_owned(), f64::try_from(value)?)))
            .collect()
    }
}

/// The JSON lines of a run.
pub(crate) struct Log {
    path: Option<PathBuf>,
    /// Keep the lines of the run to resume.
    resume: bool,
    file: Option<BufWriter<File>>,
}

impl Log {
    /// A log that begins with its first stage.
    pub fn open(options: &TrainOptions) -> Result<Log> {
        Ok(Log {
            path: options.log.clone(),
            resume: options.resume,
            file: None,
        })
    }

    /// A stage goes on after `first_step` steps of the run: the lines of steps to come are dropped, and
    /// all lines if it starts anew.
    pub fn start(&mut self, first_step: usize) -> Result<()> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        self.flush()?;
        let keeps = self.file.is_some() || (self.resume && first_step > 0);
        self.file = None;
        let old = match keeps {
            true => fs::read_to_string(&path).unwrap_or_default(),
            false => String::new(),
        };
        let kept: String = old
            .lines()
            .filter(|line| {
                serde_json::from_str::<TrainProgress>(line)
                    .is_ok_and(|entry| entry.step <= first_step)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        write_whole(&path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        self.file = Some(BufWriter::new(file));
        Ok(())
    }

    /// Adds a line.
    pub fn write(&mut self, entry: &TrainProgress) -> Result<()> {
        let (Some(path), Some(file)) = (&self.path, &mut self.file) else {
            return Ok(());
        };
        serde_json::to_writer(&mut *file, entry)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|error| Error::io(path, error))
    }

    /// Writes out the lines, and draws the curves in a file of the log's name that ends in `.svg`.
    pub fn flush(&mut self) -> Result<()> {
        let (Some(path), Some(file)) = (&self.path, &mut self.file) else {
            return Ok(());
        };
        file.flush().map_err(|error| Error::io(path, error))?;
        let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let entries: Vec<TrainProgress> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        write_whole(
            &path.with_extension("svg"),
            curves::svg(&entries).as_bytes(),
        )
    }
}
