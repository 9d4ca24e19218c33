//! Near duplicates of an index: all pairs of documents within a radius, or the groups they form.
//!
//! The codes of live documents are gathered from all segments and joined with themselves in memory.
//! Groups and counts join distinct codes and multiply out, so that a hundred thousand copies of one code
//! are one search. Decides nothing about which duplicate should go, and deletes nothing.

mod join;

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use serde::Serialize;
use tantivy::schema::Field;
use tantivy::{DocAddress, Searcher};

use crate::code::{Codes, RowOrder};
use crate::engine::{EngineChoice, SearchStats};
use crate::error::{ErrorKind, Result};
use crate::plugin::dedup::join::{CodeSet, SelfJoin, row_of};
use crate::plugin::field::HashFieldOptions;
use crate::plugin::query::check_distance;
use crate::plugin::{OpenColumn, plugin_of};

/// A search for near duplicates in one hash field.
///
/// Exact, whatever the engine, the threads and the segments: every two live documents whose codes differ
/// in at most `radius` bits are found. Documents without a code are passed over.
///
/// Time: a range search for each code ([`pairs`](Dedup::pairs)) or each distinct code
/// ([`groups`](Dedup::groups), [`count`](Dedup::count)). Memory: the codes once more, and about 40 bytes
/// for each document beside the structure that is searched; never the pairs.
#[derive(Clone)]
pub struct Dedup {
    field: Field,
    radius: u32,
    engine: EngineChoice,
    threads: usize,
    progress: Option<Arc<dyn Fn(DedupProgress) + Send + Sync>>,
}

impl fmt::Debug for Dedup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedup")
            .field("field", &self.field)
            .field("radius", &self.radius)
            .field("engine", &self.engine)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// How far a search for near duplicates is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupProgress {
    /// Codes whose neighbors are known.
    pub searched: u64,
    /// Codes to search for: all of them, or the distinct ones.
    pub codes: u64,
}

/// Two documents with near codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The document of lower address.
    pub left: DocAddress,
    /// The document of higher address.
    pub right: DocAddress,
    /// Bits in which their codes differ.
    pub distance: u32,
}

/// What a search for near duplicates went over and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DedupCounts {
    /// Live documents.
    pub documents: u64,
    /// Live documents with a code.
    pub codes: u64,
    /// Codes that differ.
    pub distinct: u64,
    /// Pairs of documents within the radius, copies of one code included.
    pub pairs: u64,
    /// What the searches touched, over all of them.
    pub stats: SearchStats,
}

/// A document of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The document, valid with the searcher that was asked.
    pub address: DocAddress,
    /// Bits that differ from the group's representative. May exceed the radius: near documents are in one
    /// group, and so are those near to them.
    pub distance: u32,
}

/// Documents that are near duplicates of each other, directly or over others: the connected components
/// of the pairs, without documents that have no near one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    members: Vec<Member>,
    /// Where each group ends among the members.
    ends: Vec<usize>,
    counts: DedupCounts,
}

impl Groups {
    /// The groups in ascending order of their first document, each in ascending order of address. The
    /// first member represents its group.
    pub fn iter(&self) -> impl Iterator<Item = &[Member]> {
        (0..self.ends.len()).map(|group| &self.members[self.range(group)])
    }

    /// The number of groups.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if no two documents are near.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Documents that could go: all members but the representatives.
    pub fn duplicates(&self) -> usize {
        self.members.len() - self.ends.len()
    }

    /// What was gone over.
    pub fn counts(&self) -> &DedupCounts {
        &self.counts
    }

    fn range(&self, group: usize) -> Range<usize> {
        let start = group.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[group]
    }
}

impl Dedup {
    /// All documents within `radius` bits of each other in a hash field; 0 finds equal codes.
    pub fn new(field: Field, radius: u32) -> Dedup {
        Dedup {
            field,
            radius,
            engine: EngineChoice::default(),
            threads: 0,
            progress: None,
        }
    }

    /// The engine to search with. Every engine finds the same.
    pub fn engine(mut self, engine: EngineChoice) -> Dedup {
        self.engine = engine;
        self
    }

