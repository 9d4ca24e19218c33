//! Every engine gives the answer of sorting all distances: same documents, same distances, ties included.
//!
//! Guards the claim the crate rests on, over lengths, sizes, k and radii at and past their limits,
//! filters, sparse doc ids, and data that is hard on tables: equal codes, duplicates, clusters,
//! neighbouring bits that agree. Every case prints its seed when it fails.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::cluster::{ClusterParams, ClusterSearch, Clusters};
use tanhash::code::RowOrder;
use tanhash::engine::{self, Allowed, AllowedRows, Engine, EngineChoice, SearchStats, SegmentRows};
use tanhash::hamming::Kernel;
use tanhash::mih::{MihParams, MihTable, MihView, MultiIndex, suits_copies};
use tanhash::scan::LinearScan;
use tanhash::topk::{Neighbor, TopK};
use tanhash::{CodeLen, Codes, ErrorKind, HashCode};

const ORDINAL: u64 = 3 << 32;

const CHOICES: [EngineChoice; 4] = [
    EngineChoice::Auto,
    EngineChoice::Scan,
    EngineChoice::Mih,
    EngineChoice::Cluster,
];

/// Codes as a segment may store them: by document or by cluster, with tables of rows or of codes.
struct Layout {
    codes: Codes,
    params: MihParams,
    tables: Vec<MihTable>,
    clusters: Option<Clusters>,
    /// The codes of each table.
    copies: Option<Vec<Codes>>,
    /// Ranks by row and rows by rank, packed; `None` where rows ascend by document.
    order: Option<[Vec<u8>; 2]>,
}

/// An order of rows in both directions.
fn packed(order: &[u32]) -> [Vec<u8>; 2] {
    let mut rows = vec![0; order.len()];
    for (row, &rank) in (0..).zip(order) {
        rows[rank as usize] = row;
    }
    [RowOrder::pack(order), RowOrder::pack(&rows)]
}

impl Layout {
    fn new(codes: Codes, params: &MihParams, clusters: Option<Clusters>) -> Layout {
        let tables = (0..params.n_substrings())
            .map(|substring_idx| MihTable::build(&codes, params, substring_idx).unwrap())
            .collect();
        Layout {
            order: clusters.as_ref().map(|clusters| packed(clusters.order())),
            codes,
            params: params.clone(),
            tables,
            clusters,
            copies: None,
        }
    }

    fn clustered(codes: &Codes, params: &MihParams) -> Option<Layout> {
        let n_codes = codes.n_codes();
        if n_codes == 0 {
            return None;
        }
        // Enough clusters for the two-level assignment where there are codes enough.
        let cluster_params = ClusterParams {
            n_clusters: n_codes.div_ceil(if n_codes > 2000 { 8 } else { 40 }),
            ..ClusterParams::choose(n_codes)
        };
        let clusters = Clusters::build(codes.as_ref(), None, &cluster_params).unwrap();
        let mut reordered = Codes::new(codes.code_len());
        for &row in clusters.order() {
            reordered.push_row(codes, row as usize);
        }
        clusters.view().verify(reordered.as_ref()).unwrap();
        Some(Layout::new(reordered, params, Some(clusters)))
    }

    /// Tables with copies of the codes, which suit codes of one word.
    fn copied(codes: &Codes) -> Option<Layout> {
        suits_copies(codes.code_len()).then(|| {
            let params = MihParams::fit_copies(codes.as_ref());
            let mut layout = Layout::new(codes.clone(), &params, None);
            layout.copies = Some(
                layout
                    .tables
                    .iter()
                    .map(|table| copy_of(codes, table))
                    .collect(),
            );
            layout
        })
    }

    fn view(&self) -> MihView<'_> {
        let view = MihView::new(&self.params, self.tables.iter().map(MihTable::as_ref)).unwrap();
        match &self.copies {
            None => view,
            Some(copies) => view.with_copies(copies.iter().map(Codes::blocks)).unwrap(),
        }
    }
}

/// The codes in the order of a table's entries.
fn copy_of(codes: &Codes, table: &MihTable) -> Codes {
    let mut copy = Codes::new(codes.code_len());
    for &row in table.ids() {
        copy.push_row(codes, row as usize);
    }
    copy
}

struct Segment {
    doc_ids: Option<Vec<u32>>,
    layouts: Vec<Layout>,
}

impl Segment {
    fn new(codes: Codes, doc_ids: Option<Vec<u32>>, params: MihParams) -> Segment {
        let others = [Layout::clustered(&codes, &params), Layout::copied(&codes)];
        let plain = Layout::new(codes, &params, None);
        let others = others.into_iter().flatten();
        let layouts = [plain].into_iter().chain(others).collect();
        Segment { doc_ids, layouts }
    }

    fn codes(&self) -> &Codes {
        &self.layouts[0].codes
    }

