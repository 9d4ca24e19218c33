//! From columns to bytes: sections one after the other, each aligned and checksummed, then the table.
//!
//! Writes forward only, as tantivy's sinks demand. Clusters are found first, because they say in which order the
//! codes are written. MIH tables are built and written one at a time, so a build never holds more than one beside the
//! codes.

use std::io::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterParams, Clusters};
use crate::code::{CodeLen, Codes, CodesRef, RowOrder};
use crate::error::{Error, ErrorKind, Result};
use crate::hamming::{ROWS_AHEAD, planes_pay, prefetch};
use crate::mih::{MihParams, MihTable, suits_copies};
use crate::segment::column::Column;
use crate::segment::header::{
    HEADER_BYTES, SECTION_ALIGN, Section, SectionKind, header_bytes, table_bytes,
};

/// Which index structures a segment gets. A matter of speed and room alone: answers never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TablePolicy {
    /// From 2 MiB of codes up: clusters where codes have them, multi-index hashing tables where they have
    /// not. Below, a linear scan from the cache is as fast.
    #[default]
    Auto,
    /// Clusters for every segment with a code.
    Clusters,
    /// Multi-index hashing tables of row numbers for every segment with a code: they take the least room.
    Mih,
    /// Multi-index hashing tables with a copy of the codes each for every segment with a code: several times as fast,
    /// for four to five times the room. Those of [`Mih`](TablePolicy::Mih) for codes of more than 64 bits.
    MihCopies,
    /// Clusters and tables of row numbers for every segment with a code.
    Always,
    /// Neither; every search is a linear scan.
    Never,
}

/// Codes of fewer bytes than this get no tables under [`TablePolicy::Auto`].
const AUTO_TABLES_BYTES: usize = 2 << 20;

impl FromStr for TablePolicy {
    type Err = Error;

    fn from_str(name: &str) -> Result<TablePolicy> {
        match name {
            "auto" => Ok(TablePolicy::Auto),
            "cluster" => Ok(TablePolicy::Clusters),
            "mih" => Ok(TablePolicy::Mih),
            "mih-copies" => Ok(TablePolicy::MihCopies),
            "all" => Ok(TablePolicy::Always),
            "none" => Ok(TablePolicy::Never),
            _ => Err(Error::invalid(format!(
                "tables are auto, cluster, mih, mih-copies, all or none, got {name:?}"
            ))),
        }
    }
}

/// The structures of one field of one segment.
#[derive(Default)]
struct Tables {
    clusters: Option<Clusters>,
    mih: Option<MihParams>,
    /// Whether the codes are beside the row numbers of the tables.
    has_copies: bool,
}

impl Tables {
    fn of_rows(codes: CodesRef<'_>) -> Tables {
        Tables {
            mih: Some(MihParams::fit(codes)),
            ..Tables::default()
        }
    }

    /// Those of row numbers where codes are too long for copies.
    fn with_copies(codes: CodesRef<'_>) -> Tables {
        match suits_copies(codes.code_len()) {
            false => Tables::of_rows(codes),
            true => Tables {
                mih: Some(MihParams::fit_copies(codes)),
                has_copies: true,
                ..Tables::default()
            },
        }
    }

    fn clustered(column: &Column) -> Result<Tables> {
        let codes = column.codes();
        let params = ClusterParams::choose(codes.n_codes());
        Ok(Tables {
            clusters: Some(Clusters::build(codes, column.first_centroids(), &params)?),
            ..Tables::default()
        })
    }

    /// For each row of the file, the row of the column; `None` where they are the same.
    fn order(&self) -> Option<&[u32]> {
        self.clusters.as_ref().map(Clusters::order)
    }
}