    /// Threads that search; 0, as by default, for as many as the machine has cores.
    pub fn threads(mut self, threads: usize) -> Dedup {
        self.threads = threads;
        self
    }

    /// Is told now and then how far the search is, on the thread that called it.
    pub fn progress(mut self, progress: impl Fn(DedupProgress) + Send + Sync + 'static) -> Dedup {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Hands `each` every pair once, in ascending order of (left, right), until it breaks. Returns the
    /// counts; the pairs among them are those handed over.
    ///
    /// The pairs are never in memory together, so that there may be any number of them.
    ///
    /// # Errors
    /// `InvalidArgument` for a radius past the length or a field that holds no codes; `Corrupt`;
    /// `Unsupported` for 2^32 codes or more.
    pub fn pairs(
        &self,
        searcher: &Searcher,
        mut each: impl FnMut(Pair) -> ControlFlow<()>,
    ) -> Result<DedupCounts> {
        let gathered = self.gather(searcher)?;
        let mut counts = gathered.counts(searcher);
        counts.distinct = distinct(&gathered.codes).n_distinct() as u64;
        let Gathered { codes, addresses } = gathered;
        let set = CodeSet::build(codes, self.engine, self.radius)?;
        let mut pairs = 0;
        counts.stats = self.join(&set, true, |near| {
            pairs += 1;
            each(Pair {
                left: addresses[near.left as usize],
                right: addresses[near.right as usize],
                distance: near.distance,
            })
        })?;
        counts.pairs = pairs;
        Ok(counts)
    }

    /// Counts the pairs, without handing them over one by one.
    ///
    /// # Errors
    /// As [`pairs`](Dedup::pairs).
    pub fn count(&self, searcher: &Searcher) -> Result<DedupCounts> {
        let gathered = self.gather(searcher)?;
        let mut counts = gathered.counts(searcher);
        let (_, copies, set) = self.distinct_set(gathered.codes)?;
        self.count_pairs(&set, &copies, &mut counts, |_, _| ())?;
        Ok(counts)
    }

    /// Finds all groups of near duplicates.
    ///
    /// # Errors
    /// As [`pairs`](Dedup::pairs).
    pub fn groups(&self, searcher: &Searcher) -> Result<Groups> {
        let gathered = self.gather(searcher)?;
        let mut counts = gathered.counts(searcher);
        let (ids, copies, set) = self.distinct_set(gathered.codes)?;
        let mut forest = Forest::new(copies.len());
        self.count_pairs(&set, &copies, &mut counts, |left, right| {
            forest.join(left, right)
        })?;

        // Members are placed group by group, as documents and so codes ascend.
        let mut sizes = vec![0; copies.len()];
        for (id, &copies) in (0..).zip(&copies) {
            sizes[forest.root(id) as usize] += copies as usize;
        }
        let mut ends = Vec::new();
        let mut n_members = 0;
        for size in &mut sizes {
            if *size > 1 {
                ends.push(n_members + *size);
                // From here on the place of the group's next member.
                n_members += std::mem::replace(size, n_members);
            } else {
                *size = usize::MAX;
            }
        }
        let rows = set.rows()?;
        let nowhere = Member {
            address: DocAddress::new(0, 0),
            distance: 0,
        };
        let mut members = vec![nowhere; n_members];
        for (&id, &address) in ids.iter().zip(&gathered.addresses) {
            let root = forest.root(id);
            let place = &mut sizes[root as usize];
            if *place == usize::MAX {
                continue;
            }
            let distance = match id == root {
                true => 0,
                false => {
                    let representative = rows.codes.get(row_of(&rows, root as usize)?);
                    let row = row_of(&rows, id as usize)?;
                    rows.codes.distance(row, representative.words())
                }
            };
            members[*place] = Member { address, distance };
            *place += 1;
        }
        Ok(Groups {
            members,
            ends,
            counts,
        })
    }

    /// Distinct codes in order of their first documents: which of them each document has, how often each
    /// occurs, and what to search.
    fn distinct_set(&self, codes: Codes) -> Result<(Vec<u32>, Vec<u32>, CodeSet)> {
        let Distinct { ids, copies } = distinct(&codes);
        let codes = match copies.len() == codes.n_codes() {
            true => codes,
            false => {
                let mut kept = Codes::with_capacity(codes.code_len(), copies.len());
                for (place, &id) in ids.iter().enumerate() {
                    if id as usize == kept.n_codes() {
                        kept.push_row(&codes, place);
                    }
                }
                kept
            }
        };
        // Distinct codes are never within radius 0, so nothing is built to search them.
        let engine = match self.radius {
            0 => EngineChoice::Scan,
            _ => self.engine,
        };
        let set = CodeSet::build(codes, engine, self.radius)?;
        Ok((ids, copies, set))
    }

    /// Joins distinct codes and counts the pairs of documents.
    fn count_pairs(
        &self,
        set: &CodeSet,
        copies: &[u32],
        counts: &mut DedupCounts,
        mut near: impl FnMut(u32, u32),
    ) -> Result<()> {
        let copies = |id: u32| u64::from(copies[id as usize]);
        counts.distinct = set.rows()?.codes.n_codes() as u64;
        let mut pairs: u64 = (0..counts.distinct as u32)
            .map(|id| copies(id) * (copies(id) - 1) / 2)
            .sum();
        if self.radius > 0 {
            counts.stats = self.join(set, false, |pair| {
                pairs += copies(pair.left) * copies(pair.right);
                near(pair.left, pair.right);
                ControlFlow::Continue(())
            })?;
        }
        counts.pairs = pairs;
        Ok(())
    }

    fn join(
        &self,
        set: &CodeSet,
        ordered: bool,
        mut each: impl FnMut(&join::Near) -> ControlFlow<()>,
    ) -> Result<SearchStats> {
        let rows = set.rows()?;
        let threads = match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |threads| threads.get()),
            threads => threads,
        };
        let mut progress = DedupProgress {
            searched: 0,
            codes: rows.codes.n_codes() as u64,
        };
        let join = SelfJoin::new(&rows, self.engine, self.radius, ordered, threads)?;
        join.run(|pairs, n_queries| {
            pairs.iter().try_for_each(&mut each)?;
            progress.searched += n_queries as u64;
            if let Some(told) = &self.progress {
                told(progress);
            }
            ControlFlow::Continue(())
        })
    }

    /// The codes of all live documents.
    fn gather(&self, searcher: &Searcher) -> Result<Gathered> {
        let options = HashFieldOptions::of(searcher.schema(), self.field)?;
        let code_len = options.code_len()?;
        check_distance(code_len, self.radius)?;
        let plugin = plugin_of(searcher.index());
        if let Some(plugin) = &plugin {
            plugin.prune(searcher.segment_readers());
        }
        let mut gathered = Gathered {
            codes: Codes::new(code_len),
            addresses: Vec::new(),
        };
        for (segment_ord, reader) in (0..).zip(searcher.segment_readers()) {
            let column = OpenColumn::open(plugin.as_deref(), reader, self.field, &options)?;
            if column.n_codes() == 0 {
                continue;
            }
            let about = OpenColumn::about(reader);
            let rows = column.rows(0, false).map_err(&about)?;
            let n_codes = rows.codes.n_codes();
            if gathered.addresses.len() + n_codes > u32::MAX as usize {
                return Err(ErrorKind::Unsupported(format!(
                    "near duplicates are numbered in 32 bits, got more than {} codes; search parts of the index",
                    u32::MAX
                ))
                .into());
            }
            let alive = reader.alive_bitset();
            for rank in 0..n_codes {
                let row = row_of(&rows, rank).map_err(&about)?;
                // Not from the rank alone: the map back is compared with it in a damaged file.
                let doc_id = rows.doc_id(row).ok_or_else(|| about(RowOrder::damaged()))?;
                if alive.is_none_or(|alive| alive.is_alive(doc_id)) {
                    gathered.codes.push_row(&rows.codes, row);
                    gathered
                        .addresses
                        .push(DocAddress::new(segment_ord, doc_id));
                }
            }
        }
        Ok(gathered)
    }
}

