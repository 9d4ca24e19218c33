//! Answers straight from the bytes of a segment file.
//!
//! Opening reads the header, the section table and the small meta sections, checks their checksums, and
//! allocates nothing that grows with the number of codes. The large sections are checked when they are
//! first used ([`Integrity::FirstUse`]) or only by [`HashSegment::verify`].

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::cluster::ClusterView;
use crate::code::{BLOCK_ROWS, CodeLen, CodesRef, HashCode, RowOrder};
use crate::engine::SegmentRows;
use crate::error::{Error, Result};
use crate::mih::{MihParams, MihTable, MihView, suits_copies};
use crate::segment::column::RowSource;
use crate::segment::header::{Section, SectionKind, parse};
use crate::segment::writer::{ClusterMeta, Meta};

/// The bytes of a segment file, typically a memory map; kept alive by the reader.
pub type SegmentBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// When the checksum of a large section is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Integrity {
    /// Once, when a search first needs the section: a damaged file gives `Corrupt`, never a wrong answer.
    /// Reads the section through once, about 0.1 ms a MiB.
    #[default]
    FirstUse,
    /// Only by `verify`: the first search touches no more than it must. For files checked elsewhere.
    Structure,
}

/// One segment file, open.
pub struct HashSegment {
    max_doc: u32,
    columns: Vec<HashColumn>,
}

impl fmt::Debug for HashSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashSegment")
            .field("max_doc", &self.max_doc)
            .field("columns", &self.columns)
            .finish()
    }
}

impl HashSegment {
    /// Opens a segment file of a segment with `max_doc` documents.
    ///
    /// # Errors
    /// `Corrupt` or `UnsupportedVersion`, naming the section.
    pub fn open(bytes: SegmentBytes, max_doc: u32, integrity: Integrity) -> Result<HashSegment> {
        let bytes = aligned(bytes);
        let layout = parse((*bytes).as_ref())?;
        if layout.max_doc != max_doc {
            let reason = format!(
                "expected {max_doc} documents as the index says, found {}: the file is of another segment",
                layout.max_doc
            );
            return Err(Error::corrupt("header", reason));
        }
        let mut columns: Vec<HashColumn> = Vec::new();
        for meta in layout
            .sections
            .iter()
            .filter(|section| section.kind == SectionKind::Meta)
        {
            if columns
                .iter()
                .any(|column| column.field_id == meta.field_id)
            {
                return Err(Error::corrupt(meta.name(), "the field appears twice"));
            }
            columns.push(HashColumn::open(
                &bytes,
                meta,
                &layout.sections,
                max_doc,
                integrity,
            )?);
        }
        if columns.len() != layout.n_fields as usize {
            let reason = format!(
                "expected {} fields, found {}",
                layout.n_fields,
                columns.len()
            );
            return Err(Error::corrupt("section table", reason));
        }
        Ok(HashSegment { max_doc, columns })
    }

    /// Documents in the segment, deleted ones included.
    pub fn max_doc(&self) -> u32 {
        self.max_doc
    }

    /// The hash fields, in the order of the file.
    pub fn columns(&self) -> &[HashColumn] {
        &self.columns
    }

    /// The hash field with this id in the schema.
    pub fn column(&self, field_id: u32) -> Option<&HashColumn> {
        self.columns
            .iter()
            .find(|column| column.field_id == field_id)
    }

    /// Compares every checksum, and every table with the codes.
    ///
    /// # Errors
    /// `Corrupt`, naming the first bad section.
    pub fn verify(&self) -> Result<()> {
        self.columns.iter().try_for_each(HashColumn::verify)
    }
}

/// The bytes, at an address that can be read as words; copied once if the map is not.
fn aligned(bytes: SegmentBytes) -> SegmentBytes {
    let raw: &[u8] = (*bytes).as_ref();
    if raw.as_ptr().align_offset(align_of::<u64>()) == 0 {
        return bytes;
    }
    struct Words(Vec<u64>, usize);
    impl AsRef<[u8]> for Words {
        fn as_ref(&self) -> &[u8] {
            &bytemuck::cast_slice(&self.0)[..self.1]
        }
    }
    let mut words = vec![0u64; raw.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..raw.len()].copy_from_slice(raw);
    Arc::new(Words(words, raw.len()))
}

