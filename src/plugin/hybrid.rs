//! Hybrid search: text, nearest codes and codes within a radius in one ranking that shows its work.
//!
//! Each leg is searched by itself, with the same filter inside it and its own threshold, and gives a
//! ranked list. Fusion combines the lists by rank (reciprocal rank fusion) or by score (weighted sum).
//! The list of each leg never depends on the page asked for, so pages neither repeat nor skip a hit as
//! long as they come from one `Searcher`.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use serde::Serialize;
use tantivy::collector::TopDocs;
use tantivy::query::{BooleanQuery, ConstScoreQuery, Occur, Query};
use tantivy::{DocAddress, Score, Searcher};

use crate::engine::SearchStats;
use crate::error::{Error, Result};
use crate::plugin::contained;
use crate::plugin::query::{DocFilter, HammingQuery, HammingResult, KnnQuery};

/// How the legs' lists become one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): the sum over legs of
    /// `weight / (rank_constant + rank)`. Ranks start at 1, and equal raw scores share a rank.
    Rrf {
        /// The usual constant is 60.
        rank_constant: f32,
    },
    /// The weighted sum of the legs' scores, each normalized over its own list.
    Linear {
        /// How a leg's scores are brought to a common scale.
        normalizer: Normalizer,
        /// What a document gets from a leg that did not find it.
        missing: Missing,
    },
}

impl Default for Fusion {
    fn default() -> Fusion {
        Fusion::Rrf {
            rank_constant: 60.0,
        }
    }
}

impl Fusion {
    /// A weighted sum of min-max normalized scores, 0 from a leg that did not find the document.
    pub fn linear() -> Fusion {
        Fusion::Linear {
            normalizer: Normalizer::MinMax,
            missing: Missing::Zero,
        }
    }
}

/// How [`Fusion::Linear`] scales the scores of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// The leg's lowest score becomes 0 and its highest 1; a list of equal scores becomes all 1.
    MinMax,
    /// Scores as they are: BM25 for text, `(bits - distance) / bits` for codes.
    None,
}

/// What [`Fusion::Linear`] does for a leg that did not find a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It adds 0.
    Zero,
    /// It is left out, and the sum is divided by the weights of the legs that did find the document.
    Renormalize,
}

enum LegQuery {
    Text(Box<dyn Query>),
    Knn(KnnQuery),
    Range(HammingQuery),
}

/// One ranked list of a hybrid search.
pub struct Leg {
    name: String,
    query: LegQuery,
    weight: f32,
    min_score: Option<Score>,
}

impl Leg {
    fn new(name: &str, query: LegQuery) -> Leg {
        Leg {
            name: name.to_owned(),
            query,
            weight: 1.0,
            min_score: None,
        }
    }

    /// Documents by the score of any tantivy query, best first.
    pub fn text(query: Box<dyn Query>) -> Leg {
        Leg::new("text", LegQuery::Text(query))
    }

    /// The nearest codes. The list is as long as the query's `k`.
    pub fn knn(query: KnnQuery) -> Leg {
        Leg::new("knn", LegQuery::Knn(query))
    }

    /// The codes within a radius, nearest first.
    pub fn range(query: HammingQuery) -> Leg {
        Leg::new("range", LegQuery::Range(query))
    }

    /// Names the leg in results.
    pub fn named(mut self, name: impl Into<String>) -> Leg {
        self.name = name.into();
        self
    }

    /// How much the leg counts in the fusion. The default is 1.
    pub fn weight(mut self, weight: f32) -> Leg {
        self.weight = weight;
        self
    }

    /// Drops documents whose raw score in this leg is lower, before fusion.
    pub fn min_score(mut self, score: Score) -> Leg {
        self.min_score = Some(score);
        self
    }
}

/// A hybrid search, to be built and run.
pub struct HybridSearch {
    legs: Vec<Leg>,
    filter: Option<Box<dyn Query>>,
    doc_filters: Vec<Arc<DocFilter>>,
    fusion: Fusion,
    rank_window: usize,
    limit: usize,
    offset: usize,
}