/// The codes of live documents, ascending by address.
struct Gathered {
    codes: Codes,
    addresses: Vec<DocAddress>,
}

impl Gathered {
    fn counts(&self, searcher: &Searcher) -> DedupCounts {
        DedupCounts {
            documents: searcher.num_docs(),
            codes: self.addresses.len() as u64,
            ..DedupCounts::default()
        }
    }
}

/// Which of the distinct codes each code is. They are numbered in the order in which they first occur.
struct Distinct {
    ids: Vec<u32>,
    /// How often each occurs.
    copies: Vec<u32>,
}

impl Distinct {
    fn n_distinct(&self) -> usize {
        self.copies.len()
    }
}

fn distinct(codes: &Codes) -> Distinct {
    let n_words = codes.code_len().words();
    let words = |place: u32| (0..n_words).map(move |word_idx| codes.word(place as usize, word_idx));
    // A code of one word is its own key. Wider ones with equal keys are compared.
    let key = |place| {
        words(place).fold(0, |key: u64, word| {
            (key ^ word).wrapping_mul(KEY_MIX).rotate_left(29)
        })
    };
    let mut keyed: Vec<(u64, u32)> = (0..codes.n_codes() as u32)
        .map(|place| {
            (
                if n_words == 1 {
                    codes.word(place as usize, 0)
                } else {
                    key(place)
                },
                place,
            )
        })
        .collect();
    keyed.sort_unstable();
    // First the place of the first equal code, then its number.
    let mut ids = vec![0; codes.n_codes()];
    for run in keyed.chunk_by_mut(|a, b| a.0 == b.0) {
        let first = run[0].1;
        if n_words > 1 && run.iter().any(|&(_, place)| !words(place).eq(words(first))) {
            run.sort_unstable_by(|a, b| words(a.1).cmp(words(b.1)).then(a.1.cmp(&b.1)));
        }
        for equal in run.chunk_by(|a, b| n_words == 1 || words(a.1).eq(words(b.1))) {
            equal
                .iter()
                .for_each(|&(_, place)| ids[place as usize] = equal[0].1);
        }
    }
    drop(keyed);
    let mut copies = Vec::new();
    for place in 0..ids.len() {
        let first = ids[place] as usize;
        if first == place {
            ids[place] = copies.len() as u32;
            copies.push(1);
        } else {
            ids[place] = ids[first];
            copies[ids[first] as usize] += 1;
        }
    }
    Distinct { ids, copies }
}

