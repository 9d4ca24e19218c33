//! Between this crate's errors and tantivy's, in both directions, once.

use std::sync::Arc;

use tantivy::TantivyError;
use tantivy::error::DataCorruption;

use crate::error::{Error, ErrorKind};

impl From<TantivyError> for Error {
    fn from(source: TantivyError) -> Error {
        let kind = match &source {
            TantivyError::InvalidArgument(reason) => ErrorKind::InvalidArgument(reason.clone()),
            TantivyError::DataCorruption(corruption) => ErrorKind::Corrupt {
                section: "index".to_owned(),
                reason: format!("{corruption:?}"),
            },
            TantivyError::IoError(error) => ErrorKind::Io(error.to_string()),
            other => ErrorKind::Tantivy(other.to_string()),
        };
        Error::new(kind).with_source(source)
    }
}

impl From<Error> for TantivyError {
    fn from(error: Error) -> TantivyError {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::InvalidArgument(_)
            | ErrorKind::CodeLenMismatch { .. }
            | ErrorKind::Unsupported(_)
            | ErrorKind::Payload(_) => TantivyError::InvalidArgument(message),
            ErrorKind::Corrupt { .. } | ErrorKind::UnsupportedVersion { .. } => {
                TantivyError::DataCorruption(DataCorruption::comment_only(message))
            }
            ErrorKind::Io(_) => TantivyError::IoError(Arc::new(std::io::Error::other(message))),
            _ => TantivyError::InternalError(message),
        }
    }
}