impl Default for HybridSearch {
    fn default() -> HybridSearch {
        HybridSearch::new()
    }
}

/// Where a document stands in one leg.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LegHit {
    /// From 1; documents of equal raw score share a rank.
    pub rank: usize,
    /// BM25 or what the text query scores; `(bits - distance) / bits` for codes.
    pub score: Score,
    /// The distance, for legs that search codes.
    pub distance: Option<u32>,
    /// What the leg adds to the fused score.
    pub contribution: f32,
}

/// A document of the fused ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct HybridHit {
    /// The document, valid with the searcher that was asked.
    pub address: DocAddress,
    /// The fused score; comparable within one result only.
    pub score: f32,
    /// One entry a leg, in the order in which legs were added; `None` where the leg did not find it.
    pub legs: Vec<Option<LegHit>>,
}

/// What one leg found.
#[derive(Clone, Debug)]
pub struct LegReport {
    /// Its name.
    pub name: String,
    /// Length of its list, after the threshold and the rank window.
    pub n_hits: usize,
    /// What the search touched, for legs that search codes.
    pub stats: Option<SearchStats>,
}

/// A page of the fused ranking.
#[derive(Clone, Debug)]
pub struct HybridResult {
    /// Hits `offset .. offset + limit`, best first, equal scores by document address.
    pub hits: Vec<HybridHit>,
    /// Documents that any leg found: the length of the whole ranking.
    pub total: usize,
    /// What each leg found.
    pub legs: Vec<LegReport>,
}

/// A leg's list: documents with raw score and distance, best first.
type LegList = Vec<(DocAddress, Score, Option<u32>)>;

impl HybridSearch {
    /// No leg yet; the first 10 hits by reciprocal rank fusion.
    pub fn new() -> HybridSearch {
        HybridSearch {
            legs: Vec::new(),
            filter: None,
            doc_filters: Vec::new(),
            fusion: Fusion::default(),
            rank_window: 1_000,
            limit: 10,
            offset: 0,
        }
    }

    /// Adds a leg. Any number may be added, of the same kind too.
    pub fn leg(mut self, leg: Leg) -> HybridSearch {
        self.legs.push(leg);
        self
    }

    /// Adds a leg that scores text.
    pub fn text(self, query: Box<dyn Query>) -> HybridSearch {
        self.leg(Leg::text(query))
    }

    /// Adds a leg of nearest codes.
    pub fn knn(self, query: KnnQuery) -> HybridSearch {
        self.leg(Leg::knn(query))
    }

    /// Adds a leg of codes within a radius.
    pub fn range(self, query: HammingQuery) -> HybridSearch {
        self.leg(Leg::range(query))
    }

    /// Only documents that match count, in every leg, before any cut.
    pub fn filter(mut self, filter: Box<dyn Query>) -> HybridSearch {
        self.filter = Some(filter);
        self
    }

    /// Only documents in a kept filter count, in every leg, before any cut. It is added to those given
    /// before and to a [`filter`](Self::filter).
    pub fn doc_filter(mut self, filter: Arc<DocFilter>) -> HybridSearch {
        self.doc_filters.push(filter);
        self
    }

    /// How the lists are combined.
    pub fn fusion(mut self, fusion: Fusion) -> HybridSearch {
        self.fusion = fusion;
        self
    }

    /// The longest list a text or range leg contributes. The default is 1,000.
    pub fn rank_window(mut self, documents: usize) -> HybridSearch {
        self.rank_window = documents;
        self
    }

    /// Hits on a page. The default is 10.
    pub fn limit(mut self, limit: usize) -> HybridSearch {
        self.limit = limit;
        self
    }

    /// Hits to skip: the pages before this one.
    pub fn offset(mut self, offset: usize) -> HybridSearch {
        self.offset = offset;
        self
    }

