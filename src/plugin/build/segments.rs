//! The segments of a build: few while it runs, and as many as were asked for at its end.

use std::path::PathBuf;

use tantivy::Directory;
use tantivy::index::SegmentId;

use crate::error::Result;

use super::{IndexBuilder, SegmentTarget};

/// Fewer records than this are not worth a commit.
const COMMIT_RECORDS_MIN: u64 = 64;
/// Segments of about one size that are merged during a build.
const MERGE_FAN: usize = 16;

struct Segment {
    id: SegmentId,
    docs: u64,
    bytes: u64,
    has_deletes: bool,
}

impl IndexBuilder {
    /// Records until the next commit. Segments cannot be split, so if several are asked for, each commit
    /// adds a small part of what there is.
    pub(super) fn records_a_commit(&self) -> Result<u64> {
        let wanted = match self.options.segments {
            SegmentTarget::Count(0 | 1) => u64::MAX,
            SegmentTarget::Count(count) => self.progress.position / (2 * count as u64),
            SegmentTarget::Bytes(bytes) => {
                let segments = self.segments()?;
                let docs: u64 = segments.iter().map(|segment| segment.docs).sum();
                let held: u64 = segments.iter().map(|segment| segment.bytes).sum();
                // Nothing is known of an empty index but that documents take hundreds of bytes.
                let bytes_a_doc = held.checked_div(docs).unwrap_or(0).max(256);
                bytes / 4 / bytes_a_doc
            }
        };
        let most = self.options.commit_records.max(1);
        Ok(wanted.max(COMMIT_RECORDS_MIN).min(most))
    }

    fn segments(&self) -> Result<Vec<Segment>> {
        let directory = self.index.directory();
        let meta = self.index.load_metas()?;
        let files = meta.list_segment_files();
        let segment = |of: &tantivy::SegmentMeta| {
            let stem = of.id().uuid_string();
            let mine = files
                .iter()
                .filter(|path| path.to_string_lossy().starts_with(&stem));
            // tantivy lists files that may be; those that are not have no length.
            let len = |path: &PathBuf| directory.get_file_handle(path).map_or(0, |file| file.len());
            Segment {
                id: of.id(),
                docs: u64::from(of.num_docs()),
                bytes: mine.map(len).sum::<usize>() as u64,
                has_deletes: of.has_deletes(),
            }
        };
        Ok(meta.segments.iter().map(segment).collect())
    }

    /// Keeps the number of segments small during a long build, and the segments small enough to be put
    /// together to the target.
    pub(super) fn compact(&self) -> Result<()> {
        loop {
            let segments = self.segments()?;
            if segments.len() < MERGE_FAN {
                return Ok(());
            }
            let total: u64 = segments.iter().map(|segment| segment.docs).sum();
            let fits = |group: &[&Segment]| match self.options.segments {
                SegmentTarget::Count(0 | 1) => true,
                SegmentTarget::Count(count) => {
                    let docs: u64 = group.iter().map(|segment| segment.docs).sum();
                    docs <= total / (2 * count as u64)
                }
                SegmentTarget::Bytes(bytes) => {
                    group.iter().map(|segment| segment.bytes).sum::<u64>() <= bytes / 4
                }
            };
            // Segments of one tier differ in size by a factor of 8 at most, so a document is merged once a
            // tier.
            let tier = |segment: &Segment| segment.docs.max(1).ilog2() / 3;
            let group = (0..22).find_map(|wanted| {
                let of_tier = segments.iter().filter(|segment| tier(segment) == wanted);
                let group: Vec<&Segment> = of_tier.take(MERGE_FAN).collect();
                (group.len() == MERGE_FAN && fits(&group)).then_some(group)
            });
            let Some(group) = group else { return Ok(()) };
            let ids: Vec<SegmentId> = group.iter().map(|segment| segment.id).collect();
            self.writer.merge_segments(&ids)?;
        }
    }

    pub(super) fn merge_to_target(&self) -> Result<()> {
        let segments = self.segments()?;
        let by_bytes = matches!(self.options.segments, SegmentTarget::Bytes(_));
        let weight = |segment: &Segment| match by_bytes {
            true => segment.bytes,
            false => segment.docs,
        };
        let n_bins = match self.options.segments {
            SegmentTarget::Count(count) => count.max(1),
            SegmentTarget::Bytes(bytes) => {
                let total: u64 = segments.iter().map(weight).sum();
                total.div_ceil(bytes.max(1)).max(1) as usize
            }
        };
        // The largest first, each to the bin with the least in it.
        let mut order: Vec<usize> = (0..segments.len()).collect();
        order.sort_by_key(|&idx| std::cmp::Reverse(weight(&segments[idx])));
        let mut bins: Vec<(u64, Vec<usize>)> = vec![(0, Vec::new()); n_bins];
        for idx in order {
            let bin = bins.iter_mut().min_by_key(|(held, _)| *held);
            let (held, members) = bin.expect("there is at least one bin");
            *held += weight(&segments[idx]);
            members.push(idx);
        }
        for (_, mut members) in bins {
            // In the order of the input, as far as the index knows it.
            members.sort_unstable();
            let deletes = members.iter().any(|&idx| segments[idx].has_deletes);
            if members.len() > 1 || deletes {
                let ids: Vec<SegmentId> = members.iter().map(|&idx| segments[idx].id).collect();
                self.writer.merge_segments(&ids)?;
            }
        }
        Ok(())
    }
}
