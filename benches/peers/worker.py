"""One peer as a process: builds its index of one set, then answers requests, one a line, with JSON, one line each.

    worker.py PEER CODES QUERIES BITS [key=value ...]
    time knn 10 500 nprobe=4 batch=1     -> {"ms_mean": ..., "ms_p50": ..., "ms_p99": ...}
    answer knn 10 500 nprobe=4           -> {"distances": [[...], ...]}
    answer radius 8 100                  -> {"counts": [...]}

The first line of output says what building cost. `mih-rs/` speaks the same words.
"""

import ctypes
import gc
import json
import os
import sys
import time

import numpy as np

import sets

NO_HIT = 1 << 20


def memory_mib():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


class Faiss:
    """What all binary indexes of FAISS share."""

    has_batch = True

    def __init__(self, codes, bits, options):
        import faiss

        faiss.omp_set_num_threads(1)
        self.faiss, self.bits, self.options, self.selectors = faiss, bits, options, {}
        self.rows = len(codes)

    def prepare(self, op, argument, given):
        self.tune(op, argument, given)
        index, more = self.index, {}
        if "share" in given:
            more["params"] = self.faiss.SearchParameters(sel=self.selector(float(given["share"])))
        if op == "knn":
            return lambda queries: index.search(queries, argument, **more)[0]
        # FAISS counts distances strictly below its radius.
        return lambda queries: np.diff(index.range_search(queries, argument + 1, **more)[0].astype(np.int64))

    def selector(self, share):
        if share not in self.selectors:
            bitmap = np.packbits(sets.in_share(self.rows, share), bitorder="little")
            # The selector keeps a pointer only, so the bitmap stays here.
            self.selectors[share] = bitmap, self.faiss.IDSelectorBitmap(bitmap)
        return self.selectors[share][1]

    def tune(self, op, argument, given):
        pass


class Flat(Faiss):
    def build(self, codes):
        self.index = self.faiss.IndexBinaryFlat(self.bits)
        self.index.add(codes)


class MultiHash(Faiss):
    def build(self, codes):
        self.index = self.faiss.IndexBinaryMultiHash(self.bits, self.options["nhash"], self.options["b"])
        self.index.add(codes)

    def tune(self, op, argument, given):
        # Within r bits, one of the parts differs by at most r / parts.
        exact = argument // self.options["nhash"] if op == "radius" else 0
        self.index.nflip = int(given.get("nflip", exact))


class Ivf(Faiss):
    def build(self, codes):
        lists = self.options["nlist"]
        self.quantizer = self.faiss.IndexBinaryFlat(self.bits)
        self.index = self.faiss.IndexBinaryIVF(self.quantizer, self.bits, lists)
        self.index.cp.niter = 5
        self.index.cp.max_points_per_centroid = 64
        rows = np.random.default_rng(0).choice(len(codes), min(len(codes), 64 * lists), replace=False)
        self.index.train(codes[np.sort(rows)])
        self.index.add(codes)

    def tune(self, op, argument, given):
        self.index.nprobe = int(given["nprobe"])


class Hnsw(Faiss):
    def build(self, codes):
        self.index = self.faiss.IndexBinaryHNSW(self.bits, 16)
        self.index.hnsw.efConstruction = 40
        self.index.add(codes)

    def save(self, path):
        self.faiss.write_index_binary(self.index, path)

    def load(self, path):
        self.index = self.faiss.read_index_binary(path)

    def tune(self, op, argument, given):
        self.index.hnsw.efSearch = int(given["ef"])


class UsearchHnsw:
    has_batch = True

    def __init__(self, codes, bits, options):
        from usearch.index import Index

        self.index = Index(ndim=bits, metric="hamming", dtype="b1", connectivity=16, expansion_add=64)

    def build(self, codes):
        self.index.add(np.arange(len(codes)), codes, threads=1)

    def save(self, path):
        self.index.save(path)

    def load(self, path):
        self.index.load(path)

    def prepare(self, op, argument, given):
        self.index.expansion_search = int(given["ef"])

        def search(queries):
            found = self.index.search(queries if len(queries) > 1 else queries[0], argument, threads=1)
            return np.atleast_2d(found.distances)

        return search