/// A section whose checksum is compared at most once.
#[derive(Debug)]
struct Checked {
    section: Section,
    state: OnceLock<Result<(), String>>,
}

impl Checked {
    fn new(section: Section) -> Checked {
        Checked {
            section,
            state: OnceLock::new(),
        }
    }

    fn check(&self, bytes: &[u8]) -> Result<()> {
        let state = self.state.get_or_init(|| {
            let found = crc32fast::hash(&bytes[self.section.range()]);
            if found == self.section.crc32 {
                return Ok(());
            }
            Err(format!(
                "expected checksum {:08x}, found {found:08x}; rebuild the index",
                self.section.crc32
            ))
        });
        state
            .clone()
            .map_err(|reason| Error::corrupt(self.section.name(), reason))
    }
}

#[derive(Debug)]
struct ClusterSections {
    n_clusters: usize,
    centroids: Checked,
    /// Extents, then starts.
    table: Checked,
    shells: Checked,
}

impl ClusterSections {
    fn all(&self) -> [&Checked; 3] {
        [&self.centroids, &self.table, &self.shells]
    }
}

/// Present where rows do not ascend by document.
#[derive(Debug)]
struct OrderSections {
    row_ranks: Checked,
    rank_rows: Checked,
}

impl OrderSections {
    fn all(&self) -> [&Checked; 2] {
        [&self.row_ranks, &self.rank_rows]
    }
}

#[derive(Debug)]
struct MihSections {
    params: MihParams,
    /// Offsets and ids of each table.
    tables: Vec<[Checked; 2]>,
    /// The codes of each table, if they are there.
    copies: Option<Vec<Checked>>,
}

impl MihSections {
    fn all(&self) -> impl Iterator<Item = &Checked> {
        let tables = self.tables.iter().flatten();
        tables.chain(self.copies.iter().flatten())
    }
}

/// The room that a field takes in a segment file, in bytes, padding between sections excepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnBytes {
    /// The codes themselves.
    pub codes: usize,
    /// Which documents have a code; 0 if all have.
    pub doc_ids: usize,
    /// Centroids and shells, and the order of rows that they ask for.
    pub clusters: usize,
    /// Multi-index hashing tables.
    pub mih: usize,
}

/// One hash field of one segment.
pub struct HashColumn {
    bytes: SegmentBytes,
    field_id: u32,
    code_len: CodeLen,
    model_id: Option<String>,
    n_codes: usize,
    max_doc: u32,
    integrity: Integrity,
    codes: Checked,
    doc_ids: Option<Checked>,
    mih: Option<MihSections>,
    clusters: Option<ClusterSections>,
    order: Option<OrderSections>,
}

impl fmt::Debug for HashColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashColumn")
            .field("field_id", &self.field_id)
            .field("code_len", &self.code_len)
            .field("n_codes", &self.n_codes)
            .finish_non_exhaustive()
    }
}