    /// The documents that the ranking is made of, as one query for facets, counts or any collector: every
    /// document that matches a leg's query and the filter. Thresholds and the rank window do not apply.
    pub fn match_query(&self) -> Box<dyn Query> {
        let legs = self.legs.iter().map(|leg| {
            let query: Box<dyn Query> = match &leg.query {
                LegQuery::Text(query) => self.filtered(query.box_clone()),
                LegQuery::Knn(query) => Box::new(self.filtered_knn(query)),
                LegQuery::Range(query) => self.filtered(Box::new(query.clone())),
            };
            (Occur::Should, query)
        });
        Box::new(BooleanQuery::new(legs.collect()))
    }

    fn filtered(&self, query: Box<dyn Query>) -> Box<dyn Query> {
        let kept = self.doc_filters.iter().map(DocFilter::query);
        let filters = self.filter.iter().map(|filter| filter.box_clone());
        let filters = filters.chain(kept);
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = vec![(Occur::Must, query)];
        for filter in filters {
            clauses.push((Occur::Must, Box::new(ConstScoreQuery::new(filter, 0.0))));
        }
        match clauses.len() {
            1 => clauses.swap_remove(0).1,
            _ => Box::new(BooleanQuery::new(clauses)),
        }
    }

    fn filtered_knn(&self, query: &KnnQuery) -> KnnQuery {
        let kept = self.doc_filters.iter().cloned();
        let query = kept.fold(query.clone(), KnnQuery::doc_filter);
        match &self.filter {
            Some(filter) => query.filter(filter.box_clone()),
            None => query,
        }
    }

    /// Runs every leg and fuses the lists.
    ///
    /// # Errors
    /// `InvalidArgument` without a leg, for a rank window or limit of 0, or for a weight or constant that
    /// is negative or not finite; and the errors of the legs.
    pub fn search(&self, searcher: &Searcher) -> Result<HybridResult> {
        if self.legs.is_empty() {
            return Err(Error::invalid(
                "expected at least one leg of text, knn or range, got none",
            ));
        }
        if self.limit == 0 || self.rank_window == 0 {
            let (limit, window) = (self.limit, self.rank_window);
            return Err(Error::invalid(format!(
                "expected a limit and a rank window of at least 1, got {limit} and {window}"
            )));
        }
        let mut lists = Vec::with_capacity(self.legs.len());
        let mut legs = Vec::with_capacity(self.legs.len());
        for leg in &self.legs {
            let (mut list, stats) = self.run_leg(leg, searcher)?;
            if let Some(min_score) = leg.min_score {
                list.retain(|&(_, score, _)| score >= min_score);
            }
            legs.push(LegReport {
                name: leg.name.clone(),
                n_hits: list.len(),
                stats,
            });
            lists.push(list);
        }
        let scores: Vec<Vec<(DocAddress, Score)>> = lists
            .iter()
            .map(|list| {
                list.iter()
                    .map(|&(address, score, _)| (address, score))
                    .collect()
            })
            .collect();
        let weights: Vec<f32> = self.legs.iter().map(|leg| leg.weight).collect();
        let fused = fuse(&scores, &weights, self.fusion)?;
        let total = fused.len();
        let distances: Vec<HashMap<DocAddress, u32>> = lists
            .iter()
            .map(|list| {
                list.iter()
                    .filter_map(|&(at, _, distance)| Some((at, distance?)))
                    .collect()
            })
            .collect();
        let hits = fused
            .into_iter()
            .skip(self.offset)
            .take(self.limit)
            .map(|mut hit| {
                for (leg_hit, distances) in hit.legs.iter_mut().zip(&distances) {
                    if let Some(leg_hit) = leg_hit {
                        leg_hit.distance = distances.get(&hit.document).copied();
                    }
                }
                HybridHit {
                    address: hit.document,
                    score: hit.score,
                    legs: hit.legs,
                }
            });
        Ok(HybridResult {
            hits: hits.collect(),
            total,
            legs,
        })
    }