    fn rows_of<'a>(&'a self, layout: &'a Layout) -> SegmentRows<'a> {
        let n_codes = layout.codes.n_codes();
        let order = layout.order.as_ref();
        SegmentRows {
            doc_ids: self.doc_ids.as_deref(),
            order: order.map(|[ranks, rows]| RowOrder::new(ranks, rows, n_codes).unwrap()),
            mih: Some(layout.view()),
            clusters: layout.clusters.as_ref().map(Clusters::view),
            address_base: ORDINAL,
            ..SegmentRows::of(layout.codes.as_ref())
        }
    }

    /// Rows by document.
    fn rows(&self) -> SegmentRows<'_> {
        self.rows_of(&self.layouts[0])
    }

    /// Rows by document, by cluster, by last substring.
    fn all_rows(&self) -> impl Iterator<Item = SegmentRows<'_>> {
        self.layouts.iter().map(|layout| self.rows_of(layout))
    }

    fn naive(&self, query: &HashCode, is_allowed: impl Fn(u32) -> bool) -> Vec<Neighbor> {
        let doc = |row: usize| {
            self.doc_ids
                .as_ref()
                .map_or(row as u32, |doc_ids| doc_ids[row])
        };
        let mut all: Vec<Neighbor> = (0..self.codes().n_codes())
            .filter(|&row| is_allowed(doc(row)))
            .map(|row| Neighbor {
                distance: self.codes().get(row).distance(query).unwrap(),
                address: ORDINAL + u64::from(doc(row)),
            })
            .collect();
        all.sort();
        all
    }
}

fn random_code(len: CodeLen, rng: &mut ChaCha8Rng) -> HashCode {
    let words: Vec<u64> = (0..len.words()).map(|_| rng.random()).collect();
    HashCode::from_words(len, &words).unwrap()
}

fn flipped(code: &HashCode, probability: f64, rng: &mut ChaCha8Rng) -> HashCode {
    let mut code = code.clone();
    for bit in 0..code.code_len().bits() {
        if rng.random_bool(probability) {
            code.set_bit(bit, !code.bit(bit));
        }
    }
    code
}

#[derive(Clone, Copy, Debug)]
enum Data {
    Uniform,
    AllEqual,
    FewValues,
    Clustered,
    Correlated,
}

const ALL_DATA: [Data; 5] = [
    Data::Uniform,
    Data::AllEqual,
    Data::FewValues,
    Data::Clustered,
    Data::Correlated,
];

/// Codes, and a query like them.
fn generate(data: Data, len: CodeLen, n_codes: usize, rng: &mut ChaCha8Rng) -> (Codes, HashCode) {
    let centers: Vec<HashCode> = (0..1 + n_codes / 50)
        .map(|_| random_code(len, rng))
        .collect();
    let one = |rng: &mut ChaCha8Rng| match data {
        Data::Uniform => random_code(len, rng),
        Data::AllEqual => centers[0].clone(),
        Data::FewValues => centers[rng.random_range(0..centers.len().min(4))].clone(),
        Data::Clustered => flipped(&centers[rng.random_range(0..centers.len())], 0.08, rng),
        Data::Correlated => {
            let mut code = HashCode::zeros(len);
            let mut value = rng.random_bool(0.5);
            for bit in 0..len.bits() {
                value ^= rng.random_bool(0.1);
                code.set_bit(bit, value);
            }
            code
        }
    };
    let mut codes = Codes::new(len);
    for _ in 0..n_codes {
        codes.push(&one(rng)).unwrap();
    }
    let query = one(rng);
    (codes, query)
}

/// Every way to search, by name.
fn engines<'a>(rows: &'a SegmentRows<'a>) -> Vec<(String, Box<dyn Engine + 'a>)> {
    let mut engines: Vec<(String, Box<dyn Engine + 'a>)> = Vec::new();
    for kernel in Kernel::available() {
        let scan = LinearScan::new(rows).with_kernel(kernel);
        engines.push((format!("scan, {kernel:?}"), Box::new(scan)));
    }
    let mih = MultiIndex::new(rows, rows.mih.as_ref().unwrap());
    engines.push(("mih".into(), Box::new(mih)));
    engines.push(("mih, determined".into(), Box::new(mih.determined())));
    let to_the_end = mih.without_fallback();
    engines.push(("mih to the end".into(), Box::new(to_the_end)));
    let scalar = to_the_end.with_kernel(Kernel::SCALAR);
    engines.push(("mih, scalar".into(), Box::new(scalar)));
    if let Some(view) = &rows.clusters {
        let cluster = ClusterSearch::new(rows, view);
        engines.push(("cluster".into(), Box::new(cluster)));
        let to_the_end = cluster.without_fallback();
        engines.push(("cluster to the end".into(), Box::new(to_the_end)));
        let scalar = to_the_end.with_kernel(Kernel::SCALAR);
        engines.push(("cluster, scalar".into(), Box::new(scalar)));
    }
    engines
}

/// A filter in the form of rows.
struct RowFilter {
    list: Vec<u32>,
    set: Vec<u64>,
}

impl RowFilter {
    /// Of each of a segment's ways to order rows.
    fn of_all(segment: &Segment, is_allowed: impl Fn(u32) -> bool) -> Vec<RowFilter> {
        let of = |rows: SegmentRows<'_>| {
            let all = 0..rows.codes.n_codes() as u32;
            let list: Vec<u32> = all
                .filter(|&row| is_allowed(rows.doc_id(row as usize).unwrap()))
                .collect();
            let set = set_of(&list);
            RowFilter { list, set }
        };
        segment.all_rows().map(of).collect()
    }
}