impl HashColumn {
    fn open(
        bytes: &SegmentBytes,
        meta: &Section,
        sections: &[Section],
        max_doc: u32,
        integrity: Integrity,
    ) -> Result<HashColumn> {
        let raw: &[u8] = (**bytes).as_ref();
        let corrupt = |reason: String| Error::corrupt(meta.name(), reason);
        Checked::new(meta.clone()).check(raw)?;
        let found: Meta = serde_json::from_slice(&raw[meta.range()])
            .map_err(|error| corrupt(error.to_string()))?;
        let code_len = CodeLen::new(found.bits).map_err(|error| corrupt(error.to_string()))?;
        let n_codes = found.n_codes;
        if n_codes > max_doc as usize {
            return Err(corrupt(format!("{n_codes} codes for {max_doc} documents")));
        }

        // Exactly one section of a kind, of exactly the length that the meta section implies.
        let one = |kind: SectionKind, param: u32, len: usize| -> Result<Checked> {
            let mut found = sections.iter().filter(|section| {
                section.field_id == meta.field_id && section.kind == kind && section.param == param
            });
            let section = match (found.next(), found.next()) {
                (Some(section), None) => section,
                (None, _) => {
                    return Err(corrupt(format!("the {} section is missing", kind.name())));
                }
                (Some(section), Some(_)) => {
                    return Err(corrupt(format!("two sections {}", section.name())));
                }
            };
            if section.len != len {
                let reason = format!("expected {len} bytes, found {}", section.len);
                return Err(Error::corrupt(section.name(), reason));
            }
            Ok(Checked::new(section.clone()))
        };
        let block_bytes = |n_codes: usize| {
            n_codes
                .div_ceil(BLOCK_ROWS)
                .checked_mul(BLOCK_ROWS * code_len.words() * 8)
                .ok_or_else(|| corrupt(format!("{n_codes} codes overflow")))
        };
        let has = |kind: SectionKind| {
            let is_one =
                |section: &Section| section.field_id == meta.field_id && section.kind == kind;
            sections.iter().any(is_one)
        };
        let kind = match (has(SectionKind::CodePlanes), has(SectionKind::Codes)) {
            (true, true) => return Err(corrupt("codes both in blocks and in planes".to_owned())),
            (true, false) if code_len.words() == 1 => {
                return Err(corrupt(format!("codes of {code_len} bits in planes")));
            }
            (true, false) => SectionKind::CodePlanes,
            (false, _) => SectionKind::Codes,
        };
        let codes = one(kind, 0, block_bytes(n_codes)?)?;
        let doc_ids = match n_codes == max_doc as usize {
            true => None,
            false => Some(one(SectionKind::DocIds, 0, n_codes * 4)?),
        };
        let mih = match found.mih {
            None => None,
            Some(params) => {
                code_len
                    .check(params.code_len())
                    .map_err(|error| corrupt(error.to_string()))?;
                let offsets = |table_idx: usize| {
                    let n_offsets = (1usize << params.width(table_idx)) + 1;
                    one(SectionKind::MihOffsets, table_idx as u32, n_offsets * 4)
                };
                let n_tables = params.n_substrings();
                let ids_bytes = n_codes.saturating_mul(4);
                let tables = (0..n_tables).map(|table_idx| {
                    let ids = one(SectionKind::MihIds, table_idx as u32, ids_bytes)?;
                    Ok([offsets(table_idx)?, ids])
                });
                let copy_bytes = block_bytes(n_codes)?;
                let copies = (0..n_tables)
                    .map(|table_idx| one(SectionKind::MihCodes, table_idx as u32, copy_bytes));
                let tables = tables.collect::<Result<_>>()?;
                let copies = match has(SectionKind::MihCodes) {
                    false => None,
                    true if !suits_copies(code_len) => {
                        return Err(corrupt(format!("MIH codes of {code_len} bits")));
                    }
                    true => Some(copies.collect::<Result<_>>()?),
                };
                Some(MihSections {
                    params,
                    tables,
                    copies,
                })
            }
        };
        let order = match found.clusters.is_some() {
            false => None,
            true => {
                let packed = RowOrder::packed_bytes(n_codes);
                Some(OrderSections {
                    row_ranks: one(SectionKind::RowRanks, 0, packed)?,
                    rank_rows: one(SectionKind::RankRows, 0, packed)?,
                })
            }
        };
        let clusters = match found.clusters {
            None => None,
            Some(ClusterMeta {
                n_clusters,
                n_shells,
            }) => {
                // A cluster has a row, and no more shells than rows and distances.
                let shells_max = n_clusters.saturating_mul(code_len.bits() + 2);
                if n_clusters == 0 || n_clusters > n_codes || n_shells > shells_max {
                    let reason =
                        format!("{n_clusters} clusters with {n_shells} shells of {n_codes} codes");
                    return Err(corrupt(reason));
                }
                Some(ClusterSections {
                    n_clusters,
                    centroids: one(SectionKind::Centroids, 0, block_bytes(n_clusters)?)?,
                    table: one(SectionKind::Clusters, 0, (2 * n_clusters + 1) * 4)?,
                    shells: one(SectionKind::Shells, 0, n_shells * 4)?,
                })
            }
        };
        let (bytes, model_id) = (bytes.clone(), found.model_id);
        let field_id = meta.field_id;
        Ok(HashColumn {
            bytes,
            field_id,
            code_len,
            model_id,
            n_codes,
            max_doc,
            integrity,
            codes,
            doc_ids,
            mih,
            clusters,
            order,
        })
    }

    /// The field's id in the schema.
    pub fn field_id(&self) -> u32 {
        self.field_id
    }

