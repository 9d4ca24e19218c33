//! A thread of a build: adds batches of records, and says what became of each.

use std::sync::mpsc::{Receiver, Sender};

use tantivy::schema::Field;

use crate::encode::Payload;
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::index_writer::{CodeOutcome, DocumentOutcome, HashIndexWriter, OnBadDocument};
use crate::plugin::payload_sha256;
use crate::plugin::value::{HashDocumentExt, HashValue};

use super::{BuildRecord, Refusal};

/// A record on its way, with what its report needs.
pub(super) struct Item {
    pub(super) position: u64,
    pub(super) replaces: bool,
    pub(super) record: BuildRecord,
}

/// A record that was added or refused.
pub(super) struct Done {
    pub(super) position: u64,
    pub(super) name: String,
    pub(super) indexed: bool,
    pub(super) replaces: bool,
    pub(super) codes: u64,
    pub(super) refusal: Option<Refusal>,
}

/// Adds batch after batch until the builder is dropped.
pub(super) fn work(
    writer: &HashIndexWriter,
    key: Option<Field>,
    on_bad: OnBadDocument,
    queue: &Receiver<Vec<Item>>,
    done: &Sender<Result<Vec<Done>>>,
) {
    for items in queue {
        let result = add_batch(writer, key, on_bad, items);
        let failed = result.is_err();
        if done.send(result).is_err() || failed {
            return;
        }
    }
}

fn add_batch(
    writer: &HashIndexWriter,
    key: Option<Field>,
    on_bad: OnBadDocument,
    items: Vec<Item>,
) -> Result<Vec<Done>> {
    let about = match (items.first(), items.last()) {
        (Some(first), Some(last)) => format!("{} to {}", first.record.name, last.record.name),
        _ => String::new(),
    };
    let mut done = Vec::with_capacity(items.len());
    // A document that replaces another comes after the one it replaces: the first of a key is never among
    // the replacing ones, and those keep their order.
    let (replacing, fresh): (Vec<Item>, Vec<Item>) =
        items.into_iter().partition(|item| item.replaces);
    for (items, key) in [(fresh, None), (replacing, key)] {
        let mut documents = Vec::with_capacity(items.len());
        let mut reports = Vec::with_capacity(items.len());
        for item in items {
            let BuildRecord {
                name,
                mut document,
                values,
                refused,
            } = item.record;
            if refused.is_some() && on_bad == OnBadDocument::Skip {
                done.push(Done {
                    position: item.position,
                    name,
                    indexed: false,
                    replaces: false,
                    codes: 0,
                    refusal: refused,
                });
                continue;
            }
            for (field, value) in &values {
                document.add_hash_value(*field, value);
            }
            documents.push(document);
            reports.push((item.position, name, values, refused));
        }
        if documents.is_empty() {
            continue;
        }
        let outcome = match key {
            None => writer.add_documents(documents),
            Some(key) => writer.upsert_documents(key, documents),
        };
        let outcome = outcome.map_err(|error| in_batch(&about, error))?;
        for ((position, name, values, refused), outcome) in
            reports.into_iter().zip(&outcome.documents)
        {
            let failures = outcome.failure().is_some();
            done.push(Done {
                position,
                name,
                indexed: outcome.opstamp.is_some(),
                replaces: key.is_some(),
                codes: (outcome.codes.iter())
                    .filter(|(_, outcome)| !matches!(outcome, CodeOutcome::Failed(_)))
                    .count() as u64,
                refusal: match (refused, failures) {
                    (Some(refusal), _) => Some(refusal),
                    (None, true) => Some(refusal_of(outcome, &values)),
                    (None, false) => None,
                },
            });
        }
    }
    done.sort_by_key(|done| done.position);
    Ok(done)
}

/// Names the records among which an error of a whole call lies. Its kind stays.
fn in_batch(about: &str, error: Error) -> Error {
    let message = |text: &str| format!("among {about}: {text}");
    match error.kind() {
        ErrorKind::Payload(text) => ErrorKind::Payload(message(text)).into(),
        ErrorKind::InvalidArgument(text) => Error::invalid(message(text)),
        ErrorKind::Encoder(text) => ErrorKind::Encoder(message(text)).into(),
        _ => error,
    }
}

fn refusal_of(outcome: &DocumentOutcome, values: &[(Field, HashValue)]) -> Refusal {
    let text = outcome.failure().unwrap_or_default();
    let staged = text.split_once(": ");
    let staged = staged.filter(|(stage, _)| ["decode", "preprocess", "encode"].contains(stage));
    let (stage, reason) = staged.unwrap_or(("index", text));
    let failed = |field: Field| {
        outcome
            .codes
            .iter()
            .any(|(of, outcome)| *of == field && matches!(outcome, CodeOutcome::Failed(_)))
    };
    let payload = values.iter().find_map(|(field, value)| match value {
        HashValue::Payload(payload) if failed(*field) => Some(payload),
        _ => None,
    });
    Refusal {
        stage: stage.to_owned(),
        reason: reason.to_owned(),
        sha256: payload.map(|payload: &Payload| payload_sha256(payload)),
    }
}
