//! SHC's first two stages inside a run: a classifier, the similarity of the classes, the centers.
//!
//! Stage 1 is a fit like any other, with its state in a file of its own, or one pass over the features; stage 2
//! is a function of the similarity and the seed. S and the centers are written beside the model, as `.similarity.npy` and
//! `.centers.npy` after its name.

use std::path::{Path, PathBuf};

use crate::centers::semantic::semantic_centers;
use crate::centers::{ClassMeans, ClassSimilarity, Codebook};
use crate::deep::device::{Stream, floats};
use crate::deep::hash_head::HeadKind;
use crate::deep::method::classifier::Classifier;
use crate::deep::method::shc::{self, SimilarityBuilder};
use crate::deep::network::DeepHashNet;
use crate::deep::run_log::Log;
use crate::deep::train::{Fit, Run, TrainOptions, remove_if_there};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::npy;

fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// The file that holds the state of stage 1 of the run that writes the model `out`.
pub(crate) fn classifier_state(out: &Path) -> PathBuf {
    beside(out, ".classifier.state")
}

/// Removes the similarity and the centers of a run before, which are not those of the model to be.
pub(crate) fn remove_outcomes(out: &Path) -> Result<()> {
    remove_if_there(&beside(out, ".similarity.npy"))?;
    remove_if_there(&beside(out, ".centers.npy"))
}

/// Writes the centers beside the model.
pub(crate) fn save_codebook(codebook: &Codebook, out: &Path) -> Result<()> {
    write_whole(&beside(out, ".centers.npy"), &codebook.to_npy())
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
    // Refused before hours of training rather than after.
    let mut counts = vec![0; run.n_classes];
    for &row in &run.rows {
        counts[run.labels[row as usize] as usize] += 1;
    }
    shc::check_counts(&counts)?;
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
    for (rows, pictures) in run.plain.parts(&run.rows) {
        let logits = fit.model.network.forward(&pictures?, false)?;
        let classes: Vec<i64> = rows.iter().map(|&row| run.labels[row as usize]).collect();
        builder.add(&logits, &classes)?;
    }
    let similarity = builder.finish()?;
    Ok(Some((similarity, fit.model.network)))
}

/// In the place of stage 1: S by the class means of the features that the run begins with.
pub(crate) fn class_means(run: &Run<'_>) -> Result<ClassSimilarity> {
    let network = run.checkpoint(run.n_classes, HeadKind::LINEAR)?.network;
    let _no_grad = tch::no_grad_guard();
    let mut means: Option<ClassMeans> = None;
    for (rows, inputs) in run.plain.parts(&run.rows) {
        let features = network.features_read(&inputs?, false)?;
        let (_, n_features) = features.size2()?;
        let values = floats(&features)?;
        let means =
            means.get_or_insert_with(|| ClassMeans::new(run.n_classes, n_features as usize));
        for (features, &row) in values.chunks_exact(n_features as usize).zip(rows) {
            let row = row as usize;
            let classes = match &run.label_sets {
                Some(sets) => sets.of(row),
                None => vec![run.labels[row] as u32],
            };
            means.add(features, &classes)?;
        }
    }
    let means = means.ok_or_else(|| Error::invalid("expected train pictures, got none"))?;
    means.similarity()
}

/// Writes S beside the model.
pub(crate) fn save_similarity(similarity: &ClassSimilarity, out: &Path) -> Result<()> {
    let bytes = npy::float_bytes(similarity.n_classes(), similarity.entries());
    write_whole(&beside(out, ".similarity.npy"), &bytes)
}

/// Stage 2.
pub(crate) fn centers(
    similarity: &ClassSimilarity,
    config: &shc::Config,
    options: &TrainOptions,
) -> Result<Codebook> {
    let bits = options.code_len.bits();
    let settings = config.centers_of(similarity.n_classes(), bits);
    let made = semantic_centers(similarity, bits, &settings, options.seed)?;
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