    fn run_leg(&self, leg: &Leg, searcher: &Searcher) -> Result<(LegList, Option<SearchStats>)> {
        let by_distance = |result: HammingResult| {
            let hits = result
                .hits
                .iter()
                .map(|hit| (hit.address, hit.score, Some(hit.distance)));
            (hits.collect::<LegList>(), Some(result.stats))
        };
        match &leg.query {
            LegQuery::Text(query) => {
                let query = self.filtered(query.box_clone());
                // tantivy allocates by the limit, and no list is longer than the index.
                let window = self.rank_window.min(searcher.num_docs().max(1) as usize);
                let top = TopDocs::with_limit(window).order_by_score();
                let hits = contained("index", || Ok(searcher.search(&query, &top)?))?;
                Ok((
                    hits.into_iter()
                        .map(|(score, address)| (address, score, None))
                        .collect(),
                    None,
                ))
            }
            LegQuery::Knn(query) => Ok(by_distance(self.filtered_knn(query).search(searcher)?)),
            LegQuery::Range(query) => {
                let kept = self.doc_filters.iter().cloned();
                let query = kept.fold(query.clone(), HammingQuery::doc_filter);
                let (mut list, stats) =
                    by_distance(query.search(searcher, self.filter.as_deref())?);
                list.truncate(self.rank_window);
                Ok((list, stats))
            }
        }
    }
}

/// A document of a fused ranking, whatever names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused<D> {
    /// The document.
    pub document: D,
    /// The fused score.
    pub score: f32,
    /// Its place in each list, without distances.
    pub legs: Vec<Option<LegHit>>,
}

