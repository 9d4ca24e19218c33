//! Which thread searches which segments. Threads that share one query spare each other work through the
//! bound of what any of them has found.

use std::sync::atomic::{AtomicU32, Ordering};

use tantivy::Searcher;

use crate::code::CodeLen;
use crate::error::Result;
use crate::scan::{THREAD_BYTES, on_threads};
use crate::topk::TopK;

/// Segments, by ordinal, shared out among threads.
pub(crate) struct Shares {
    segments: Vec<Vec<u32>>,
    /// Threads that the search of each single segment may take.
    pub(crate) threads_each: usize,
}

impl Shares {
    /// At most as many shares as threads, each worth a thread and none much larger than the others. Where
    /// one segment has most of the codes, one share: its search takes the threads.
    pub(crate) fn new(searcher: &Searcher, code_len: CodeLen, threads: usize) -> Shares {
        let n_segments = searcher.segment_readers().len() as u32;
        if threads == 1 || n_segments < 2 {
            return Shares {
                segments: vec![(0..n_segments).collect()],
                threads_each: threads,
            };
        }
        let mut by_size: Vec<(usize, u32)> = (searcher.segment_readers().iter().zip(0..))
            .map(|(reader, ord)| (reader.max_doc() as usize * code_len.words() * 8, ord))
            .collect();
        let total: usize = by_size.iter().map(|(bytes, _)| bytes).sum();
        by_size.sort_unstable_by(|a, b| b.cmp(a));
        let largest = by_size.first().map_or(0, |(bytes, _)| *bytes).max(1);
        let n_shares = threads
            .min(by_size.len())
            .min(total / THREAD_BYTES)
            .min(total * 3 / 2 / largest)
            .max(1);
        let mut shares: Vec<(usize, Vec<u32>)> = vec![(0, Vec::new()); n_shares];
        for (bytes, ord) in by_size {
            if let Some((sum, segments)) = shares.iter_mut().min_by_key(|(sum, _)| *sum) {
                *sum += bytes;
                segments.push(ord);
            }
        }
        let mut segments: Vec<Vec<u32>> = shares.into_iter().map(|(_, share)| share).collect();
        segments.iter_mut().for_each(|share| share.sort_unstable());
        Shares {
            segments,
            threads_each: (threads / n_shares).max(1),
        }
    }

    /// Calls `search` with each share, on threads if there are several; results in the order of shares.
    pub(crate) fn search<T: Send>(
        self,
        search: impl Fn(&[u32]) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        on_threads(self.segments, |segments| search(&segments))
            .into_iter()
            .collect()
    }
}

/// The least bound that any thread of a search has reached.
pub(crate) struct SharedBound(AtomicU32);

impl SharedBound {
    pub(crate) fn new(max_distance: u32) -> SharedBound {
        SharedBound(AtomicU32::new(max_distance))
    }

    /// Tells the others of this top's bound, and it of theirs.
    pub(crate) fn meet(&self, top: &mut TopK) {
        // A relaxed bound may be an old one, which is no worse than none.
        let least = self.0.fetch_min(top.bound(), Ordering::Relaxed);
        top.lower(least);
    }
}