    /// The length of every code.
    pub fn code_len(&self) -> CodeLen {
        self.code_len
    }

    /// The model that made the codes, if the schema named one when they were written.
    pub fn model_id(&self) -> Option<&str> {
        self.model_id.as_deref()
    }

    /// Documents with a code, deleted ones included.
    pub fn n_codes(&self) -> usize {
        self.n_codes
    }

    /// Bits of each substring, if the segment has multi-index hashing tables.
    pub fn mih_params(&self) -> Option<&MihParams> {
        self.mih.as_ref().map(|mih| &mih.params)
    }

    /// The number of clusters, if the segment has them.
    pub fn n_clusters(&self) -> Option<usize> {
        self.clusters.as_ref().map(|clusters| clusters.n_clusters)
    }

    /// Bytes of the field's sections.
    pub fn size_bytes(&self) -> ColumnBytes {
        let size = |checked: &Checked| checked.section.len;
        let order: usize = (self.order.iter())
            .flat_map(OrderSections::all)
            .map(size)
            .sum();
        let clusters = self.clusters.as_ref().map(|clusters| {
            let sections = clusters.all().map(size);
            sections.iter().sum::<usize>() + order
        });
        let mih = self.mih.iter().flat_map(MihSections::all).map(size);
        ColumnBytes {
            codes: size(&self.codes),
            doc_ids: self.doc_ids.as_ref().map_or(0, size),
            clusters: clusters.unwrap_or(0),
            mih: mih.sum(),
        }
    }

    fn raw(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn section_bytes(&self, section: &Checked) -> &[u8] {
        &self.raw()[section.section.range()]
    }

    fn words(&self, section: &Checked) -> &[u32] {
        bytemuck::cast_slice(self.section_bytes(section))
    }

    fn checked(&self, section: &Checked) -> Result<()> {
        match self.integrity {
            Integrity::FirstUse => section.check(self.raw()),
            Integrity::Structure => Ok(()),
        }
    }

    /// The codes, row by row.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn codes(&self) -> Result<CodesRef<'_>> {
        self.checked(&self.codes)?;
        let words = bytemuck::cast_slice(&self.raw()[self.codes.section.range()]);
        match self.codes.section.kind {
            SectionKind::CodePlanes => CodesRef::from_planes(self.code_len, self.n_codes, words),
            _ => CodesRef::from_blocks(self.code_len, self.n_codes, words),
        }
    }