impl TablePolicy {
    /// Finds the clusters, and says which other tables are to be built.
    fn tables(self, column: &Column) -> Result<Tables> {
        let codes = column.codes();
        let n_codes = codes.n_codes();
        let small = n_codes.saturating_mul(codes.code_len().words() * 8) < AUTO_TABLES_BYTES;
        match self {
            _ if n_codes == 0 => Ok(Tables::default()),
            TablePolicy::Auto if small => Ok(Tables::default()),
            TablePolicy::Auto => {
                let params = ClusterParams::choose(n_codes);
                let first = column.first_centroids();
                match Clusters::build_if_useful(codes, first, &params)? {
                    None => Ok(Tables::with_copies(codes)),
                    clusters => Ok(Tables {
                        clusters,
                        ..Tables::default()
                    }),
                }
            }
            TablePolicy::Clusters => Tables::clustered(column),
            TablePolicy::Mih => Ok(Tables::of_rows(codes)),
            TablePolicy::MihCopies => Ok(Tables::with_copies(codes)),
            TablePolicy::Always => Ok(Tables {
                mih: Some(MihParams::fit(codes)),
                ..Tables::clustered(column)?
            }),
            TablePolicy::Never => Ok(Tables::default()),
        }
    }
}

/// What a file says about a field beside its codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// The field's id in the schema.
    pub field_id: u32,
    /// The length of its codes.
    pub code_len: CodeLen,
    /// The model that makes its codes, if the schema names one.
    pub model_id: Option<String>,
}

/// The JSON of a meta section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meta {
    pub(crate) bits: usize,
    pub(crate) model_id: Option<String>,
    pub(crate) n_codes: usize,
    pub(crate) mih: Option<MihParams>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clusters: Option<ClusterMeta>,
}

/// The sizes of the cluster sections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterMeta {
    pub(crate) n_clusters: usize,
    /// Numbers in the shells section.
    pub(crate) n_shells: usize,
}

/// Writes one segment file.
pub struct SegmentWriter<W> {
    out: W,
    position: usize,
    max_doc: u32,
    sections: Vec<Section>,
}

