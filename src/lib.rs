//! tanhash: an embedded vector database plugin for tantivy.

pub mod error;

pub mod code;
pub mod media;
mod random;

pub mod data;
pub mod hamming;
pub mod topk;

pub mod engine;
pub mod plan;
pub mod scan;

pub mod mih;

pub mod encode;
pub mod eval;
pub mod segment;

pub mod plugin;

#[cfg(feature = "torch")]
pub mod deep;

pub use code::{CodeLen, Codes, HashCode};
pub use encode::{EncodeError, Encoder, Payload};
pub use error::{Error, ErrorKind, Result};

/// The guide's Rust blocks, compiled and run as tests.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../docs/guide/searching.md")]
    mod searching {}
    #[doc = include_str!("../docs/guide/hybrid.md")]
    mod hybrid {}
    #[doc = include_str!("../docs/guide/indexing.md")]
    mod indexing {}
    #[doc = include_str!("../docs/guide/training.md")]
    mod training {}
    #[doc = include_str!("../docs/guide/cli.md")]
    mod cli {}
    #[doc = include_str!("../docs/guide/install-libtorch.md")]
    mod install_libtorch {}
}