    /// The documents with a code, ascending; `None` if all have one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn doc_ids(&self) -> Result<Option<&[u32]>> {
        let Some(doc_ids) = &self.doc_ids else {
            return Ok(None);
        };
        self.checked(doc_ids)?;
        let found = self.words(doc_ids);
        if found.last().is_some_and(|&last| last >= self.max_doc) {
            let reason = format!("expected document ids below {}", self.max_doc);
            return Err(Error::corrupt(doc_ids.section.name(), reason));
        }
        Ok(Some(found))
    }

    /// The order of rows; `None` if they ascend by document.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn order(&self) -> Result<Option<RowOrder<'_>>> {
        let Some(order) = &self.order else {
            return Ok(None);
        };
        self.checked(&order.row_ranks)?;
        self.checked(&order.rank_rows)?;
        self.row_order(order).map(Some)
    }

    fn row_order(&self, order: &OrderSections) -> Result<RowOrder<'_>> {
        RowOrder::new(
            self.section_bytes(&order.row_ranks),
            self.section_bytes(&order.rank_rows),
            self.n_codes,
        )
    }

    /// Codes and documents, as merges read them.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn source(&self) -> Result<RowSource<'_>> {
        Ok(RowSource {
            codes: self.codes()?,
            doc_ids: self.doc_ids()?,
            order: self.order()?,
            centroids: self.clusters()?.map(|view| view.centroids()),
        })
    }

    /// The code of a document, or `None` if it has none.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn code(&self, doc_id: u32) -> Result<Option<HashCode>> {
        let source = self.source()?;
        Ok(source.row_of(doc_id)?.map(|row| source.codes.get(row)))
    }

    /// The clusters, if the segment has them.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn clusters(&self) -> Result<Option<ClusterView<'_>>> {
        let Some(clusters) = &self.clusters else {
            return Ok(None);
        };
        for section in [&clusters.centroids, &clusters.table, &clusters.shells] {
            self.checked(section)?;
        }
        self.cluster_view(clusters).map(Some)
    }

    fn cluster_view(&self, clusters: &ClusterSections) -> Result<ClusterView<'_>> {
        let blocks = bytemuck::cast_slice(&self.raw()[clusters.centroids.section.range()]);
        let centroids = CodesRef::from_blocks(self.code_len, clusters.n_clusters, blocks)?;
        let (extents, starts) = self.words(&clusters.table).split_at(clusters.n_clusters);
        ClusterView::new(centroids, extents, starts, self.words(&clusters.shells))
    }

    /// What engines search: codes, documents and, if `with_tables`, clusters and MIH tables.
    /// `address_base` is added to document ids to make addresses.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn rows(&self, address_base: u64, with_tables: bool) -> Result<SegmentRows<'_>> {
        let mih = match &self.mih {
            Some(mih) if with_tables => {
                for section in mih.all() {
                    self.checked(section)?;
                }
                Some(self.mih_view(mih)?)
            }
            _ => None,
        };
        Ok(SegmentRows {
            codes: self.codes()?,
            doc_ids: self.doc_ids()?,
            order: self.order()?,
            mih,
            clusters: if with_tables { self.clusters()? } else { None },
            address_base,
            threads: 1,
        })
    }

    fn mih_view<'a>(&'a self, mih: &'a MihSections) -> Result<MihView<'a>> {
        let tables = mih.tables.iter().enumerate();
        let tables = tables.map(|(table_idx, [offsets, ids])| {
            let width = mih.params.width(table_idx);
            MihTable::from_parts(self.words(offsets), self.words(ids), self.n_codes, width)
        });
        let view = MihView::new(&mih.params, tables.collect::<Result<Vec<_>>>()?)?;
        match &mih.copies {
            None => Ok(view),
            Some(copies) => view.with_copies(
                copies
                    .iter()
                    .map(|copy| bytemuck::cast_slice(self.section_bytes(copy))),
            ),
        }
    }

    /// Compares every checksum of the field, the order of its documents, the zero padding of its codes
    /// and every table with the codes.
    ///
    /// # Errors
    /// `Corrupt`, naming the first bad section.
    pub fn verify(&self) -> Result<()> {
        let raw = self.raw();
        self.codes.check(raw)?;
        let codes = self.codes()?;
        if !codes.is_padded_with_zeros() {
            return Err(Error::corrupt(
                self.codes.section.name(),
                "expected zero padding, found set bits",
            ));
        }
        if let Some(doc_ids) = &self.doc_ids {
            doc_ids.check(raw)?;
            let found = self.words(doc_ids);
            let inside = found.last().is_none_or(|&last| last < self.max_doc);
            if !inside || !found.is_sorted_by(|a, b| a < b) {
                let reason = format!("expected ascending document ids below {}", self.max_doc);
                return Err(Error::corrupt(doc_ids.section.name(), reason));
            }
        }
        let order = match &self.order {
            None => None,
            Some(order) => {
                for section in order.all() {
                    section.check(raw)?;
                }
                let order = self.row_order(order)?;
                order.verify()?;
                Some(order)
            }
        };
        if let Some(clusters) = &self.clusters {
            for section in clusters.all() {
                section.check(raw)?;
            }
            let view = self.cluster_view(clusters)?;
            view.verify(codes)?;
            if let Some(order) = &order {
                view.verify_order(order)?;
            }
        }
        let Some(mih) = &self.mih else { return Ok(()) };
        for section in mih.all() {
            section.check(raw)?;
        }
        self.mih_view(mih)?.verify(codes)
    }

    /// Where each large section of the file lies, by name: for tests and tools that damage or dump it.
    pub fn sections(&self) -> Vec<(String, Range<usize>)> {
        [&self.codes]
            .into_iter()
            .chain(&self.doc_ids)
            .chain(self.clusters.iter().flat_map(ClusterSections::all))
            .chain(self.order.iter().flat_map(OrderSections::all))
            .chain(self.mih.iter().flat_map(MihSections::all))
            .map(|checked| (checked.section.name(), checked.section.range()))
            .collect()
    }
}