/// A filter in all its forms, for each way to order rows.
fn forms<'a>(
    segment: &'a Segment,
    allowed: &Allowed<'a>,
    by_row: &'a [RowFilter],
) -> Vec<(SegmentRows<'a>, Allowed<'a>)> {
    let mut forms = Vec::new();
    for (rows, filter) in segment.all_rows().zip(by_row) {
        forms.push((rows.clone(), *allowed));
        if matches!(allowed, Allowed::Listed(_)) {
            let listed = AllowedRows::new(&filter.set, Some(&filter.list));
            forms.push((rows.clone(), Allowed::Rows(listed)));
            forms.push((rows, Allowed::Rows(AllowedRows::new(&filter.set, None))));
        }
    }
    forms
}

/// Every engine and every choice against the naive answer.
fn check_knn(segment: &Segment, query: &HashCode, k: usize, max_distance: u32, case: &str) {
    check_knn_filtered(
        segment,
        query,
        k,
        max_distance,
        &Allowed::All,
        |_| true,
        case,
    );
}

fn check_knn_filtered(
    segment: &Segment,
    query: &HashCode,
    k: usize,
    max_distance: u32,
    allowed: &Allowed<'_>,
    is_allowed: impl Fn(u32) -> bool,
    case: &str,
) {
    let mut expected = segment.naive(query, &is_allowed);
    expected.retain(|neighbor| neighbor.distance <= max_distance);
    expected.truncate(k);
    let by_row = RowFilter::of_all(segment, &is_allowed);
    for (rows, allowed) in forms(segment, allowed, &by_row) {
        let allowed = &allowed;
        let case = format!("k {k}, {allowed:?}, by document {}, {case}", rows.ascend());
        for (name, engine) in engines(&rows) {
            let mut top = TopK::new(k, max_distance);
            let mut stats = SearchStats::default();
            engine.knn(query, allowed, &mut top, &mut stats).unwrap();
            let found = top.into_sorted();
            assert_eq!(found, expected, "{name}, {case}");
            let answered = stats.segments_mih + stats.segments_scan + stats.segments_cluster;
            assert_eq!(answered, 1, "{name}, {case}");
        }
        for choice in CHOICES {
            let mut top = TopK::new(k, max_distance);
            let mut stats = SearchStats::default();
            engine::knn(&rows, choice, query, allowed, &mut top, &mut stats).unwrap();
            assert_eq!(top.into_sorted(), expected, "{choice}, {case}");
            assert!(stats.exact && stats.segments == 1);
        }
    }
}

fn check_range(segment: &Segment, query: &HashCode, radius: u32, case: &str) {
    check_range_filtered(segment, query, radius, &Allowed::All, |_| true, case);
}

fn check_range_filtered(
    segment: &Segment,
    query: &HashCode,
    radius: u32,
    allowed: &Allowed<'_>,
    is_allowed: impl Fn(u32) -> bool,
    case: &str,
) {
    let mut expected = segment.naive(query, &is_allowed);
    expected.retain(|neighbor| neighbor.distance <= radius);
    expected.sort_by_key(|neighbor| neighbor.address);
    // What an earlier segment found stays.
    let earlier = Neighbor {
        distance: 7,
        address: 1,
    };
    expected.insert(0, earlier);
    let by_row = RowFilter::of_all(segment, &is_allowed);
    for (rows, allowed) in forms(segment, allowed, &by_row) {
        let allowed = &allowed;
        let case = format!(
            "radius {radius}, {allowed:?}, by document {}, {case}",
            rows.ascend()
        );
        for (name, engine) in engines(&rows) {
            let mut found = vec![earlier];
            let mut stats = SearchStats::default();
            engine
                .range(query, radius, allowed, &mut found, &mut stats)
                .unwrap();
            assert_eq!(found, expected, "{name}, {case}");
        }
        for choice in CHOICES {
            let mut found = vec![earlier];
            let mut stats = SearchStats::default();
            engine::range(
                &rows, choice, query, radius, allowed, &mut found, &mut stats,
            )
            .unwrap();
            assert_eq!(found, expected, "{choice}, {case}");
        }
    }
}

