//! From columns to bytes: sections one after the other, each aligned and checksummed, then the table.
//!
//! Writes forward only, as tantivy's sinks demand. MIH tables are built and written one at a time, so a
//! build never holds more than one beside the codes.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::code::CodeLen;
use crate::error::{Error, ErrorKind, Result};
use crate::mih::{MihParams, MihTable};
use crate::segment::column::Column;
use crate::segment::header::{
    HEADER_BYTES, SECTION_ALIGN, Section, SectionKind, header_bytes, table_bytes,
};

/// Whether a segment gets multi-index hashing tables. A matter of speed alone: answers never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TablePolicy {
    /// From 2 MiB of codes up; below, a linear scan from the cache is as fast.
    #[default]
    Auto,
    /// For every segment with a code.
    Always,
    /// Never; every search is a linear scan.
    Never,
}

/// Codes of fewer bytes than this get no tables under [`TablePolicy::Auto`].
const AUTO_TABLES_BYTES: usize = 2 << 20;

impl TablePolicy {
    fn wants_tables(self, code_len: CodeLen, n_codes: usize) -> bool {
        match self {
            TablePolicy::Auto => n_codes.saturating_mul(code_len.words() * 8) >= AUTO_TABLES_BYTES,
            TablePolicy::Always => n_codes > 0,
            TablePolicy::Never => false,
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
        let mih = policy
            .wants_tables(spec.code_len, codes.n_codes())
            .then(|| MihParams::choose(spec.code_len, codes.n_codes()));
        let n_tables = mih.as_ref().map_or(0, MihParams::n_substrings);
        let meta = Meta {
            bits: spec.code_len.bits(),
            model_id: spec.model_id.clone(),
            n_codes: codes.n_codes(),
            mih,
        };
        let json = serde_json::to_vec(&meta).expect("numbers and strings always serialize");
        let field_id = spec.field_id;
        self.section(field_id, SectionKind::Meta, 0, &json)?;
        self.section(
            field_id,
            SectionKind::Codes,
            0,
            bytemuck::cast_slice(codes.blocks()),
        )?;
        if doc_ids.len() != self.max_doc as usize {
            self.section(
                field_id,
                SectionKind::DocIds,
                0,
                bytemuck::cast_slice(doc_ids),
            )?;
        }
        for table_idx in 0..n_tables {
            let params = meta
                .mih
                .as_ref()
                .expect("there are tables only with parameters");
            let table = MihTable::build(&codes, params, table_idx)?;
            let param = table_idx as u32;
            let offsets = bytemuck::cast_slice(table.offsets());
            self.section(field_id, SectionKind::MihOffsets, param, offsets)?;
            self.section(
                field_id,
                SectionKind::MihIds,
                param,
                bytemuck::cast_slice(table.ids()),
            )?;
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

fn write_error(source: io::Error) -> Error {
    Error::new(ErrorKind::Io(format!("writing a segment file: {source}"))).with_source(source)
}
