//! Which epoch's weights become the model: by pictures held back from the train split, or, where a
//! paper's protocol says so, by the test queries.
//!
//! Held-back pictures are drawn by the seed, the same share of every class, and at least two, so that none is
//! a query without an answer. Half of them are queries to the other half. Selecting on the test queries flatters
//! a result; a model says so in its record.

use std::rc::Rc;
use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::code::{CodeLen, Codes, binarize};
use crate::data::{Dataset, ExampleSet};
use crate::deep::augment::{Augment, Batches};
use crate::deep::checkpoint::InputSpec;
use crate::deep::device::{self, Stream};
use crate::deep::method::StepInfo;
use crate::deep::network::DeepHashNet;
use crate::deep::run_state::Best;
use crate::deep::train::{Fit, Run, TrainOptions};
use crate::error::{Error, Result};
use crate::eval::{Cutoff, Protocol, evaluate};

/// What is compared from epoch to epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectBy {
    /// mAP@all of codes, higher is better.
    #[default]
    Map,
    /// The method's own loss, lower is better.
    Loss,
}

impl std::str::FromStr for SelectBy {
    type Err = Error;

    fn from_str(text: &str) -> Result<SelectBy> {
        match text {
            "map" => Ok(SelectBy::Map),
            "loss" => Ok(SelectBy::Loss),
            _ => Err(Error::invalid(format!(
                "a model is selected by map or loss, got {text:?}"
            ))),
        }
    }
}

/// Which epoch's weights become the model. The default takes the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// The share of the train split that is held back, from 0, which holds back nothing, to 0.5.
    pub validation_share: f64,
    /// What is compared.
    pub by: SelectBy,
    /// Epochs between two validations, at least 1; the last epoch has one in any case.
    pub every_epochs: usize,
    /// Stop after so many epochs without a better value.
    pub patience_epochs: Option<usize>,
    /// Select by mAP@all of the test queries, as published results of these papers do.
    pub paper_protocol: bool,
}

impl Default for Selection {
    fn default() -> Selection {
        Selection {
            validation_share: 0.0,
            by: SelectBy::Map,
            every_epochs: 1,
            patience_epochs: None,
            paper_protocol: false,
        }
    }
}

impl Selection {
    /// True if epochs are compared at all.
    pub fn is_on(&self) -> bool {
        self.paper_protocol || self.validation_share > 0.0
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |text: &str| Err(Error::invalid(text));
        if !(0.0..=0.5).contains(&self.validation_share) {
            return refuse(&format!(
                "a validation share is from 0 to 0.5, got {}",
                self.validation_share
            ));
        }
        if self.every_epochs == 0 || self.patience_epochs == Some(0) {
            return refuse("epochs between validations and patience start at 1");
        }
        if self.paper_protocol && self.validation_share > 0.0 {
            return refuse(
                "the paper protocol selects on the test queries; leave out the validation share",
            );
        }
        if self.paper_protocol && self.by == SelectBy::Loss {
            return refuse("the paper protocol selects by map");
        }
        if self.patience_epochs.is_some() && !self.is_on() {
            return refuse("to stop early takes a validation share above 0, or the paper protocol");
        }
        Ok(())
    }

    /// True if a run that has done `epochs_done` epochs has waited long enough.
    pub(crate) fn is_over(&self, epochs_done: usize, best: Option<&Best>) -> bool {
        match (self.patience_epochs, best) {
            (Some(patience), Some(best)) => epochs_done >= best.record.epochs_done + patience,
            _ => false,
        }
    }
}

/// Pictures of a class below which none of it is held back: two to find each other, two to learn from.
const CLASS_MIN: usize = 4;