/// Substrings of any widths and any order of bits, to check that nothing rests on the chosen ones.
fn random_params(len: CodeLen, rng: &mut ChaCha8Rng) -> MihParams {
    let mut bits: Vec<u16> = (0..len.bits() as u16).collect();
    bits.shuffle(rng);
    let mut substrings = Vec::new();
    while !bits.is_empty() {
        let width = rng.random_range(1..=12.min(bits.len()));
        substrings.push(bits.split_off(bits.len() - width));
    }
    MihParams::new(len, substrings).unwrap()
}

#[test]
fn every_length_size_and_k() {
    for bits in (16..=1024).step_by(8) {
        let seed = bits as u64;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let len = CodeLen::new(bits).unwrap();
        let data = ALL_DATA[bits / 8 % 5];
        for n_codes in [0, 1, 2, 60] {
            let (codes, query) = generate(data, len, n_codes, &mut rng);
            let case = format!("{bits} bits, {n_codes} codes, {data:?}, seed {seed}");
            let params = MihParams::choose(len, n_codes);
            let segment = Segment::new(codes, None, params);
            for k in [0, 1, n_codes.div_ceil(2), n_codes + 5] {
                check_knn(&segment, &query, k, u32::MAX, &case);
            }
            for radius in [0, bits as u32 / 8, bits as u32, u32::MAX] {
                check_range(&segment, &query, radius, &case);
            }
        }
    }
}

#[test]
fn hard_data_at_common_lengths() {
    for seed in 0..60 {
        let mut rng = ChaCha8Rng::seed_from_u64(1000 + seed);
        let bits = [16, 24, 32, 64, 96, 128, 256][rng.random_range(0..7)];
        let len = CodeLen::new(bits).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let n_codes = rng.random_range(1..1500);
        let (codes, query) = generate(data, len, n_codes, &mut rng);
        let params = match seed % 3 {
            0 => random_params(len, &mut rng),
            1 => MihParams::choose(len, n_codes),
            _ => MihParams::choose(len, 60_000),
        };
        let case = format!("{bits} bits, {n_codes} codes, {data:?}, seed {seed}");
        let segment = Segment::new(codes, None, params);
        for query in [query, random_code(len, &mut rng)] {
            for k in [1, 10, 100, n_codes, n_codes * 2] {
                check_knn(&segment, &query, k, u32::MAX, &case);
            }
            check_knn(
                &segment,
                &query,
                10,
                rng.random_range(0..bits as u32),
                &case,
            );
            for _ in 0..3 {
                let radius = rng.random_range(0..=bits as u32);
                check_range(&segment, &query, radius, &case);
                check_range(&segment, &query, radius / 4, &case);
            }
        }
    }
}

#[test]
fn filters_and_sparse_doc_ids() {
    for seed in 0..60 {
        let mut rng = ChaCha8Rng::seed_from_u64(2000 + seed);
        let bits = [16, 64, 72, 256][seed as usize % 4];
        let len = CodeLen::new(bits).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let n_codes = rng.random_range(1..800);
        let (codes, query) = generate(data, len, n_codes, &mut rng);
        let mut doc = 0;
        let doc_ids: Vec<u32> = (0..n_codes)
            .map(|_| {
                doc += rng.random_range(1..5);
                doc
            })
            .collect();
        let doc_ids = (seed % 2 == 0).then_some(doc_ids);
        let segment = Segment::new(codes, doc_ids, MihParams::choose(len, n_codes));
        for share in [0.0, 0.01, 0.3, 0.9, 1.0] {
            // Lists name documents past the last row and without a code, too.
            let listed: Vec<u32> = (0..4 * n_codes as u32 + 9)
                .filter(|_| rng.random_bool(share))
                .collect();
            let is_listed = |doc: u32| listed.binary_search(&doc).is_ok();
            let case =
                format!("{bits} bits, {n_codes} codes, {data:?}, share {share}, seed {seed}");
            let set = set_of(&listed);
            for allowed in [
                Allowed::Listed(&listed),
                Allowed::Where(&is_listed),
                Allowed::Set(&set),
            ] {
                for k in [1, 10, n_codes + 1] {
                    check_knn_filtered(&segment, &query, k, 1024, &allowed, is_listed, &case);
                }
                for radius in [0, bits as u32 / 4, bits as u32] {
                    check_range_filtered(&segment, &query, radius, &allowed, is_listed, &case);
                }
            }
        }
    }
}

/// One bit a document, as far as the last of them.
fn set_of(listed: &[u32]) -> Vec<u64> {
    let end = listed.last().map_or(0, |&last| last as usize + 1);
    let mut words = vec![0; end.div_ceil(64)];
    for &doc in listed {
        words[doc as usize / 64] |= 1 << (doc % 64);
    }
    words
}

