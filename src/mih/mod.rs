//! Multi-index hashing: exact k-NN and range search that reads a small part of the codes.
//!
//! Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with multi-index hashing", TPAMI
//! 2014. A code of b bits is cut into m substrings, and a table a substring maps each value to the rows
//! that have it. Write a radius as r = m*s + a with a < m. A code within r of the query is within s in
//! one of the first a + 1 substrings or within s - 1 in one of the others: were it farther in each, it
//! would be farther than r in total. So looking up the buckets of those small balls meets every code
//! within r, and k-NN search grows the balls one table at a time until the k-th distance is covered.
//!
//! Differences from the paper. Tables are addressed directly, which bounds substrings to
//! [`MAX_SUBSTRING_BITS`] bits. There is no bitmap of rows seen: a candidate's distance is computed
//! first, and only one within the bound is asked whether this bucket is the first that holds it. Bits
//! are dealt to substrings by a fixed random permutation, because neighbouring bits of real codes are
//! correlated and would crowd the buckets; where bits turn out to be correlated, so that those of one
//! substring are least so ([`MihParams::fit`]). A search that would cost more than the linear scan becomes
//! one.

mod ball;
mod decorrelate;
mod params;
mod search;
mod table;
mod walk;

pub use ball::{Shell, shell_size};
pub use params::{MAX_SUBSTRING_BITS, MihParams};
pub use search::MultiIndex;
pub use table::{MihForm, MihTable, MihView, suits_copies};