/// The rows of the train split to learn from, and those held back. Where no classes are read, any picture may be
/// held back, as if there were one class.
pub(crate) fn split(
    labels: &[i64],
    n_classes: usize,
    options: &TrainOptions,
) -> Result<(Vec<i64>, Vec<i64>)> {
    let share = options.selection.validation_share;
    if share == 0.0 {
        return Ok(((0..labels.len() as i64).collect(), Vec::new()));
    }
    let reads_classes = options.method.reads_classes();
    let mut classes = vec![Vec::new(); if reads_classes { n_classes } else { 1 }];
    for (row, &label) in labels.iter().enumerate() {
        classes[if reads_classes { label as usize } else { 0 }].push(row as i64);
    }
    let mut rng = device::rng(options.seed, Stream::Validation);
    let (mut rows, mut held_back) = (Vec::new(), Vec::new());
    for mut own in classes {
        own.shuffle(&mut rng);
        if own.len() >= CLASS_MIN {
            let n_held = (own.len() as f64 * share).round() as usize;
            held_back.extend(own.drain(..n_held.clamp(2, own.len() / 2)));
        }
        rows.extend(own);
    }
    if held_back.is_empty() {
        return Err(Error::invalid(format!(
            "no class has the {CLASS_MIN} train pictures that it takes to hold two of them back; add pictures, or train without a validation share"
        )));
    }
    rows.sort_unstable();
    Ok((rows, held_back))
}

/// What is compared, and which way.
pub(crate) struct Metric {
    pub name: String,
    by: SelectBy,
}

impl Metric {
    pub fn is_better(&self, value: f64, best: f64) -> bool {
        match self.by {
            SelectBy::Map => value > best,
            SelectBy::Loss => value < best,
        }
    }
}

/// Pictures that are measured, with their rows.
struct Pictures {
    batches: Rc<Batches>,
    rows: Vec<i64>,
    /// The same pictures with their labels.
    set: ExampleSet,
}

impl Pictures {
    /// The pictures `rows` of `set`, which `batches` are of.
    fn new(set: &ExampleSet, rows: Vec<i64>, batches: Rc<Batches>) -> Pictures {
        Pictures {
            set: set.subset(&rows.iter().map(|&row| row as usize).collect::<Vec<_>>()),
            batches,
            rows,
        }
    }

    fn codes(&self, network: &DeepHashNet, code_len: CodeLen) -> Result<Codes> {
        let _no_grad = tch::no_grad_guard();
        let mut codes = Codes::with_capacity(code_len, self.rows.len());
        for (_, pictures) in self.batches.parts(&self.rows) {
            let logits = network.forward(&pictures?, false)?;
            for logits in device::floats(&logits)?.chunks_exact(code_len.bits()) {
                codes.push(&binarize(code_len, logits)?)?;
            }
        }
        Ok(codes)
    }
}

/// The measurement after an epoch.
pub(crate) struct Validation {
    pub metric: Metric,
    every_epochs: usize,
    protocol: Protocol,
    code_len: CodeLen,
    /// Queries, then what they search; nothing else where they search each other.
    query: Pictures,
    database: Option<Pictures>,
}

impl Validation {
    /// What the options ask for, if anything. `plain` are the pictures of the train split as they are.
    pub fn new(
        dataset: &Dataset,
        options: &TrainOptions,
        held_back: &[i64],
        plain: &Rc<Batches>,
        input: &InputSpec,
        device: tch::Device,
    ) -> Result<Option<Validation>> {
        let selection = &options.selection;
        if !selection.is_on() {
            return Ok(None);
        }
        if selection.paper_protocol && (dataset.query.is_empty() || dataset.database.is_empty()) {
            return Err(Error::invalid(
                "the paper protocol takes test queries and a database, got none; give the test split some",
            ));
        }
        let all = |set: &ExampleSet| (0..set.labels.len() as i64).collect();
        let every_other = |first| held_back.iter().copied().skip(first).step_by(2).collect();
        let pictures = |set: &Arc<ExampleSet>, rows| -> Result<Pictures> {
            // A split is on the device once.
            let batches = match Arc::ptr_eq(set, &dataset.train) {
                true => Rc::clone(plain),
                false => {
                    let (set, input) = (Arc::clone(set), input.clone());
                    Rc::new(Batches::new(set, input, Augment::NONE, device)?)
                }
            };
            Ok(Pictures::new(set, rows, batches))
        };
        let mut protocol = Protocol::new(Cutoff::All);
        protocol.leave_one_out = selection.paper_protocol && dataset.leave_one_out;
        let (query, database, on) = match selection.paper_protocol {
            true => (
                pictures(&dataset.query, all(&dataset.query))?,
                match protocol.leave_one_out {
                    true => None,
                    false => Some(pictures(&dataset.database, all(&dataset.database))?),
                },
                "the test queries (paper protocol: selected on the test set)".to_owned(),
            ),
            false => (
                pictures(&dataset.train, every_other(0))?,
                Some(pictures(&dataset.train, every_other(1))?),
                format!(
                    "{} pictures held back from the train split",
                    held_back.len()
                ),
            ),
        };
        let what = match selection.by {
            SelectBy::Map => "mAP@all",
            SelectBy::Loss => "loss",
        };
        Ok(Some(Validation {
            metric: Metric {
                name: format!("{what} on {on}"),
                by: selection.by,
            },
            every_epochs: selection.every_epochs,
            protocol,
            code_len: options.code_len,
            query,
            database,
        }))
    }