/// Sets that leave out long stretches, which the scan leaves out, too.
#[test]
fn sets_with_gaps() {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(2500 + seed);
        let len = CodeLen::new([64, 32][seed as usize % 2]).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let n_codes = rng.random_range(6_000..20_000);
        let (codes, query) = generate(data, len, n_codes, &mut rng);
        let segment = Segment::new(codes, None, MihParams::choose(len, n_codes));
        let mut listed: Vec<u32> = Vec::new();
        let mut doc = rng.random_range(0..5_000);
        while doc < n_codes as u32 {
            let end = doc + rng.random_range(1..3_000);
            let share = [0.02, 0.5, 1.0][rng.random_range(0..3)];
            listed.extend((doc..end).filter(|_| rng.random_bool(share)));
            doc = end + rng.random_range(0..6_000);
        }
        let is_listed = |doc: u32| listed.binary_search(&doc).is_ok();
        let set = set_of(&listed);
        let allowed = Allowed::Set(&set);
        let case = format!("{len} bits, {n_codes} codes, {data:?}, seed {seed}");
        for k in [1, 10, 1_000] {
            check_knn_filtered(&segment, &query, k, 1024, &allowed, is_listed, &case);
        }
        for radius in [0, 6, len.bits() as u32] {
            check_range_filtered(&segment, &query, radius, &allowed, is_listed, &case);
        }
    }
    // A scan passes over what it can.
    let len = CodeLen::new(64).unwrap();
    let (codes, query) = generate(
        Data::Uniform,
        len,
        100_000,
        &mut ChaCha8Rng::seed_from_u64(1),
    );
    let rows = SegmentRows::of(codes.as_ref());
    let mut set = vec![0; 2_000];
    set[700..800].fill(u64::MAX);
    let mut stats = SearchStats::default();
    LinearScan::new(&rows)
        .knn(
            &query,
            &Allowed::Set(&set),
            &mut TopK::new(3, 64),
            &mut stats,
        )
        .unwrap();
    assert!((6_400..11_000).contains(&stats.codes_scanned));
}

/// Parts of a scan meet in the answer of one.
#[test]
fn threads_give_the_answer_of_one() {
    for seed in 0..10 {
        let mut rng = ChaCha8Rng::seed_from_u64(7000 + seed);
        let len = CodeLen::new(1024).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let n_codes = rng.random_range(100_000..140_000);
        let (codes, query) = generate(data, len, 97, &mut rng);
        // Each code many times over: ties in every part.
        let mut many = Codes::with_capacity(len, n_codes);
        (0..n_codes).for_each(|row| many.push_row(&codes, row * 31 % 97));
        let mut rows = SegmentRows::of(many.as_ref());
        let set: Vec<u64> = (0..n_codes.div_ceil(64)).map(|_| rng.random()).collect();
        for allowed in [Allowed::All, Allowed::Set(&set)] {
            let mut answers = [1, 2, 3].map(|threads| {
                rows.threads = threads;
                let scan = LinearScan::new(&rows);
                let mut stats = SearchStats::default();
                let mut top = TopK::new(2000, 1024);
                scan.knn(&query, &allowed, &mut top, &mut stats).unwrap();
                let mut found = Vec::new();
                scan.range(&query, 80, &allowed, &mut found, &mut stats)
                    .unwrap();
                (top.into_sorted(), found, stats)
            });
            let expected = answers[0].clone();
            assert!(expected.0.len() == 2000 && expected.2.segments_scan == 2);
            for answer in &mut answers {
                assert_eq!(*answer, expected, "{data:?}, {allowed:?}, seed {seed}");
            }
        }
    }
}

/// Large enough for a search to meet codes before it gives up and scans.
#[test]
fn giving_up_half_way_gives_nothing_twice() {
    let mut fell_back = 0;
    for seed in 0..12 {
        let mut rng = ChaCha8Rng::seed_from_u64(3000 + seed);
        let len = CodeLen::new([64, 128][seed as usize % 2]).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let n_codes = 20_000;
        let (codes, query) = generate(data, len, n_codes, &mut rng);
        let segment = Segment::new(codes, None, MihParams::choose(len, n_codes));
        let case = format!("{len} bits, {data:?}, seed {seed}");
        let rows = segment.rows();
        for k in [1, 10, 300] {
            check_knn(&segment, &query, k, 1024, &case);
            let mut stats = SearchStats::default();
            MultiIndex::new(&rows, rows.mih.as_ref().unwrap())
                .determined()
                .knn(&query, &Allowed::All, &mut TopK::new(k, 1024), &mut stats)
                .unwrap();
            fell_back += usize::from(stats.fell_back > 0 && stats.candidates > 0);
        }
        check_range(&segment, &query, 12, &case);
    }
    assert!(
        fell_back > 0,
        "no case of this test gave up after candidates"
    );
}