impl<W: Write> SegmentWriter<W> {
    /// Starts a file for a segment of `max_doc` documents and `n_fields` hash fields.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(mut out: W, max_doc: u32, n_fields: u32) -> Result<SegmentWriter<W>> {
        out.write_all(&header_bytes(max_doc, n_fields))
            .map_err(write_error)?;
        Ok(SegmentWriter {
            out,
            position: HEADER_BYTES,
            max_doc,
            sections: Vec::new(),
        })
    }

    /// Writes a field: its codes, the documents they belong to, and the tables that `policy` asks for.
    ///
    /// # Errors
    /// `Io`; `CodeLenMismatch`; `InvalidArgument` if the column's documents are not ascending or lie
    /// past the segment.
    pub fn add_field(
        &mut self,
        spec: &ColumnSpec,
        column: &Column,
        policy: TablePolicy,
    ) -> Result<()> {
        let codes = column.codes();
        spec.code_len.check(codes.code_len())?;
        let doc_ids = column.doc_ids();
        let ascending = doc_ids.is_sorted_by(|a, b| a < b);
        if !ascending || doc_ids.last().is_some_and(|&last| last >= self.max_doc) {
            let reason = format!("rows ascend by document id below {}", self.max_doc);
            return Err(Error::invalid(reason));
        }
        let tables = policy.tables(column)?;
        let clusters = &tables.clusters;
        let meta = Meta {
            bits: spec.code_len.bits(),
            model_id: spec.model_id.clone(),
            n_codes: codes.n_codes(),
            mih: tables.mih.clone(),
            clusters: clusters.as_ref().map(|clusters| ClusterMeta {
                n_clusters: clusters.view().n_clusters(),
                n_shells: clusters.tables()[2].len(),
            }),
        };
        // Codes in the order that clusters ask for, and in planes, if those pay.
        let in_planes = planes_pay(codes);
        let order = tables.order();
        let laid_out = (in_planes || order.is_some()).then(|| lay_out(codes, order, in_planes));
        let codes = laid_out.as_ref().map_or(codes, Codes::as_ref);

        let json = serde_json::to_vec(&meta).expect("numbers and strings always serialize");
        let id = spec.field_id;
        self.section(id, SectionKind::Meta, 0, &json)?;
        let words = bytemuck::cast_slice(codes.blocks());
        let kind = match codes.rows_in_planes() {
            0 => SectionKind::Codes,
            _ => SectionKind::CodePlanes,
        };
        self.section(id, kind, 0, words)?;
        if doc_ids.len() != self.max_doc as usize {
            self.section(id, SectionKind::DocIds, 0, bytemuck::cast_slice(doc_ids))?;
        }
        if let Some(clusters) = clusters {
            let centroids = clusters.view().centroids();
            let blocks = bytemuck::cast_slice(centroids.blocks());
            self.section(id, SectionKind::Centroids, 0, blocks)?;
            let [extents, starts, shells] = clusters.tables();
            let table = [extents, starts].concat();
            self.section(id, SectionKind::Clusters, 0, bytemuck::cast_slice(&table))?;
            self.section(id, SectionKind::Shells, 0, bytemuck::cast_slice(shells))?;
        }
        if let Some(ranks) = tables.order() {
            let mut rows = vec![0; ranks.len()];
            for (row, &rank) in (0..).zip(ranks) {
                rows[rank as usize] = row;
            }
            self.section(id, SectionKind::RowRanks, 0, &RowOrder::pack(ranks))?;
            self.section(id, SectionKind::RankRows, 0, &RowOrder::pack(&rows))?;
        }
        let Some(params) = &meta.mih else {
            return Ok(());
        };
        for table_idx in 0..params.n_substrings() {
            let param = table_idx as u32;
            let table = MihTable::build(&codes, params, table_idx)?;
            let offsets = bytemuck::cast_slice(table.offsets());
            self.section(id, SectionKind::MihOffsets, param, offsets)?;
            let ids = bytemuck::cast_slice(table.ids());
            self.section(id, SectionKind::MihIds, param, ids)?;
            if tables.has_copies {
                let copy = lay_out(codes, Some(table.ids()), false);
                let words = bytemuck::cast_slice(copy.blocks());
                self.section(id, SectionKind::MihCodes, param, words)?;
            }
        }
        Ok(())
    }

    /// Writes the table and the trailer, and gives the sink back, unflushed.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(mut self) -> Result<W> {
        self.align()?;
        let table = table_bytes(&self.sections, self.position);
        self.out.write_all(&table).map_err(write_error)?;
        Ok(self.out)
    }

    fn section(
        &mut self,
        field_id: u32,
        kind: SectionKind,
        param: u32,
        bytes: &[u8],
    ) -> Result<()> {
        self.align()?;
        let crc32 = crc32fast::hash(bytes);
        let (offset, len) = (self.position, bytes.len());
        self.sections.push(Section {
            field_id,
            kind,
            param,
            crc32,
            offset,
            len,
        });
        self.out.write_all(bytes).map_err(write_error)?;
        self.position += len;
        Ok(())
    }

    fn align(&mut self) -> Result<()> {
        let padding = self.position.next_multiple_of(SECTION_ALIGN) - self.position;
        self.out
            .write_all(&[0; SECTION_ALIGN][..padding])
            .map_err(write_error)?;
        self.position += padding;
        Ok(())
    }
}

/// The same codes in another order, which says of each row the row it is now, and in planes or in blocks.
fn lay_out(codes: CodesRef<'_>, order: Option<&[u32]>, in_planes: bool) -> Codes {
    let mut laid_out = match in_planes {
        true => Codes::in_planes(codes.code_len(), codes.n_codes()),
        false => Codes::with_capacity(codes.code_len(), codes.n_codes()),
    };
    for row in 0..codes.n_codes() {
        let from = order.map_or(row, |order| order[row] as usize);
        if let Some(&ahead) = order.and_then(|order| order.get(row + ROWS_AHEAD)) {
            prefetch(codes, ahead as usize);
        }
        laid_out.push_row(&codes, from);
    }
    laid_out
}

fn write_error(source: io::Error) -> Error {
    Error::new(ErrorKind::Io(format!("writing a segment file: {source}"))).with_source(source)
}
