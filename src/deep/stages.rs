//! SHC's first two stages inside a run: a classifier, the similarity of the classes, the centers.
//!
//! Stage 1 is a fit like any other, with its state in a file of its own; stage 2 is a function of the
//! similarity and the seed. S and the centers are written beside the model, as `.similarity.npy` and
//! `.centers.npy` after its name.

use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::centers::semantic::semantic_centers;
use crate::centers::{ClassSimilarity, Codebook};
use crate::deep::checkpoint::write_atomically;
use crate::deep::device::Stream;
use crate::deep::hash_head::HeadKind;
use crate::deep::method::classifier::Classifier;
use crate::deep::method::shc::{self, SimilarityBuilder};
use crate::deep::network::DeepHashNet;
use crate::deep::run_log::Log;
use crate::deep::train::{Fit, Run, TrainOptions};
use crate::error::Result;
use crate::npy;

/// Pictures that the classifier sees at once when it is asked.
const BATCH_PICTURES: usize = 256;

fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// The file that holds the state of stage 1 of the run that writes the model `out`.
pub(crate) fn classifier_state(out: &Path) -> PathBuf {
    beside(out, ".classifier.state")
}

/// Writes the centers beside the model.
pub(crate) fn save_codebook(codebook: &Codebook, out: &Path) -> Result<()> {
    write_atomically(&beside(out, ".centers.npy"), &codebook.to_npy())
}

/// Stage 1: S and the classifier, or `None` if the run was stopped before.
pub(crate) fn similarity(
    run: &mut Run<'_>,
    config: &shc::Config,
    epochs: usize,
    total_steps: usize,
    log: &mut Log,
) -> Result<Option<(ClassSimilarity, DeepHashNet)>> {
    let options = run.options;
    let mut fit = Fit {
        name: "classifier",
        model: run.checkpoint(run.n_classes, HeadKind::LINEAR)?,
        method: Box::new(Classifier::new(run.n_classes, config.variant)),
        epochs,
        steps_before: 0,
        total_steps,
        state: classifier_state(&options.out),
        saves_model: false,
        codebook: None,
        validation: None,
        stream: Stream::ClassifierEpoch,
        epochs_max: options.stop_after,
    };
    if run.fit(&mut fit, log)?.epochs_done < epochs {
        return Ok(None);
    }
    let _no_grad = tch::no_grad_guard();
    let mut builder = SimilarityBuilder::new(run.n_classes, config.variant);
    // Pictures are taken as they are; nothing is drawn.
    let mut unused = ChaCha8Rng::seed_from_u64(0);
    for rows in run.rows.chunks(BATCH_PICTURES) {
        let pictures = run.plain.batch(rows, &mut unused)?;
        let logits = fit.model.network.forward(&pictures, false)?;
        let classes: Vec<i64> = rows.iter().map(|&row| run.labels[row as usize]).collect();
        builder.add(&logits, &classes)?;
    }
    let similarity = builder.finish()?;
    let bytes = npy::float_bytes(run.n_classes, similarity.entries());
    write_atomically(&beside(&options.out, ".similarity.npy"), &bytes)?;
    Ok(Some((similarity, fit.model.network)))
}

/// Stage 2.
pub(crate) fn centers(
    similarity: &ClassSimilarity,
    config: &shc::Config,
    options: &TrainOptions,
) -> Result<Codebook> {
    let bits = options.code_len.bits();
    let made = semantic_centers(similarity, bits, &config.centers, options.seed)?;
    let report = &made.report;
    tracing::info!(
        d_min = report.d_min,
        gv_distance = report.gv_distance,
        s_loss = report.s_loss,
        seconds = report.seconds,
        "semantic hash centers"
    );
    Ok(made.codebook)
}