#[test]
fn segments_share_a_top() {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(4000 + seed);
        let len = CodeLen::new([32, 64][seed as usize % 2]).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let segments: Vec<Segment> = (0..4)
            .map(|_| {
                let (codes, _) = generate(data, len, 200, &mut rng);
                Segment::new(codes, None, MihParams::choose(len, 200))
            })
            .collect();
        let query = segments[2].codes().get(17);
        let mut order: Vec<usize> = (0..4).collect();
        order.shuffle(&mut rng);
        let mut expected = Vec::new();
        let (mut top, mut planned) = (TopK::new(25, 1024), TopK::new(25, 1024));
        for ordinal in order {
            let layouts = &segments[ordinal].layouts;
            let layout = &layouts[(ordinal + seed as usize / 2) % layouts.len()];
            let mut rows = segments[ordinal].rows_of(layout);
            rows.address_base = (ordinal as u64) << 32;
            for mut neighbor in segments[ordinal].naive(&query, |_| true) {
                neighbor.address = neighbor.address - ORDINAL + rows.address_base;
                expected.push(neighbor);
            }
            let mut stats = SearchStats::default();
            let mih = MultiIndex::new(&rows, rows.mih.as_ref().unwrap()).without_fallback();
            let engine: Box<dyn Engine> = match &rows.clusters {
                _ if ordinal.is_multiple_of(2) => Box::new(mih),
                Some(view) => Box::new(ClusterSearch::new(&rows, view).without_fallback()),
                None => Box::new(LinearScan::new(&rows)),
            };
            engine
                .knn(&query, &Allowed::All, &mut top, &mut stats)
                .unwrap();
            // Engines that give way to a scan leave the top as it was for other segments.
            let (auto, all) = (EngineChoice::Auto, Allowed::All);
            engine::knn(&rows, auto, &query, &all, &mut planned, &mut stats).unwrap();
        }
        expected.sort();
        expected.truncate(25);
        assert_eq!(top.into_sorted(), expected, "{data:?}, seed {seed}");
        let planned = planned.into_sorted();
        assert_eq!(planned, expected, "as planned, {data:?}, seed {seed}");
    }
}

#[test]
fn without_tables_the_scan_answers_and_says_so() {
    let len = CodeLen::new(64).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (codes, query) = generate(Data::Uniform, len, 50, &mut rng);
    let rows = SegmentRows::of(codes.as_ref());
    for choice in [EngineChoice::Mih, EngineChoice::Cluster] {
        let mut top = TopK::new(3, 64);
        let mut stats = SearchStats::default();
        engine::knn(&rows, choice, &query, &Allowed::All, &mut top, &mut stats).unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!((stats.segments_without_tables, stats.segments_scan), (1, 1));
    }
}

#[test]
fn other_lengths_are_refused() {
    let len = CodeLen::new(64).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (codes, _) = generate(Data::Uniform, len, 50, &mut rng);
    let mut segment = Segment::new(codes, None, MihParams::choose(len, 50));
    let query = HashCode::zeros(CodeLen::new(72).unwrap());
    let (mut top, mut stats) = (TopK::new(3, 64), SearchStats::default());
    for choice in CHOICES {
        let rows = segment.rows();
        let error = engine::knn(&rows, choice, &query, &Allowed::All, &mut top, &mut stats);
        let expected = ErrorKind::CodeLenMismatch {
            expected: 64,
            got: 72,
        };
        assert_eq!(*error.unwrap_err().kind(), expected);
    }
    segment.doc_ids = Some(vec![1, 2, 3]);
    let query = HashCode::zeros(len);
    let auto = EngineChoice::Auto;
    let error = engine::knn(
        &segment.rows(),
        auto,
        &query,
        &Allowed::All,
        &mut top,
        &mut stats,
    );
    assert!(matches!(
        error.unwrap_err().kind(),
        ErrorKind::Corrupt { .. }
    ));
}

/// Tables lie in memory maps of files that may be damaged after they were verified.
#[test]
fn damaged_tables_give_errors_or_answers_but_no_panic() {
    let len = CodeLen::new(32).unwrap();
    let mut errors = 0;
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(6000 + seed);
        let (codes, query) = generate(Data::Clustered, len, 300, &mut rng);
        let mut segment = Segment::new(codes, None, MihParams::choose(len, 300));
        let params = segment.layouts[0].params.clone();
        for substring_idx in 0..params.n_substrings() {
            let mut offsets = segment.layouts[0].tables[substring_idx].offsets().to_vec();
            let mut ids = segment.layouts[0].tables[substring_idx].ids().to_vec();
            for _ in 0..20 {
                let last = offsets.len() - 1;
                offsets[rng.random_range(0..last)] = rng.random::<u32>() >> rng.random_range(0..32);
                ids[rng.random_range(0..300)] = rng.random::<u32>() >> rng.random_range(0..32);
            }
            let width = params.width(substring_idx);
            let damaged = MihTable::from_parts(offsets, ids, 300, width).unwrap();
            segment.layouts[0].tables[substring_idx] = damaged;
        }
        let rows = segment.rows();
        for (_, engine) in engines(&rows) {
            let mut stats = SearchStats::default();
            let mut top = TopK::new(20, 1024);
            let knn = engine.knn(&query, &Allowed::All, &mut top, &mut stats);
            let mut found = Vec::new();
            let range = engine.range(&query, 9, &Allowed::All, &mut found, &mut stats);
            for error in [knn.err(), range.err()].into_iter().flatten() {
                assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }));
                errors += 1;
            }
        }
    }
    assert!(errors > 100, "damage went unseen: {errors} errors");
}

