"""What is measured, as data: the cases, their peers, and the ratios to reach."""

from dataclasses import dataclass

MILLION = 10**6
SMALL, LARGE = (MILLION,), (10 * MILLION,)
BOTH = SMALL + LARGE

# Peers by name: what `worker.py` or `mih-rs` is started with, what a search is tuned with, and whether it is exact.
PEERS = {
    "FAISS Flat": dict(worker="flat"),
    "FAISS MultiHash 3x21": dict(worker="multihash", options=dict(nhash=3, b=21)),
    "FAISS MultiHash 16x16": dict(worker="multihash", options=dict(nhash=16, b=16)),
    "FAISS IVF2048": dict(worker="ivf", options=dict(nlist=2048), tune="nprobe", most=2048),
    "FAISS HNSW M16": dict(worker="hnsw", tune="ef", least=16, most=2048, cached=True),
    "usearch HNSW M16": dict(worker="usearch-hnsw", tune="ef", least=16, most=2048, cached=True),
    "usearch exact": dict(worker="usearch-exact"),
    "sqlite-vec": dict(worker="sqlite-vec"),
    "mih-rs": dict(worker="mih-rs"),
}


@dataclass
class Case:
    """Our engine against one peer on one set, with the least ratios that are wanted."""

    row: str
    set: str
    bits: int
    op: tuple
    peer: str
    must: float
    moonshot: float | None
    # The sizes the ratios are meant for.
    at: tuple = BOTH
    most_n: int = 10 * MILLION
    ours: str = "auto"
    queries: tuple = (100, 30)  # up to a million codes, and above
    # "single", "batch", or None: batch where a single call takes the peer less than 50 us.
    figure: str | None = None
    share: float | None = None
    # The least recall that an approximate peer is tuned to.
    recall: float = 1.0
    note: str = ""

    def sizes(self, sizes):
        """Those that the ratios are meant for, or all that are possible where none of them is asked for."""
        possible = [n for n in sizes if n <= self.most_n]
        return [n for n in possible if n in self.at] or possible

    def n_queries(self, n):
        return self.queries[n > MILLION]


def knn(k):
    return ("knn", k)


def radius(r):
    return ("radius", r)


SLOW, QUICK, MIDDLE = (100, 30), (1000, 500), (200, 100)

