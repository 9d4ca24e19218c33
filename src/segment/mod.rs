//! One segment's codes at rest: a single file that holds every hash field, read in place.
//!
//! Anatomy, as everywhere in the host: a [writer](SegmentWriter) turns [columns](Column) into bytes, a
//! [reader](HashSegment) answers straight from those bytes. The bytes are described in `docs/FORMAT.md`.
//! Knows no directory, index or query: it writes to an `io::Write` and reads from a byte slice.

#[cfg(target_endian = "big")]
compile_error!(
    "tanhash reads its little-endian files in place and does not run on big-endian targets"
);

mod column;
mod header;
mod reader;
mod writer;

pub use column::{Column, RowSource};
pub use header::{FORMAT_VERSION, MAGIC, OLDEST_READ_VERSION};
pub(crate) use header::{HEADER_BYTES, read_header};
pub use reader::{ColumnBytes, HashColumn, HashSegment, Integrity, SegmentBytes};
pub use writer::{ColumnSpec, SegmentWriter, TablePolicy};

/// The extension of the segment file, without the dot. Frozen: tantivy fixes the extensions of an
/// index when it is created.
pub const EXTENSION: &str = "hcode";
