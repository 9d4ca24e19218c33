//! Hamming queries: the k nearest, and all within a radius.
//!
//! [`KnnQuery`] searches every segment when its weight is made, cuts to k over the whole index, and hands
//! tantivy a finished list: a cut inside each segment, or after other clauses, would lose hits.
//! [`HammingQuery`] needs no cut, so it works segment by segment, also where there is no searcher.

mod doc_filter;
mod filter;
mod hits;
mod knn;
mod range;
mod share;

pub use doc_filter::DocFilter;
pub use hits::{HammingHit, HammingResult};
pub use knn::KnnQuery;
pub(crate) use knn::check_distance;
pub use range::HammingQuery;