/// As above, for tables with copies of the codes.
#[test]
fn damaged_copies_give_errors_or_answers_but_no_panic() {
    let len = CodeLen::new(64).unwrap();
    let (mut errors, mut answers) = (0, 0);
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(6500 + seed);
        let (codes, query) = generate(Data::Clustered, len, 300, &mut rng);
        let mut layout = Layout::copied(&codes).unwrap();
        let params = layout.params.clone();
        for (idx, table) in layout.tables.iter_mut().enumerate() {
            let (mut offsets, mut ids) = (table.offsets().to_vec(), table.ids().to_vec());
            // The last offset is looked at when tables are opened.
            for numbers in [&mut offsets[..1 << params.width(idx)], &mut ids[..]] {
                for _ in 0..3 {
                    let at = rng.random_range(0..numbers.len());
                    numbers[at] = rng.random::<u32>() >> rng.random_range(0..32);
                }
            }
            *table = MihTable::from_parts(offsets, ids, 300, params.width(idx)).unwrap();
        }
        for copy in layout.copies.as_mut().unwrap() {
            let mut words = copy.blocks().to_vec();
            for _ in 0..3 {
                words[rng.random_range(0..300)] ^= 1 << rng.random_range(0..64);
            }
            *copy = Codes::from_blocks(len, 300, words).unwrap();
        }
        let rows = SegmentRows {
            mih: Some(layout.view()),
            ..SegmentRows::of(codes.as_ref())
        };
        for (_, engine) in engines(&rows) {
            let mut stats = SearchStats::default();
            let mut top = TopK::new(20, 1024);
            let knn = engine.knn(&query, &Allowed::All, &mut top, &mut stats);
            let mut found = Vec::new();
            let range = engine.range(&query, 9, &Allowed::All, &mut found, &mut stats);
            for result in [knn, range] {
                match result {
                    Ok(()) => answers += 1,
                    Err(error) => {
                        assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }));
                        errors += 1;
                    }
                }
            }
        }
    }
    assert!(
        errors > 100 && answers > 100,
        "damage went unseen: {errors} errors, {answers} answers"
    );
}

/// One batch against the searches of its queries one by one, for every kernel and through the engine.
fn check_batch(
    rows: &SegmentRows<'_>,
    queries: &[HashCode],
    tops: &[TopK],
    radius: u32,
    allowed: &Allowed<'_>,
    case: &str,
) {
    type Tops = Vec<TopK>;
    type Lists = Vec<Vec<Neighbor>>;
    type KnnBatch<'a> = Box<dyn Fn(&mut Tops, &mut SearchStats) + 'a>;
    type RangeBatch<'a> = Box<dyn Fn(&mut Lists, &mut SearchStats) + 'a>;

    // What earlier segments found stays.
    let earlier = vec![Neighbor {
        distance: 7,
        address: 1,
    }];
    let oracle = LinearScan::new(rows).with_kernel(Kernel::SCALAR);
    let mut expected_stats = SearchStats::default();
    let mut expected_lists = vec![earlier.clone(); queries.len()];
    let mut expected: Vec<Vec<Neighbor>> = Vec::new();
    for ((query, top), list) in queries.iter().zip(tops).zip(&mut expected_lists) {
        let (mut top, stats) = (top.clone(), &mut expected_stats);
        oracle.knn(query, allowed, &mut top, stats).unwrap();
        expected.push(top.into_sorted());
        oracle.range(query, radius, allowed, list, stats).unwrap();
    }

    let mut batches: Vec<(String, KnnBatch<'_>, RangeBatch<'_>)> = Vec::new();
    for kernel in Kernel::available() {
        let scan = LinearScan::new(rows).with_kernel(kernel);
        batches.push((
            format!("{kernel:?}"),
            Box::new(move |tops, stats| scan.knn_batch(queries, allowed, tops, stats).unwrap()),
            Box::new(move |lists, stats| {
                scan.range_batch(queries, radius, allowed, lists, stats)
                    .unwrap();
            }),
        ));
    }
    for choice in CHOICES {
        batches.push((
            format!("engine {choice}"),
            Box::new(move |tops, stats| {
                engine::knn_batch(rows, choice, queries, allowed, tops, stats).unwrap();
            }),
            Box::new(move |lists, stats| {
                engine::range_batch(rows, choice, queries, radius, allowed, lists, stats).unwrap();
            }),
        ));
    }
    for (name, knn_batch, range_batch) in batches {
        let case = format!("{name}, {} queries, {allowed:?}, {case}", queries.len());
        let mut stats = SearchStats::default();
        let mut tops = tops.to_vec();
        knn_batch(&mut tops, &mut stats);
        let found: Vec<Vec<Neighbor>> = tops.into_iter().map(TopK::into_sorted).collect();
        assert_eq!(found, expected, "{case}");
        let mut lists = vec![earlier.clone(); queries.len()];
        range_batch(&mut lists, &mut stats);
        assert_eq!(lists, expected_lists, "radius {radius}, {case}");
        if !name.starts_with("engine") || name == "engine scan" {
            assert_eq!(stats.segments_scan, expected_stats.segments_scan, "{case}");
        }
        if let Allowed::All = allowed
            && !name.starts_with("engine")
        {
            assert_eq!(stats.codes_scanned, expected_stats.codes_scanned, "{case}");
        }
    }
}

