//! Splits: which examples are learned from, searched and searched for.
//!
//! Each is fixed by the data set or a function of the seed, and is described in words in
//! [`Dataset::protocol`](super::Dataset::protocol), which every model and report carries.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Dataset, ExampleSet, Pool};
use crate::error::{Error, Result};
use crate::random;

/// The flag of a row that models learn from.
pub const TRAIN: u8 = 1;
/// The flag of a row that is searched.
pub const DATABASE: u8 = 2;
/// The flag of a row that is searched for.
pub const QUERY: u8 = 4;

/// How a data set is split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Split {
    /// That of the data set: train = database, test = query. A set without one is split by the seed, a
    /// fifth of each class being queries.
    #[default]
    Official,
    /// `KEPT-LEFT`, e.g. `95-5`: the first classes by name only, split as in [`Split::Official`]; the
    /// others are left out (Xu et al., IJCV 2025: CIFAR-100 with 95, 85 and 75 classes).
    FirstClasses {
        /// Classes that are kept.
        kept: usize,
        /// Classes that are left out.
        left: usize,
    },
    /// `shc`: train and test pooled, then 10,000 train, 5,000 query and all others database, drawn with
    /// the seed, not by class, disjoint (SHC, ACM TOIS 2025: CIFAR-100).
    Shc,
    /// `leave-one-out`: each test example is searched for among the other test examples; models learn
    /// from the train ones (Barz and Denzler 2019: CIFAR-100).
    LeaveOneOut,
    /// `1`: pooled; of each class 100 are queries and the others the database, of which 500 are learned
    /// from (CIFAR-10, protocol 1 of OrthoHash and GreedyHash).
    Pooled1,
    /// `2`: pooled; of each class 1,000 are queries, the others train and database (CIFAR-10, protocol 2).
    Pooled2,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::Official => f.write_str("official"),
            Split::FirstClasses { kept, left } => write!(f, "{kept}-{left}"),
            Split::Shc => f.write_str("shc"),
            Split::LeaveOneOut => f.write_str("leave-one-out"),
            Split::Pooled1 => f.write_str("1"),
            Split::Pooled2 => f.write_str("2"),
        }
    }
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Split> {
        Ok(match text {
            "official" => Split::Official,
            "shc" => Split::Shc,
            "leave-one-out" => Split::LeaveOneOut,
            "1" => Split::Pooled1,
            "2" => Split::Pooled2,
            _ => {
                let counts = text
                    .split_once('-')
                    .and_then(|(kept, left)| Some((kept.parse().ok()?, left.parse().ok()?)));
                match counts {
                    Some((kept, left)) if kept > 0 => Split::FirstClasses { kept, left },
                    _ => {
                        return Err(Error::invalid(format!(
                            "expected a split official, shc, leave-one-out, 1, 2 or KEPT-LEFT classes such as 95-5, got {text:?}"
                        )));
                    }
                }
            }
        })
    }
}

/// Examples by split, as rows of the pool, ascending.
#[derive(Default)]
struct Rows {
    train: Vec<u32>,
    database: Vec<u32>,
    query: Vec<u32>,
    protocol: String,
}

/// Splits a pool.
pub(super) fn split(mut pool: Pool, split: Split, seed: u64) -> Result<Dataset> {
    let rows = match split {
        Split::Official => official(&pool, seed)?,
        Split::FirstClasses { kept, left } => first_classes(&mut pool, kept, left, seed)?,
        Split::Shc => shc(&pool, seed)?,
        Split::LeaveOneOut => leave_one_out(&pool)?,
        Split::Pooled1 => pooled(&pool, 100, Some(500), seed)?,
        Split::Pooled2 => pooled(&pool, 1000, None, seed)?,
    };
    let source = Arc::new(pool.source);
    let set = |rows: &[u32]| -> Result<Arc<ExampleSet>> {
        let items = rows.iter().map(|&row| row as usize);
        let (source, rows) = (Arc::clone(&source), rows.to_vec());
        let set = match &pool.label_sets {
            Some(sets) => ExampleSet::with_label_sets(source, rows, sets.subset(items))?,
            None => ExampleSet::new(source, rows, items.map(|row| pool.labels[row]).collect())?,
        };
        Ok(Arc::new(set))
    };
    let train = set(&rows.train)?;
    let database = match rows.database == rows.train {
        true => Arc::clone(&train),
        false => set(&rows.database)?,
    };
    let query = match rows.query == rows.database {
        true => Arc::clone(&database),
        false => set(&rows.query)?,
    };
    for (name, set) in [
        ("train", &train),
        ("database", &database),
        ("query", &query),
    ] {
        if set.is_empty() {
            return Err(Error::invalid(format!("the {name} split is empty")));
        }
    }
    Ok(Dataset {
        name: String::new(),
        protocol: rows.protocol,
        class_names: pool.class_names,
        leave_one_out: split == Split::LeaveOneOut,
        train,
        database,
        query,
        skipped: pool.skipped,
    })
}

