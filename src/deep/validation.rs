//! Which epoch's weights become the model: by pictures held back from the train split, or, where a
//! paper's protocol says so, by the test queries.
//!
//! Held-back pictures are drawn by the seed, the same share of every class. Half of them are queries to
//! the other half. Selecting on the test queries flatters a result; a model says so in its record.

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

/// Pictures that the network sees at once.
const BATCH_PICTURES: usize = 256;

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

/// The rows of the train split to learn from, and those held back.
pub(crate) fn split(
    labels: &[i64],
    class_names: &[String],
    options: &TrainOptions,
) -> Result<(Vec<i64>, Vec<i64>)> {
    let share = options.selection.validation_share;
    let mut classes = vec![Vec::new(); class_names.len()];
    for (row, &label) in labels.iter().enumerate() {
        classes[label as usize].push(row as i64);
    }
    if share == 0.0 {
        return Ok(((0..labels.len() as i64).collect(), Vec::new()));
    }
    let mut rng = device::rng(options.seed, Stream::Validation);
    let (mut rows, mut held_back) = (Vec::new(), Vec::new());
    for (class, mut own) in classes.into_iter().enumerate() {
        if own.len() == 1 {
            return Err(Error::invalid(format!(
                "class {:?} has one train picture, which cannot be learned from and held back; add pictures, or train without a validation share",
                class_names[class]
            )));
        }
        own.shuffle(&mut rng);
        let n_held = ((own.len() as f64 * share).round() as usize).clamp(1, (own.len() / 2).max(1));
        let n_held = n_held.min(own.len());
        held_back.extend(own.drain(..n_held));
        rows.extend(own);
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
    batches: Batches,
    rows: Vec<i64>,
    /// The same pictures with their labels.
    set: ExampleSet,
}

impl Pictures {
    /// The pictures `rows` of `set`.
    fn new(
        set: &Arc<ExampleSet>,
        rows: Vec<i64>,
        input: &InputSpec,
        device: tch::Device,
    ) -> Result<Pictures> {
        Ok(Pictures {
            batches: Batches::new(Arc::clone(set), input.clone(), Augment::NONE, device)?,
            set: set.subset(&rows.iter().map(|&row| row as usize).collect::<Vec<_>>()),
            rows,
        })
    }

    fn codes(&self, network: &DeepHashNet, code_len: CodeLen) -> Result<Codes> {
        let _no_grad = tch::no_grad_guard();
        // Pictures are taken as they are; nothing is drawn.
        let mut unused = ChaCha8Rng::seed_from_u64(0);
        let mut codes = Codes::with_capacity(code_len, self.rows.len());
        for rows in self.rows.chunks(BATCH_PICTURES) {
            let pictures = self.batches.batch(rows, &mut unused)?;
            let logits = network.forward(&pictures, false)?;
            let mut values = vec![0f32; logits.numel()];
            logits.f_copy_data(&mut values, logits.numel())?;
            for logits in values.chunks_exact(code_len.bits()) {
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
    code_len: CodeLen,
    /// Queries, then what they search.
    query: Pictures,
    database: Pictures,
}

impl Validation {
    /// What the options ask for, if anything.
    pub fn new(
        dataset: &Dataset,
        options: &TrainOptions,
        held_back: &[i64],
        input: &InputSpec,
        device: tch::Device,
    ) -> Result<Option<Validation>> {
        let selection = &options.selection;
        if !selection.is_on() {
            return Ok(None);
        }
        let all = |set: &ExampleSet| (0..set.labels.len() as i64).collect();
        let every_other = |first| held_back.iter().copied().skip(first).step_by(2).collect();
        let pictures = |set, rows| Pictures::new(set, rows, input, device);
        let (query, database, on) = match selection.paper_protocol {
            true => (
                pictures(&dataset.query, all(&dataset.query))?,
                pictures(&dataset.database, all(&dataset.database))?,
                "the test queries (paper protocol: selected on the test set)".to_owned(),
            ),
            false => (
                pictures(&dataset.train, every_other(0))?,
                pictures(&dataset.train, every_other(1))?,
                format!(
                    "{} pictures held back from the train split",
                    held_back.len()
                ),
            ),
        };
        if query.rows.is_empty() || database.rows.is_empty() {
            return Err(Error::invalid(
                "validation takes at least one query and one other picture; hold back a larger share",
            ));
        }
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
            let database = self.database.codes(network, self.code_len)?;
            let protocol = Protocol::new(Cutoff::All);
            let (query_labels, labels) =
                (self.query.set.all_labels(), self.database.set.all_labels());
            let report = evaluate(&query, query_labels, &database, labels, &protocol)?;
            return Ok(Some(report.map));
        }
        let _no_grad = tch::no_grad_guard();
        let mut unused = ChaCha8Rng::seed_from_u64(0);
        let rows: Vec<i64> = [&self.query.rows[..], &self.database.rows].concat();
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
