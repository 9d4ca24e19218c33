//! An embedded vector database plugin for tantivy: documents carry binary hash codes beside their text,
//! and one query searches both.
//!
//! ```
//! use tanhash::HashCode;
//! use tanhash::plugin::{
//!     HashDocumentExt, HashFieldOptions, HashIndex, HashPlugin, KnnQuery, SchemaBuilderExt, WriterOptions,
//! };
//! use tantivy::TantivyDocument;
//! use tantivy::schema::Schema;
//!
//! # fn main() -> tanhash::Result<()> {
//! let mut schema = Schema::builder();
//! let image = schema.add_hash_field("image", HashFieldOptions::new(64))?;
//! let index = HashIndex::create_in_ram(schema.build(), HashPlugin::new())?;
//!
//! let writer = index.writer(WriterOptions::default())?;
//! let mut document = TantivyDocument::new();
//! document.add_code(image, &HashCode::from_hex("0123456789abcdef")?);
//! writer.add_document(document)?;
//! writer.commit()?;
//!
//! let query = HashCode::from_hex("0123456789abcdee")?;
//! let result = KnnQuery::new(image, query, 10).search(&index.searcher()?)?;
//! assert_eq!(result.hits[0].distance, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Words
//!
//! - A **hash code** is a packed binary vector of 16 to 1024 bits ([`HashCode`]); [`Codes`] are many of them.
//! - The **distance** of two codes is the number of bits that differ; the **score** is
//!   `(bits - distance) / bits`.
//! - A **k-NN search** finds the `k` nearest codes ([`KnnQuery`](plugin::KnnQuery)), a **range search** all
//!   within a radius ([`HammingQuery`](plugin::HammingQuery)). Both are exact, and ordinary tantivy queries.
//! - An **engine** answers one segment: the [linear scan](scan), [cluster-pruned search](cluster) or
//!   [multi-index hashing](mih). The [planner](plan) chooses; the answer never depends on the choice.
//! - An **encoder** ([`Encoder`]) turns a **payload** (a picture, a vector) into a code.
//!
//! # Flow
//!
//! 1. A schema gets a hash field; the index is created with the [`HashPlugin`](plugin::HashPlugin) registered.
//! 2. Documents are added with codes or payloads; [`HashIndexWriter`](plugin::HashIndexWriter) encodes payloads
//!    in batches before tantivy's queue sees them.
//! 3. A commit writes one [segment file](segment) beside tantivy's own; merges carry the codes over.
//! 4. Queries read the codes in place from the memory map, every segment under one running bound.
//!
//! # Features
//!
//! | feature | adds | needs |
//! |---|---|---|
//! | (none) | codes, search, plugin, evaluation, encoders without a network | Rust alone |
//! | `cli` | the program `tanhash` | a C compiler |
//! | `torch` | training and [`TorchEncoder`](https://docs.rs/tanhash) | libtorch 2.11, a C++ compiler |
//!
//! Modules are listed from the ground up: each uses only those above it.

pub mod error;

mod files;

pub mod code;
pub mod labels;
pub mod media;
pub mod npy;
mod random;

pub mod centers;
pub mod data;
pub mod hamming;
pub mod topk;

pub mod engine;
mod finds;
pub mod plan;
pub mod scan;

pub mod cluster;
pub mod mih;

pub mod encode;
pub mod eval;
pub mod segment;

pub mod plugin;

#[cfg(feature = "torch")]
pub mod deep;

pub use code::{CodeLen, Codes, HashCode};
pub use encode::{EncodeError, Encoder, Payload, PayloadKind};
pub use error::{Error, ErrorKind, Result};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

/// The guide's Rust blocks, compiled and run as tests.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../docs/guide/searching.md")]
    mod searching {}
    #[doc = include_str!("../docs/guide/hybrid.md")]
    mod hybrid {}
    #[doc = include_str!("../docs/guide/indexing.md")]
    mod indexing {}
    #[doc = include_str!("../docs/guide/offline.md")]
    mod offline {}
    #[doc = include_str!("../docs/guide/data.md")]
    mod data {}
    #[doc = include_str!("../docs/guide/backbones.md")]
    mod backbones {}
    #[doc = include_str!("../docs/guide/training.md")]
    mod training {}
    #[doc = include_str!("../docs/guide/evaluating.md")]
    mod evaluating {}
    #[doc = include_str!("../docs/guide/cli.md")]
    mod cli {}
    #[doc = include_str!("../docs/guide/install-libtorch.md")]
    mod install_libtorch {}
}