/// Rows whose flags have any of `bits`.
fn flagged(flags: &[u8], bits: u8) -> Vec<u32> {
    let rows = flags.iter().enumerate();
    rows.filter(|(_, flags)| **flags & bits != 0)
        .map(|(row, _)| row as u32)
        .collect()
}

fn official(pool: &Pool, seed: u64) -> Result<Rows> {
    let Some(flags) = &pool.flags else {
        return stratified_fifth(pool, seed);
    };
    let [train, database, query] = [TRAIN, DATABASE, QUERY].map(|bit| flagged(flags, bit));
    let unit = pool.unit();
    let protocol = match train == database {
        true => format!(
            "train = database = {} train {unit}, query = {} test {unit}",
            train.len(),
            query.len()
        ),
        false => format!(
            "train = {} {unit}, database = {}, query = {}, as marked in the data set",
            train.len(),
            database.len(),
            query.len()
        ),
    };
    Ok(Rows {
        train,
        database,
        query,
        protocol,
    })
}

/// A fifth of each class, at least one, are queries; the others are both train and database.
fn stratified_fifth(pool: &Pool, seed: u64) -> Result<Rows> {
    let mut rows = Rows::default();
    for (class, of_class) in by_class(pool).iter().enumerate() {
        if of_class.len() < 2 {
            return Err(pool.too_few(class, of_class.len(), 2));
        }
        // A stream a class: adding a class leaves the split of the others alone.
        let order = random::permutation(of_class.len(), seed, class as u64);
        let (query, train) = order.split_at((of_class.len() / 5).max(1));
        rows.query
            .extend(query.iter().map(|&i| of_class[i as usize]));
        rows.train
            .extend(train.iter().map(|&i| of_class[i as usize]));
    }
    rows.query.sort_unstable();
    rows.train.sort_unstable();
    rows.database = rows.train.clone();
    rows.protocol = format!(
        "query = {} {}, a fifth of each class (at least 1) drawn with seed {seed}; train = database = the other {}",
        rows.query.len(),
        pool.unit(),
        rows.train.len()
    );
    Ok(rows)
}

fn first_classes(pool: &mut Pool, kept: usize, left: usize, seed: u64) -> Result<Rows> {
    let n_classes = pool.class_names.len();
    if kept + left != n_classes {
        return Err(Error::invalid(format!(
            "the split {kept}-{left} is of {} classes, the data set has {n_classes}",
            kept + left
        )));
    }
    if !pool.class_names.is_sorted() {
        return Err(Error::invalid(format!(
            "the split {kept}-{left} takes classes by name, those of the data set are not in that order"
        )));
    }
    if pool.label_sets.is_some() {
        return Err(Error::invalid(format!(
            "the split {kept}-{left} is of examples with one class each, the data set has several"
        )));
    }
    let mut rows = official(pool, seed)?;
    for split in [&mut rows.train, &mut rows.database, &mut rows.query] {
        split.retain(|&row| (pool.labels[row as usize] as usize) < kept);
    }
    let unseen = pool.class_names.split_off(kept);
    rows.protocol = format!(
        "the first {kept} classes by name (without {}): train = {} {unit}, database = {}, query = {}, by the data set's own split",
        unseen.join(", "),
        rows.train.len(),
        rows.database.len(),
        rows.query.len(),
        unit = pool.unit(),
    );
    Ok(rows)
}

/// Streams of the seed that no class number reaches.
const SHC_STREAM: u64 = 1 << 40;
const POOLED_STREAM: u64 = 1 << 41;

fn shc(pool: &Pool, seed: u64) -> Result<Rows> {
    const N_TRAIN: usize = 10_000;
    const N_QUERY: usize = 5_000;
    let n_rows = pool.labels.len();
    if n_rows <= N_TRAIN + N_QUERY {
        return Err(Error::invalid(format!(
            "the split shc needs more than {} examples, the data set has {n_rows}",
            N_TRAIN + N_QUERY
        )));
    }
    let mut order = random::permutation(n_rows, seed, SHC_STREAM);
    let mut database = order.split_off(N_TRAIN + N_QUERY);
    let mut query = order.split_off(N_TRAIN);
    let mut train = order;
    for rows in [&mut train, &mut query, &mut database] {
        rows.sort_unstable();
    }
    let protocol = format!(
        "pooled {n_rows} {}, drawn with seed {seed} regardless of class: {N_TRAIN} train, {N_QUERY} query, the other {} database, disjoint",
        pool.unit(),
        database.len()
    );
    Ok(Rows {
        train,
        database,
        query,
        protocol,
    })
}

