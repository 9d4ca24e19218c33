//! The crate's one error type.
//!
//! Bytes from disk and values from users end here, never in a panic. A message starts in lower case,
//! carries what was expected and what was found, and ends with the remedy when there is one.
//! Conversions from `tantivy` and `tch` errors live on the floors that know those crates.

use std::fmt;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: a [kind](ErrorKind), and the underlying error when there is one.
pub struct Error {
    kind: Box<ErrorKind>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`Error`]. New kinds may be added in any release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value from the caller is out of range or does not fit the others.
    #[error("{0}")]
    InvalidArgument(String),
    /// A hash code has another length than the field, model or code set it meets. Lengths in bits.
    #[error("expected a hash code of {expected} bits, got {got} bits")]
    CodeLenMismatch {
        /// Bits of the field, model or set.
        expected: usize,
        /// Bits of the value at hand.
        got: usize,
    },
    /// Bytes on disk contradict their checksum, their own tables or the index they belong to.
    #[error("corrupt {section}: {reason}")]
    Corrupt {
        /// File and section, e.g. `header` or `codes of field 3`.
        section: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The file was written in a format that this build does not read.
    #[error(
        "written by format {found}, this build reads {oldest} to {newest}; rebuild it or upgrade"
    )]
    UnsupportedVersion {
        /// The version in the file.
        found: u32,
        /// The oldest version this build reads.
        oldest: u32,
        /// The newest version this build reads.
        newest: u32,
    },
    /// The request is meaningful but not offered; the text names the way that is.
    #[error("{0}")]
    Unsupported(String),
    /// A picture or other payload could not be turned into what the encoder reads.
    #[error("{0}")]
    Payload(String),
    /// The encoder failed as a whole; no item of the batch has a code.
    #[error("encoder: {0}")]
    Encoder(String),
    /// A batch did not fit the memory of the encoder's device; a smaller one may.
    #[error("the batch does not fit the encoder's device: {0}")]
    DeviceMemory(String),
    /// The encoder's device is gone for this process. No batch will do better.
    #[error("the encoder's device is lost: {0}; restart the process, or encode on the CPU")]
    DeviceLost(String),
    /// An encoder service gave up after so many of its last calls on single payloads failed.
    #[error(
        "the encoder failed {failures} of its last {tried} tries and was stopped, the last time by: \
         {last}; repair it, then call reset_encoders"
    )]
    EncoderStopped {
        /// Failed tries.
        failures: usize,
        /// Tries they were counted over; the same number where they failed in a row.
        tried: usize,
        /// The last failure.
        last: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Reading or writing failed. The text names the file.
    #[error("{0}")]
    Io(String),
    /// tantivy failed.
    #[error("tantivy: {0}")]
    Tantivy(String),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(String),
}

impl Error {
    /// An error of this kind, with no underlying error.
    pub fn new(kind: ErrorKind) -> Error {
        Error {
            kind: Box::new(kind),
            source: None,
        }
    }

    /// Keeps `source` as the underlying error.
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// An [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument(message.into()))
    }

    /// An [`ErrorKind::Corrupt`].
    pub fn corrupt(section: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt {
            section: section.into(),
            reason: reason.into(),
        })
    }

    /// An [`ErrorKind::Io`] about `path`.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Error {
        let message = format!("{}: {source}", path.as_ref().display());
        Error::new(ErrorKind::Io(message)).with_source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Error {
        Error::new(kind)
    }
}

/// Why one payload has no code. Says nothing about the others of its batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct EncodeError {
    /// Where it failed.
    pub stage: EncodeStage,
    /// What was expected and what was found.
    pub reason: String,
}

/// The stages a payload goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncodeStage {
    /// Bytes to pixels.
    Decode,
    /// Pixels or vectors to what the model reads.
    Preprocess,
    /// The model, or the packing of its output.
    Encode,
    /// None: the payload was not tried, because the service was stopped. It may be submitted again.
    Stopped,
}

impl std::fmt::Display for EncodeStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EncodeStage::Decode => "decode",
            EncodeStage::Preprocess => "preprocess",
            EncodeStage::Encode => "encode",
            EncodeStage::Stopped => "stopped",
        })
    }
}