CASES = [
    # One scan, the codes in the cache and beyond it.
    Case("1", "uni", 64, knn(10), "FAISS Flat", 2, 4, SMALL, MILLION, ours="scan"),
    Case("1", "uni", 256, knn(10), "FAISS Flat", 1.3, 2, SMALL, MILLION, ours="scan"),
    Case("1", "c1000p10", 256, knn(10), "FAISS Flat", 1.3, 3, SMALL, MILLION, ours="scan"),
    Case("2", "uni", 64, knn(10), "FAISS Flat", 3, 5, LARGE, ours="scan"),
    Case("2", "uni", 256, knn(10), "FAISS Flat", 1.8, 4, LARGE, ours="scan"),
    Case("2", "c1000p10", 256, knn(10), "FAISS Flat", 1.8, 4, LARGE, ours="scan"),
    # Many queries in one call.
    Case("3", "uni", 64, knn(10), "FAISS Flat", 5, 15, figure="batch", queries=(128, 64)),
    Case("3", "uni", 256, knn(10), "FAISS Flat", 4, 8, figure="batch", queries=(128, 64)),
    # Nearest codes where codes cluster.
    Case("4", "c1000p10", 64, knn(10), "FAISS Flat", 500, 2000, LARGE),
    Case("4", "c1000p10", 256, knn(10), "FAISS Flat", 500, 2000, LARGE),
    Case("5", "c1000p10", 64, knn(10), "FAISS IVF2048", 1.5, 5, LARGE, queries=QUICK),
    Case("5", "c1000p10", 256, knn(10), "FAISS IVF2048", 1.5, 5, LARGE, queries=QUICK),
    Case("6", "c1000p10", 64, knn(10), "FAISS HNSW M16", 20, 100, SMALL, MILLION, queries=QUICK, recall=0.97),
    Case("6", "c1000p10", 256, knn(10), "FAISS HNSW M16", 20, 100, SMALL, MILLION, queries=QUICK, recall=0.97),
    Case("6", "c1000p10", 64, knn(10), "usearch HNSW M16", 20, 100, SMALL, MILLION, queries=QUICK, recall=0.97),
    Case("8", "c1000p10", 64, knn(10), "mih-rs", 10, 60, queries=(500, 200)),
    Case("9", "c1000p20", 64, knn(10), "FAISS IVF2048", 1, 3, LARGE, queries=MIDDLE, recall=0.999),
    # Nearest codes where they do not.
    Case("10", "uni", 64, knn(10), "FAISS Flat", 4, 15, LARGE),
    Case("10", "uni", 64, knn(10), "mih-rs", 3, 15, LARGE, queries=(100, 50)),
    # Everything within a radius.
    *(
        Case("11", name, 64, radius(r), "FAISS MultiHash 3x21", 10, 50, LARGE, figure="batch", queries=MIDDLE)
        for name in ("c1000p10", "uni")
        for r in (4, 8)
    ),
    *(Case("12", "c1000p10", 64, radius(r), "mih-rs", 2, m, LARGE, queries=MIDDLE) for r, m in ((2, 10), (4, 20), (8, 30))),
    *(
        Case("13", name, 256, radius(31), peer, 15, 100, SMALL, MILLION, queries=MIDDLE)
        for name in ("c1000p10", "uni")
        for peer in ("FAISS MultiHash 16x16", "FAISS Flat")
    ),
    # A filter inside the search.
    Case("14", "c1000p10", 64, knn(10), "FAISS Flat", 10, 25, SMALL, MILLION, share=0.5),
    Case("14", "c1000p10", 64, knn(10), "FAISS Flat", 50, 300, SMALL, MILLION, share=0.01),
    Case("14", "uni", 64, knn(10), "FAISS Flat", 10, 25, SMALL, MILLION, share=0.5),
    Case("14", "uni", 64, knn(10), "FAISS Flat", 50, 300, SMALL, MILLION, share=0.01),
    # Other embedded ones.
    Case("19", "c1000p10", 64, knn(10), "sqlite-vec", 10, None, SMALL, MILLION, queries=(10, 10)),
    Case("19", "c1000p10", 64, knn(10), "usearch exact", 10, None, SMALL, MILLION, queries=(10, 10), figure="batch"),
    # Hard inputs, without a target.
    Case("corr", "corr", 64, knn(10), "mih-rs", None, None, (), MILLION, queries=MIDDLE),
    Case("corr", "corr", 64, radius(2), "mih-rs", None, None, (), MILLION, queries=MIDDLE),
    Case("dup", "dup", 64, knn(10), "FAISS Flat", None, None, (), MILLION),
    Case("dup", "dup", 64, knn(10), "mih-rs", None, None, (), MILLION, queries=(50, 50)),
    Case("dup", "dup", 64, radius(2), "mih-rs", None, None, (), MILLION, queries=(50, 50)),
]  # fmt: skip

# Rows 16 and 17: building and size, by the engine that the index is built for.
BUILDS = [
    ("mih", "FAISS MultiHash 3x21", 5, 20, 3),
    ("cluster", "FAISS IVF2048", 2, 5, 1.5),
    ("auto", "FAISS MultiHash 3x21", None, None, None),
]
BUILD_SET = ("c1000p10", 64)

# Rows without a measurement: the peer, the ratios wanted, and why.
NOT_RUN = [
    ("7", "norouzi/mih", 5, 50, "a C++ program with HDF5, in no package registry"),
    ("19", "hermes-core, kernel", 10, None, "a kernel, not an index to call"),
    ("19", "pgvector, sequential scan", 10, None, "a server"),
]

# Growth with the number of codes: our operations and the peers'.
GROWTH_SIZES = [10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7]
GROWTH = [
    ("c1000p10", knn(10), "auto", ["FAISS Flat", "mih-rs"]),
    ("c1000p10", radius(8), "auto", ["mih-rs"]),
    ("uni", knn(10), "auto", ["mih-rs"]),
    ("uni", knn(10), "scan", []),
]

# Recall against time: what each peer is tuned with.
RECALL = {
    "FAISS IVF2048": [dict(nprobe=p) for p in (1, 2, 4, 8, 16, 32, 64)],
    "FAISS HNSW M16": [dict(ef=ef) for ef in (16, 32, 64, 128, 256, 512)],
    "usearch HNSW M16": [dict(ef=ef) for ef in (16, 32, 64, 128, 256, 512)],
    "FAISS MultiHash 3x21": [dict(nflip=f) for f in (0, 1, 2)],
}

# Questions asked of real codes, and whom else.
REAL = [
    (knn(10), "FAISS Flat"),
    (knn(10), "FAISS IVF2048"),
    (knn(10), "mih-rs"),
    (radius(4), "FAISS MultiHash 3x21"),
]

SEGMENTS = (1, 10, 100)

FILTER_SHARES = (0.5, 0.01)