fn leave_one_out(pool: &Pool) -> Result<Rows> {
    let Some(flags) = &pool.flags else {
        return Err(Error::invalid(
            "the split leave-one-out needs a data set with test examples of its own",
        ));
    };
    let (train, query) = (flagged(flags, TRAIN), flagged(flags, QUERY));
    let protocol = format!(
        "query = database = {} test {unit}, each query left out of its own ranking; train = {} train {unit}",
        query.len(),
        train.len(),
        unit = pool.unit(),
    );
    Ok(Rows {
        train,
        database: query.clone(),
        query,
        protocol,
    })
}

/// The pooled protocols of CIFAR-10: `n_query` of each class are queries, the others the database, and
/// `n_train` of those (or all) are learned from.
fn pooled(pool: &Pool, n_query: usize, n_train: Option<usize>, seed: u64) -> Result<Rows> {
    let mut rows = Rows::default();
    for (class, of_class) in by_class(pool).iter().enumerate() {
        let needed = n_query + n_train.unwrap_or(1);
        if of_class.len() < needed {
            return Err(pool.too_few(class, of_class.len(), needed));
        }
        let order = random::permutation(of_class.len(), seed, POOLED_STREAM + class as u64);
        let (query, database) = order.split_at(n_query);
        let train = &database[..n_train.unwrap_or(database.len())];
        for (split, chosen) in [
            (&mut rows.query, query),
            (&mut rows.database, database),
            (&mut rows.train, train),
        ] {
            split.extend(chosen.iter().map(|&i| of_class[i as usize]));
        }
    }
    for split in [&mut rows.query, &mut rows.database, &mut rows.train] {
        split.sort_unstable();
    }
    rows.protocol = format!(
        "pooled {} {unit}, of each class {n_query} query and the others database, drawn with seed {seed}; {} query, {} database, {} of the database train",
        pool.labels.len(),
        rows.query.len(),
        rows.database.len(),
        rows.train.len(),
        unit = pool.unit(),
    );
    Ok(rows)
}