class UsearchExact:
    has_batch = True

    def __init__(self, codes, bits, options):
        from usearch import index

        self.module = index

    def build(self, codes):
        self.codes = codes

    def prepare(self, op, argument, given):
        def search(queries):
            found = self.module.search(
                self.codes, queries, argument, self.module.MetricKind.Hamming,
                exact=True, threads=1, dtype=self.module.ScalarKind.B1,
            )
            return np.atleast_2d(found.distances)

        return search


class SqliteVec:
    has_batch = False

    def __init__(self, codes, bits, options):
        # Not every Python's own sqlite3 may load extensions.
        import apsw
        import sqlite_vec

        self.bits, self.connection = bits, apsw.Connection(":memory:")
        self.connection.enable_load_extension(True)
        self.connection.load_extension(sqlite_vec.loadable_path())

    def build(self, codes):
        rows = ((row, code.tobytes()) for row, code in enumerate(codes))
        with self.connection as connection:
            connection.execute(f"CREATE VIRTUAL TABLE hashes USING vec0(code bit[{self.bits}])")
            connection.cursor().executemany("INSERT INTO hashes(rowid, code) VALUES (?, vec_bit(?))", rows)

    def prepare(self, op, argument, given):
        text = "SELECT distance FROM hashes WHERE code MATCH vec_bit(?) AND k = ?"

        def search(queries):
            return [
                [distance for (distance,) in self.connection.execute(text, (query.tobytes(), argument))]
                for query in queries
            ]

        return search


PEERS = {
    "flat": Flat, "multihash": MultiHash, "ivf": Ivf, "hnsw": Hnsw,
    "usearch-hnsw": UsearchHnsw, "usearch-exact": UsearchExact, "sqlite-vec": SqliteVec,
}  # fmt: skip


def reply(value):
    print(json.dumps(value), flush=True)


def timed(search, queries, batch):
    """Every query alone, or all in one call; after one pass that is not timed."""
    calls = [queries] if batch else [queries[row : row + 1] for row in range(len(queries))]
    times = []
    for call in calls:
        search(call)
    gc.collect()
    gc.disable()
    for call in calls:
        started = time.perf_counter()
        search(call)
        times.append((time.perf_counter() - started) * 1e3 / len(call))
    gc.enable()
    return {
        "ms_mean": float(np.mean(times)),
        "ms_p50": float(np.median(times)),
        "ms_p99": float(np.quantile(times, 0.99)),
    }


def answered(op, found):
    if op == "radius":
        return {"counts": [int(count) for count in found]}
    rows = [[int(d) if 0 <= d < NO_HIT else NO_HIT for d in row] for row in found]
    return {"distances": [sorted(row) for row in rows]}


def start(peer, codes, bits, options):
    """The peer with its index, and what building cost: now, or when the cached index was built."""
    cache = options.get("cache")
    peer = PEERS[peer](codes, bits, options)
    before = memory_mib()
    facts = {"has_batch": peer.has_batch}
    if cache and os.path.exists(cache + ".json"):
        with open(cache + ".json") as file:
            facts["build_s"] = json.load(file)["build_s"]
        facts["cached"] = True
        peer.load(cache)
    else:
        started = time.perf_counter()
        peer.build(codes)
        facts["build_s"] = time.perf_counter() - started
        if cache:
            peer.save(cache)
            with open(cache + ".json", "w") as file:
                json.dump(facts, file)
    facts["mib"] = memory_mib() - before
    return peer, facts


def main():
    name, codes, queries, bits, *options = sys.argv[1:]
    options = dict(option.split("=", 1) for option in options)
    options = {key: int(value) if value.isdigit() else value for key, value in options.items()}
    bits = int(bits)
    codes, queries = sets.read(codes, bits), sets.read(queries, bits)
    peer, facts = start(name, codes, bits, options)
    if name != "usearch-exact":
        del codes
    reply(facts)
    for line in sys.stdin:
        what, op, argument, n, *given = line.split()
        given = dict(option.split("=", 1) for option in given)
        batch = given.pop("batch", "0") == "1"
        search, chosen = peer.prepare(op, int(argument), given), queries[: int(n)]
        if what == "time":
            reply(timed(search, chosen, batch))
        else:
            reply(answered(op, search(chosen)))


if __name__ == "__main__":
    main()