    /// The figure after `epoch`, counted from 0, if this epoch has one.
    pub fn measure(&self, epoch: usize, fit: &Fit, run: &Run<'_>) -> Result<Option<f64>> {
        if !(epoch + 1).is_multiple_of(self.every_epochs) && epoch + 1 != fit.epochs {
            return Ok(None);
        }
        let network = &fit.model.network;
        if self.metric.by == SelectBy::Map {
            let query = self.query.codes(network, self.code_len)?;
            let query_labels = self.query.set.all_labels();
            let searched = match &self.database {
                Some(database) => Some((database.codes(network, self.code_len)?, database)),
                None => None,
            };
            let (database, labels) = match &searched {
                Some((codes, database)) => (codes, database.set.all_labels()),
                None => (&query, query_labels),
            };
            let report = evaluate(&query, query_labels, database, labels, &self.protocol)?;
            return Ok(Some(report.map));
        }
        let _no_grad = tch::no_grad_guard();
        let mut unused = ChaCha8Rng::seed_from_u64(0);
        let mut rows = self.query.rows.clone();
        rows.extend(self.database.iter().flat_map(|database| &database.rows));
        let (mut sum, mut n_pictures) = (0.0, 0);
        // Batches as large as those of training: a loss of pairs depends on their number.
        for rows in rows.chunks(run.options.batch).filter(|rows| rows.len() > 1) {
            let logits = network.forward(&run.plain.batch(rows, &mut unused)?, false)?;
            let targets = run.targets(fit.method.as_ref(), rows)?;
            let at = StepInfo {
                epoch,
                step: 0,
                seed: run.options.seed,
            };
            let total = fit.method.loss(&logits, &targets, at)?.total()?;
            sum += f64::try_from(&total)? * rows.len() as f64;
            n_pictures += rows.len();
        }
        Ok(Some(sum / n_pictures as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deep::method::MethodConfig;

    #[test]
    fn no_query_is_held_back_without_an_answer() {
        let method = MethodConfig::from_name("hashnet").unwrap();
        let mut options = TrainOptions::new(method, CodeLen::new(16).unwrap(), "");
        // Classes of 1, 3, 4, 5 and 20.
        let sizes = [1, 3, 4, 5, 20];
        let labels: Vec<i64> = (0..).zip(sizes).flat_map(|(c, n)| vec![c; n]).collect();
        for (share, expected) in [
            (0.01, [0, 0, 2, 2, 2]),
            (0.15, [0, 0, 2, 2, 3]),
            (0.5, [0, 0, 2, 2, 10]),
        ] {
            options.selection.validation_share = share;
            let (rows, held_back) = split(&labels, sizes.len(), &options).unwrap();
            let count = |rows: &[i64], class: usize| {
                let of_class = rows
                    .iter()
                    .filter(|&&row| labels[row as usize] == class as i64);
                of_class.count()
            };
            for (class, size) in sizes.into_iter().enumerate() {
                assert_eq!(count(&held_back, class), expected[class], "{share} {class}");
                assert_eq!(count(&rows, class), size - expected[class]);
                let every_other: Vec<i64> = held_back.iter().copied().step_by(2).collect();
                let n_queries = count(&every_other, class);
                assert!(n_queries > 0 || expected[class] == 0);
                assert!(n_queries < expected[class] || expected[class] == 0);
            }
        }
        assert!(split(&labels[..4], 2, &options).is_err());
    }
}