/// The rows of each class, ascending.
fn by_class(pool: &Pool) -> Vec<Vec<u32>> {
    let mut of_class = vec![Vec::new(); pool.class_names.len()];
    for (row, &label) in pool.labels.iter().enumerate() {
        of_class[label as usize].push(row as u32);
    }
    of_class
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::{PictureShape, Source};

    /// A pool of 1-pixel pictures: of each class `n_train` train and `n_test` test ones.
    fn pool(n_classes: usize, n_train: usize, n_test: usize) -> Pool {
        let mut labels = Vec::new();
        let mut flags = Vec::new();
        for (count, flag) in [(n_train, TRAIN | DATABASE), (n_test, QUERY)] {
            for class in 0..n_classes {
                labels.extend(std::iter::repeat_n(class as u32, count));
                flags.extend(std::iter::repeat_n(flag, count));
            }
        }
        let shape = PictureShape {
            side: 1,
            channels: 1,
        };
        Pool {
            class_names: (0..n_classes).map(|class| format!("c{class:03}")).collect(),
            source: Source::Pixels {
                shape,
                bytes: vec![0; labels.len()],
            },
            labels,
            label_sets: None,
            flags: Some(flags),
            skipped: Vec::new(),
        }
    }

    fn sets(dataset: &Dataset) -> [BTreeSet<u32>; 3] {
        [&dataset.train, &dataset.database, &dataset.query]
            .map(|set| set.rows().iter().copied().collect())
    }

    #[test]
    fn names_round_trip() {
        for name in [
            "official",
            "shc",
            "leave-one-out",
            "1",
            "2",
            "95-5",
            "75-25",
        ] {
            assert_eq!(name.parse::<Split>().unwrap().to_string(), name);
        }
        for name in ["", "0-5", "95", "95-", "3"] {
            assert!(name.parse::<Split>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_first_classes() {
        let split = |pool| split(pool, "3-1".parse().unwrap(), 0);
        let dataset = split(pool(4, 5, 2)).unwrap();
        assert_eq!(dataset.class_names.len(), 3);
        assert_eq!((dataset.train.len(), dataset.query.len()), (15, 6));
        assert!(Arc::ptr_eq(&dataset.train, &dataset.database));
        assert!(dataset.query.labels.iter().all(|&label| label < 3));
        assert!(
            dataset.protocol.contains("(without c003)"),
            "{}",
            dataset.protocol
        );
        let error = split(pool(5, 5, 2)).unwrap_err();
        assert!(error.to_string().ends_with("the data set has 5"), "{error}");
        let mut unsorted = pool(4, 5, 2);
        unsorted.class_names.swap(0, 3);
        let error = split(unsorted).unwrap_err();
        assert!(error.to_string().contains("not in that order"), "{error}");
    }

    #[test]
    fn a_split_without_examples_is_named() {
        for (n_train, n_test, name) in [(3, 0, "query"), (0, 3, "train")] {
            let error = split(pool(2, n_train, n_test), Split::Official, 0).unwrap_err();
            let expected = format!("the {name} split is empty");
            assert_eq!(error.to_string(), expected);
        }
    }

    /// Figures that were published with a split are worth what it can be drawn again.
    #[test]
    fn draws_never_change() {
        let of_class = |n_classes, seed| {
            let unmarked = Pool {
                flags: None,
                ..pool(n_classes, 20, 0)
            };
            let dataset = split(unmarked, Split::Official, seed).unwrap();
            dataset.query.rows()[..8].to_vec()
        };
        assert_eq!(of_class(3, 1), of_class(2, 1), "another class");
        let shc = split(pool(4, 4000, 1000), Split::Shc, 1).unwrap();
        let pooled = split(pool(3, 700, 100), Split::Pooled1, 5).unwrap();
        let first = |set: &ExampleSet| set.rows()[..4].to_vec();
        let drawn = [
            first(&shc.query),
            first(&pooled.query),
            first(&pooled.train),
        ];
        assert_eq!(of_class(2, 1), [9, 11, 16, 19, 22, 29, 34, 38]);
        assert_eq!(drawn, [[7, 11, 14, 15], [1, 8, 9, 10], [0, 3, 4, 5]]);
    }

    #[test]
    fn pooled_draws_are_disjoint_and_follow_the_seed() {
        let at = |seed| split(pool(4, 4000, 1000), Split::Shc, seed).unwrap();
        let [train, database, query] = sets(&at(1));
        assert_eq!(
            (train.len(), query.len(), database.len()),
            (10_000, 5_000, 5_000)
        );
        assert!(
            train.is_disjoint(&query)
                && train.is_disjoint(&database)
                && query.is_disjoint(&database)
        );
        assert_eq!(sets(&at(1))[2], query);
        assert_ne!(sets(&at(2))[2], query);
        assert!(at(7).protocol.contains("seed 7"));
        assert!(split(pool(4, 1000, 1000), Split::Shc, 0).is_err());

        let dataset = split(pool(3, 700, 100), Split::Pooled1, 5).unwrap();
        let [train, database, query] = sets(&dataset);
        assert_eq!(
            (train.len(), query.len(), database.len()),
            (1500, 300, 2100)
        );
        assert!(train.is_subset(&database) && query.is_disjoint(&database));
        for class in 0..3 {
            let count = dataset.query.labels.iter().filter(|l| **l == class).count();
            assert_eq!(count, 100);
        }
        let dataset = split(pool(2, 1500, 100), Split::Pooled2, 5).unwrap();
        assert_eq!((dataset.query.len(), dataset.train.len()), (2000, 1200));
        assert!(Arc::ptr_eq(&dataset.train, &dataset.database));
        let error = split(pool(2, 500, 99), Split::Pooled1, 5).unwrap_err();
        assert!(error.to_string().contains("at least 600"), "{error}");
    }

    #[test]
    fn leave_one_out_searches_the_test_split() {
        let dataset = split(pool(3, 4, 2), Split::LeaveOneOut, 0).unwrap();
        assert!(dataset.leave_one_out && Arc::ptr_eq(&dataset.query, &dataset.database));
        assert_eq!((dataset.train.len(), dataset.query.len()), (12, 6));
        let mut unmarked = pool(3, 4, 2);
        unmarked.flags = None;
        assert!(split(unmarked, Split::LeaveOneOut, 0).is_err());
    }

    #[test]
    fn without_flags_a_fifth_of_each_class_is_drawn() {
        let unmarked = |n| Pool {
            flags: None,
            ..pool(2, n, 0)
        };
        let dataset = split(unmarked(10), Split::Official, 1).unwrap();
        assert_eq!((dataset.train.len(), dataset.query.len()), (16, 4));
        let error = split(unmarked(1), Split::Official, 1).unwrap_err();
        assert!(
            error.to_string().starts_with("class \"c000\" has 1"),
            "{error}"
        );
    }
}
