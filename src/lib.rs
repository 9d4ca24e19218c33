//! tanhash: an embedded vector database plugin for tantivy.

pub mod error;

pub mod code;
pub mod media;
mod random;

pub mod data;
pub mod encode;
pub mod eval;

pub use code::{CodeLen, Codes, HashCode};
pub use encode::{EncodeError, Encoder, Payload};
pub use error::{Error, ErrorKind, Result};