/// Fuses ranked lists of documents with raw scores, best first, into one ranking: best first, equal
/// scores by document. A pure function of its arguments, usable on lists from anywhere.
///
/// # Errors
/// `InvalidArgument` unless there is one weight a list, weights and constant are finite and not negative,
/// scores are numbers, and every list is in descending order of score without repetition.
pub fn fuse<D: Copy + Ord + Hash>(
    lists: &[Vec<(D, Score)>],
    weights: &[f32],
    fusion: Fusion,
) -> Result<Vec<Fused<D>>> {
    if lists.len() != weights.len() {
        let (expected, got) = (lists.len(), weights.len());
        return Err(Error::invalid(format!(
            "expected one weight a list, so {expected}, got {got}"
        )));
    }
    let constant = match fusion {
        Fusion::Rrf { rank_constant } => rank_constant,
        Fusion::Linear { .. } => 0.0,
    };
    if let Some(bad) = weights
        .iter()
        .chain([&constant])
        .find(|value| !value.is_finite() || **value < 0.0)
    {
        return Err(Error::invalid(format!(
            "expected weights and a rank constant that are finite and not negative, got {bad}"
        )));
    }
    let mut fused: HashMap<D, Fused<D>> = HashMap::new();
    for (leg_idx, list) in lists.iter().enumerate() {
        if !list.iter().all(|(_, score)| score.is_finite()) || !list.is_sorted_by(|a, b| a.1 >= b.1)
        {
            return Err(Error::invalid(
                "expected finite scores in descending order in every list",
            ));
        }
        let (highest, lowest) = match (list.first(), list.last()) {
            (Some(first), Some(last)) => (first.1, last.1),
            _ => continue,
        };
        let mut rank = 1;
        for (position, &(document, score)) in list.iter().enumerate() {
            if position > 0 && list[position - 1].1 != score {
                rank = position + 1;
            }
            let value = match fusion {
                Fusion::Rrf { rank_constant } => 1.0 / (rank_constant + rank as f32),
                Fusion::Linear {
                    normalizer: Normalizer::None,
                    ..
                } => score,
                Fusion::Linear {
                    normalizer: Normalizer::MinMax,
                    ..
                } if highest == lowest => 1.0,
                Fusion::Linear {
                    normalizer: Normalizer::MinMax,
                    ..
                } => (score - lowest) / (highest - lowest),
            };
            let hit = fused.entry(document).or_insert_with(|| Fused {
                document,
                score: 0.0,
                legs: vec![None; lists.len()],
            });
            let contribution = weights[leg_idx] * value;
            let leg_hit = LegHit {
                rank,
                score,
                distance: None,
                contribution,
            };
            if hit.legs[leg_idx].replace(leg_hit).is_some() {
                return Err(Error::invalid(
                    "expected every document at most once in a list",
                ));
            }
        }
    }
    let mut ranking: Vec<Fused<D>> = fused.into_values().collect();
    for hit in &mut ranking {
        hit.score = hit
            .legs
            .iter()
            .flatten()
            .map(|leg_hit| leg_hit.contribution)
            .sum();
        if let Fusion::Linear {
            missing: Missing::Renormalize,
            ..
        } = fusion
        {
            let present: f32 = hit
                .legs
                .iter()
                .zip(weights)
                .filter_map(|(leg_hit, weight)| leg_hit.map(|_| *weight))
                .sum();
            if present > 0.0 {
                hit.score /= present;
            }
        }
    }
    ranking.sort_unstable_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then(a.document.cmp(&b.document))
    });
    Ok(ranking)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(ranking: &[Fused<u32>]) -> Vec<u32> {
        ranking.iter().map(|hit| hit.document).collect()
    }

    #[test]
    fn rrf_worked_by_hand() {
        let text = vec![(1, 9.0), (2, 5.0), (3, 5.0), (4, 1.0)];
        let image = vec![(3, 1.0), (5, 0.5)];
        let ranking = fuse(&[text, image], &[1.0, 2.0], Fusion::default()).unwrap();
        assert_eq!(documents(&ranking), [3, 5, 1, 2, 4]);
        let third = ranking[0].legs[0].unwrap();
        assert_eq!(third.rank, 2, "documents 2 and 3 share a rank");
        assert!((ranking[0].score - (1.0 / 62.0 + 2.0 / 61.0)).abs() < 1e-7);
        assert_eq!(ranking[4].legs[0].unwrap().rank, 4);
        assert!(ranking[1].legs[0].is_none());
    }

    #[test]
    fn linear_worked_by_hand() {
        let text = vec![(1, 4.0), (2, 3.0), (3, 2.0)];
        let image = vec![(3, 0.9), (4, 0.9)];
        let zero = fuse(
            &[text.clone(), image.clone()],
            &[1.0, 1.0],
            Fusion::linear(),
        )
        .unwrap();
        let scores: Vec<(u32, f32)> = zero.iter().map(|hit| (hit.document, hit.score)).collect();
        assert_eq!(scores, [(1, 1.0), (3, 1.0), (4, 1.0), (2, 0.5)]);
        let fusion = Fusion::Linear {
            normalizer: Normalizer::None,
            missing: Missing::Renormalize,
        };
        let kept = fuse(&[text, image], &[1.0, 3.0], fusion).unwrap();
        let third = kept.iter().find(|hit| hit.document == 3).unwrap();
        assert!((third.score - (2.0 + 2.7) / 4.0).abs() < 1e-6);
        assert_eq!(kept[0].document, 1);
    }

    #[test]
    fn refuses_what_has_no_meaning() {
        let list = vec![(1u32, 1.0)];
        assert!(fuse(std::slice::from_ref(&list), &[], Fusion::default()).is_err());
        assert!(fuse(std::slice::from_ref(&list), &[f32::NAN], Fusion::default()).is_err());
        assert!(
            fuse(
                std::slice::from_ref(&list),
                &[1.0],
                Fusion::Rrf {
                    rank_constant: -61.0
                }
            )
            .is_err()
        );
        assert!(fuse(&[vec![(1u32, 1.0), (1, 0.5)]], &[1.0], Fusion::default()).is_err());
        assert!(fuse(&[vec![(1u32, 1.0), (2, 5.0)]], &[1.0], Fusion::default()).is_err());
        assert!(
            fuse::<u32>(&[vec![], vec![]], &[1.0, 1.0], Fusion::default())
                .unwrap()
                .is_empty()
        );
    }
}