#[test]
fn batches_equal_their_queries_one_by_one() {
    for seed in 0..80 {
        let mut rng = ChaCha8Rng::seed_from_u64(4000 + seed);
        let bits = [16, 64, 72, 128, 256, 520][seed as usize % 6];
        let len = CodeLen::new(bits).unwrap();
        let data = ALL_DATA[seed as usize % 5];
        let n_codes = rng.random_range(1..3000);
        let (codes, query) = generate(data, len, n_codes, &mut rng);
        let mut doc = 0;
        let doc_ids: Vec<u32> = (0..n_codes)
            .map(|_| {
                doc += rng.random_range(1..5);
                doc
            })
            .collect();
        let segment = Segment::new(
            codes.clone(),
            (seed % 2 == 0).then_some(doc_ids),
            MihParams::choose(len, n_codes),
        );
        let n_queries = [0, 1, 2, 3, 4, 5, 8, 11][rng.random_range(0..8)];
        let queries: Vec<HashCode> = (0..n_queries)
            .map(|query_idx| match query_idx % 4 {
                0 => query.clone(),
                1 => random_code(len, &mut rng),
                2 => codes.get(rng.random_range(0..n_codes)),
                _ => flipped(&query, 0.05, &mut rng),
            })
            .collect();
        // Each query has a k and a greatest distance of its own; some are full or closed already.
        let tops: Vec<TopK> = (0..n_queries)
            .map(|_| {
                let k = [0, 1, 10, 100, n_codes + 3][rng.random_range(0..5)];
                let max_distance = match rng.random_range(0..3) {
                    0 => rng.random_range(0..bits as u32),
                    _ => u32::MAX,
                };
                let mut top = TopK::new(k, max_distance);
                for address in 0..rng.random_range(0..40) {
                    top.push(rng.random_range(0..3) * bits as u32 / 8, address);
                }
                top
            })
            .collect();
        let radius = rng.random_range(0..=bits as u32 / 2);
        let case = format!("{bits} bits, {n_codes} codes, {data:?}, seed {seed}");
        for rows in segment.all_rows() {
            check_batch(&rows, &queries, &tops, radius, &Allowed::All, &case);
        }
        for share in [0.0, 0.01, 0.3, 1.0] {
            let listed: Vec<u32> = (0..4 * n_codes as u32 + 9)
                .filter(|_| rng.random_bool(share))
                .collect();
            let is_listed = |doc: u32| listed.binary_search(&doc).is_ok();
            let case = format!("{case}, share {share}");
            let by_row = RowFilter::of_all(&segment, is_listed);
            for allowed in [Allowed::Listed(&listed), Allowed::Where(&is_listed)] {
                for (rows, allowed) in forms(&segment, &allowed, &by_row) {
                    check_batch(&rows, &queries, &tops, radius, &allowed, &case);
                }
            }
        }
    }
}

#[test]
fn batches_refuse_what_does_not_fit() {
    let len = CodeLen::new(64).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5000);
    let (codes, query) = generate(Data::Uniform, len, 20, &mut rng);
    let rows = SegmentRows::of(codes.as_ref());
    let (all, mut stats) = (Allowed::All, SearchStats::default());
    let queries = [query, HashCode::zeros(CodeLen::new(72).unwrap())];
    let mut tops = vec![TopK::new(3, 64); 2];
    let error = engine::knn_batch(
        &rows,
        EngineChoice::Auto,
        &queries,
        &all,
        &mut tops,
        &mut stats,
    )
    .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::CodeLenMismatch { .. }));
    let error = engine::knn_batch(
        &rows,
        EngineChoice::Auto,
        &queries[..1],
        &all,
        &mut tops,
        &mut stats,
    )
    .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidArgument(_)));
    let error = engine::range_batch(
        &rows,
        EngineChoice::Auto,
        &queries[..1],
        3,
        &all,
        &mut [],
        &mut stats,
    );
    assert!(matches!(
        error.unwrap_err().kind(),
        ErrorKind::InvalidArgument(_)
    ));
}