/// An odd number without pattern, from the golden ratio.
const KEY_MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Disjoint sets of numbers. The root of a set is its smallest number.
struct Forest {
    parents: Vec<u32>,
}

impl Forest {
    fn new(n: usize) -> Forest {
        Forest {
            parents: (0..n as u32).collect(),
        }
    }

    fn root(&mut self, mut number: u32) -> u32 {
        while self.parents[number as usize] != number {
            let parent = self.parents[number as usize];
            self.parents[number as usize] = self.parents[parent as usize];
            number = parent;
        }
        number
    }

    fn join(&mut self, left: u32, right: u32) {
        let (left, right) = (self.root(left), self.root(right));
        self.parents[left.max(right) as usize] = left.min(right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{CodeLen, HashCode};

    #[test]
    fn wide_codes_of_one_key_are_told_apart() {
        // Codes whose second word undoes what the first did to the key.
        let len = CodeLen::new(128).unwrap();
        let code = |first: u64| {
            let after = first.wrapping_mul(KEY_MIX).rotate_left(29);
            HashCode::from_words(len, &[first, after ^ 7]).unwrap()
        };
        let mut codes = Codes::new(len);
        for first in [5, 9, 5, 1, 9, 9, 5, 2] {
            codes.push(&code(first)).unwrap();
        }
        let Distinct { ids, copies } = distinct(&codes);
        assert_eq!(ids, [0, 1, 0, 2, 1, 1, 0, 3]);
        assert_eq!(copies, [3, 3, 1, 1]);
    }

    #[test]
    fn sets_are_rooted_in_their_smallest_number() {
        let mut forest = Forest::new(8);
        for (left, right) in [(6, 7), (3, 6), (1, 2), (7, 2), (4, 5)] {
            forest.join(left, right);
        }
        let roots: Vec<u32> = (0..8).map(|number| forest.root(number)).collect();
        assert_eq!(roots, [0, 1, 1, 1, 4, 4, 1, 1]);
    }
}
