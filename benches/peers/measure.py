"""tanhash side by side with its peers, in turns. Started by `run.py`; see README.md beside this file."""

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
import sets
from cases import (
    BUILD_SET, BUILDS, CASES, FILTER_SHARES, GROWTH, GROWTH_SIZES, LARGE, MILLION, PEERS, REAL, RECALL, SEGMENTS, Case,
)  # fmt: skip

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
MOST_TIMES_ROUNDS = 5


def arguments():
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the record, the tables and the plots")
    parser.add_argument("--sizes", default="1e6", help="numbers of codes, such as 1e6,1e7 (default 1e6)")
    parser.add_argument("--cases", default="", help="only these: rows (1,2,14), builds, filters, depth, segments, cold, growth, recall, real")
    parser.add_argument("--skip", default="", help="all but these")
    parser.add_argument("--rounds", type=int, default=5, help="turns of everybody, at the least")
    parser.add_argument("--seconds", type=float, default=4, help="more rounds until this time, five times as many at the most")
    parser.add_argument("--engines", default="scan,mih,cluster", help="shown beside auto, as far as tanhash has them")
    parser.add_argument("--grow-to", default="", help="largest size of the growth curves (default: the largest of --sizes)")
    parser.add_argument("--real", action="append", default=[], metavar="NAME=CODES,QUERIES",
                        help="files of packed 64-bit codes to measure with, themselves and multiplied")  # fmt: skip
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--tanhash", type=Path, help="program to measure; without it, a release build is made")
    parser.add_argument("--bench-args", default="", help="more arguments for every measuring `tanhash bench`")
    parser.add_argument("--data", type=Path, default=REPOSITORY / ".data/peers", help="folder for sets, peers and indexes")
    return parser.parse_args()


def pinned(core):
    return lambda: os.sched_setaffinity(0, {core})


class Record:
    """The lines of the record, in a file as they come and in memory."""

    def __init__(self, path):
        self.lines, self.file = [], open(path, "w")

    def add(self, kind, **facts):
        line = {"type": kind, **facts}
        self.lines.append(line)
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        return line


class Worker:
    """A peer's process."""

    def __init__(self, command, core, environment):
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=pinned(core), env=environment,
        )
        self.facts = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, what, op, n, **given):
        words = [what, op[0], op[1], n, *(f"{key}={value}" for key, value in given.items())]
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Lab:
    """Everything that is there for one set at a time: its files, our indexes, the peers, the true answers."""

    def __init__(self, args, record):
        self.args, self.record = args, record
        self.environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", RAYON_NUM_THREADS="1")
        self.key, self.peers, self.indexes, self.truths, self.verified = None, {}, {}, {}, {}
        self.mismatches = 0

    def use(self, name, n, bits):
        if self.key == (name, n, bits):
            return
        self.leave()
        self.key = (name, n, bits)
        self.codes, self.queries = sets.make(name, n, bits, self.args.data / "sets", self.args.real)
        say(f"{name}, {n:,} codes of {bits} bits")
        self.scratch = Path(tempfile.mkdtemp(prefix="index-", dir=self.args.data))

    def leave(self):
        for peer in self.peers.values():
            peer.close()
        if self.key:
            shutil.rmtree(self.scratch)
        self.peers, self.indexes, self.truths, self.verified, self.key = {}, {}, {}, {}, None

    def facts(self):
        return dict(zip(("set", "n", "bits"), self.key))

    # The peers.

    def start(self, name):
        peer = PEERS[name]
        bits = self.key[2]
        if peer["worker"] == "mih-rs":
            command = [self.args.mih_rs, self.codes, self.queries]
        else:
            options = dict(peer.get("options", {}))
            if peer.get("cached"):
                cache = self.args.data / "built"
                cache.mkdir(exist_ok=True)
                options["cache"] = cache / f"{peer['worker']}-{self.codes.stem}"
            words = [f"{key}={value}" for key, value in options.items()]
            command = [sys.executable, HERE / "worker.py", peer["worker"], self.codes, self.queries, bits, *words]
        worker = Worker(command, self.args.core, self.environment)
        self.record.add("peer", peer=name, **self.facts(), **worker.facts)
        return worker

    def peer(self, name):
        if name not in self.peers:
            self.peers[name] = self.start(name)
        return self.peers[name]

    def truth(self, op, n, share=None):
        """What FAISS Flat answers: distances, or numbers of hits."""
        key = (op, share)
        if key not in self.truths or len(self.truths[key]) < n:
            given = {} if share is None else dict(share=share)
            answer = self.peer("FAISS Flat").ask("answer", op, n, **given)
            self.truths[key] = next(iter(answer.values()))
        return self.truths[key][:n]

    def recall(self, name, op, n, given):
        """The share of answers that are as near as the true k-th one."""
        found, true = self.peer(name).ask("answer", op, n, **given)["distances"], self.truth(op, n)
        near = sum(sum(d <= row[-1] for d in answer) for answer, row in zip(found, true))
        return near / sum(map(len, true))

    def tuned(self, name, op, n, wanted):
        """The smallest setting whose measured recall is as wanted, and that recall."""
        setting, high = PEERS[name]["tune"], PEERS[name].get("least", 1)
        low, most = high - 1, PEERS[name]["most"]
        reached = {}

        def at(value):
            reached[value] = self.recall(name, op, n, {setting: value})
            return reached[value] >= wanted

        while not at(high):
            if high >= most:
                return {setting: high}, reached[high]
            low, high = high, min(2 * high, most)
        while high - low > max(1, low // 16):
            middle = (low + high) // 2
            low, high = (low, middle) if at(middle) else (middle, high)
        return {setting: high}, reached[high]

    # Ours.

    def tanhash(self, *words):
        command = [str(word) for word in (self.args.tanhash, "bench", *words)]
        done = subprocess.run(
            command, capture_output=True, text=True, preexec_fn=pinned(self.args.core), env=self.environment
        )
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)}:\n{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def build(self, engine, segments=1, folder=None):
        """An index as tanhash builds it for this engine; `auto` is what users get."""
        engine = "auto" if engine == "scan" else engine
        kept = folder is None
        if kept and (engine, segments) in self.indexes:
            return self.indexes[engine, segments]
        folder = folder or self.scratch / f"{engine}-{segments}"
        folder.mkdir()
        filters = ["--filter-share", ",".join(map(str, FILTER_SHARES))] if kept else []
        [line] = self.tanhash(
            "--codes", self.codes, "--queries", self.queries, "--bits", self.key[2], "--k", 1, "--max-queries", 1,
            "--engine", engine, "--segments", segments, "--keep", folder, *filters,
        )[:1]  # fmt: skip
        size = sum(file.stat().st_size for file in folder.iterdir())
        facts = {key: line[key] for key in ("segments", "build_s", "open_ms", "index_bytes")}
        facts = self.record.add("index", engine=engine, **self.facts(), **facts, folder_bytes=size)
        if kept:
            self.indexes[engine, segments] = folder
        return facts if not kept else folder

    def bench(self, op, engine, n, batch, share, segments, *more, passes=2):
        words = ["--open", self.build(engine, segments), "--queries", self.queries, "--bits", self.key[2]]
        words += ["--k" if op[0] == "knn" else "--radius", ",".join([str(op[1])] * passes)]
        words += ["--engine", engine, "--max-queries", n, *more, *shlex.split(self.args.bench_args)]
        if batch:
            words += ["--batch", n]
        if share is not None:
            # FAISS is handed its bitmap ready-made, so ours is evaluated outside the timing too.
            words += ["--filter-share", share, "--kept-filter"]
        # The first pass maps pages in, as the peers' first pass warms theirs.
        return self.tanhash(*words)[-1]

    def verify(self, op, engine, n, batch=False, share=None, segments=1):
        """Our answers against FAISS Flat's."""
        key = (op, engine, batch, share, segments)
        if self.verified.get(key, 0) >= n:
            return
        with tempfile.NamedTemporaryFile(dir=self.scratch) as out:
            self.bench(op, engine, n, batch, share, segments, "--out-distances", out.name, passes=1)
            ours = [json.loads(line)["distances"] for line in open(out.name)]
        true = self.truth(op, n, share)
        if op[0] == "knn":
            same = sum(answer == [d for d in row if d <= self.key[2]] for answer, row in zip(ours, true))
        else:
            same = sum(len(answer) == count and max(answer, default=0) <= op[1] for answer, count in zip(ours, true))
        self.verified[key] = n
        facts = dict(op=list(op), engine=engine, batch=batch, share=share, segments=segments, queries=n)
        self.record.add("check", **self.facts(), **facts, same=same)
        if same != n or len(ours) != n:
            self.mismatches += 1
            say(f"MISMATCH: {self.facts()} {facts}: {same} of {n} answers are those of FAISS Flat")

    def our_turn(self, op, engine, n, batch=False, share=None, segments=1):
        self.verify(op, engine, n, batch, share, segments)
        return lambda: self.bench(op, engine, n, batch, share, segments)

    def peer_turn(self, name, op, n, **given):
        worker = self.peer(name)
        return lambda: worker.ask("time", op, n, **given)

    def rounds(self, turns):
        """Everybody once a round, each round beginning with the next; ms of every round by name."""
        names, times = list(turns), {name: [] for name in turns}
        started, number = time.monotonic(), 0
        while number < self.args.rounds or (
            number < MOST_TIMES_ROUNDS * self.args.rounds and time.monotonic() - started < self.args.seconds
        ):
            shift, number = number % len(names), number + 1
            for name in names[shift:] + names[:shift]:
                times[name].append(turns[name]()["ms_mean"])
        return times


def say(text):
    print(text, file=sys.stderr, flush=True)


def ratios(above, below):
    return [a / b for a, b in zip(above, below)]


def measure(lab, case, n, engines):
    lab.use(case.set, n, case.bits)
    count, batch = case.n_queries(n), case.figure == "batch"
    recall, given = None, {}
    if case.share is not None:
        given["share"] = case.share
    if "tune" in PEERS[case.peer]:
        tune, recall = lab.tuned(case.peer, case.op, count, case.recall)
        given.update(tune)
    elif case.op[0] == "radius" and case.peer != "FAISS Flat":
        same = lab.peer(case.peer).ask("answer", case.op, count)["counts"] == lab.truth(case.op, count)
        lab.record.add("peer check", peer=case.peer, **lab.facts(), op=list(case.op), queries=count, same=same)
        if not same:
            say(f"{case.peer} does not answer as FAISS Flat does: {lab.facts()} {case.op}")
    elif case.op[0] == "knn" and case.peer != "FAISS Flat":
        recall = lab.recall(case.peer, case.op, count, {})
    # tanhash times a batch only where the case is about batches; elsewhere its single queries stand.
    ours_batch = case.row == "3"
    turns = {"ours": lab.our_turn(case.op, case.ours, count, ours_batch, case.share)}
    # No batch of the peer where a pass takes it too long.
    if case.row != "3":
        turns["single"] = lab.peer_turn(case.peer, case.op, count, **given)
    if lab.peer(case.peer).facts.get("has_batch") and case.share is None:
        turns["batch"] = lab.peer_turn(case.peer, case.op, count, batch=1, **given)
    for engine in ("auto", *engines):
        if engine != case.ours:
            turns[f"ours {engine}"] = lab.our_turn(case.op, engine, count, ours_batch, case.share)
    times = lab.rounds(turns)
    figure = case.figure
    if figure is None:
        quick = "batch" in times and statistics.median(times["single"]) < 0.05
        figure = "batch" if quick else "single"
    if figure not in times:
        figure = "single"
    ours = {name.removeprefix("ours").strip() or case.ours: ms for name, ms in times.items() if name.startswith("ours")}
    row = lab.record.add(
        "row", row=case.row, **lab.facts(), op=list(case.op), share=case.share, peer=case.peer, tuned=given,
        recall=recall, queries=count, figure=figure, single_ms=times.get("single"), batch_ms=times.get("batch"),
        engine=case.ours, ours_ms=ours, ratio=ratios(times[figure], ours[case.ours]), must=case.must,
        moonshot=case.moonshot, stated=n in case.at, better="more",
    )  # fmt: skip
    say("  " + report.line(row))


def filters(lab, sizes):
    """Row 15: a filter against the own search without it."""
    n = min(max(sizes), MILLION)
    for name in ("uni", "c1000p10"):
        lab.use(name, n, 64)
        for engine in ("scan", "auto"):
            turns = {share: lab.our_turn(("knn", 10), engine, 100, share=share) for share in (None, *FILTER_SHARES)}
            times = lab.rounds(turns)
            for share in FILTER_SHARES:
                row = lab.record.add(
                    "row", row="15", **lab.facts(), op=["knn", 10], share=share, peer=f"own {engine}, no filter",
                    queries=100, figure="single", single_ms=times[None], engine=engine, ours_ms={engine: times[share]},
                    ratio=ratios(times[share], times[None]), must=1.1, moonshot=1.0 if share < 0.1 else None,
                    stated=n == MILLION and engine == "scan", better="less",
                )  # fmt: skip
                say("  " + report.line(row))


def depth(lab, sizes):
    """Row 18: a hundred nearest against ten."""
    n = min(max(sizes), MILLION)
    for name in ("uni", "c1000p10"):
        lab.use(name, n, 64)
        turns = {k: lab.our_turn(("knn", k), "auto", 100) for k in (10, 100)}
        for k in (10, 100):
            turns[f"sqlite {k}"] = lab.peer_turn("sqlite-vec", ("knn", k), 5)
        times = lab.rounds(turns)
        row = lab.record.add(
            "row", row="18", **lab.facts(), op=["knn", 100], share=None, peer="own k=10", queries=100, figure="single",
            single_ms=times[10], engine="auto", ours_ms={"auto": times[100]}, ratio=ratios(times[100], times[10]),
            must=2, moonshot=None, stated=n == MILLION, better="less",
            note=f"sqlite-vec: {statistics.median(ratios(times['sqlite 100'], times['sqlite 10'])):.1f}x",
        )  # fmt: skip
        say("  " + report.line(row))


def builds(lab, n, engines):
    """Rows 16 and 17: building, in turns, and what the result takes."""
    name, bits = BUILD_SET
    lab.use(name, n, bits)
    wanted = [build for build in BUILDS if build[0] in (*engines, "auto")]
    ours, theirs = {}, {}
    for number in range(min(lab.args.rounds, 3 if n <= MILLION else 1)):
        # What the peers time: from codes in memory to the structure. The whole index, documents and all, is
        # in the entries beside.
        *structures, _ = lab.tanhash(
            "--codes", lab.codes, "--queries", lab.queries, "--bits", bits, "--k", 1, "--max-queries", 1,
            "--engine", "scan", "--tables", "none", "--structures",
        )  # fmt: skip
        alone = {line["tables"]: line["structures_s"] for line in structures}
        for engine in {build[0]: None for build in wanted}:
            with tempfile.TemporaryDirectory(dir=lab.scratch) as folder:
                facts = lab.build(engine, folder=Path(folder) / "index")
            ours.setdefault(engine, []).append({**facts, "structures_s": alone[engine]})
        for peer in {build[1]: None for build in wanted}:
            worker = lab.start(peer)
            theirs.setdefault(peer, []).append(worker.facts)
            worker.close()
    for engine, peer, must, moonshot, memory in wanted:
        pairs = list(zip(theirs[peer], ours[engine]))
        common = dict(**lab.facts(), peer=peer, engine=engine, stated=n in LARGE, better="more")
        lab.record.add(
            "row", row="16", **common, unit="s", op=["build", engine], figure="single",
            single_ms=[t["build_s"] for t, _ in pairs], ours_ms={engine: [o["structures_s"] for _, o in pairs]},
            ratio=[t["build_s"] / o["structures_s"] for t, o in pairs], must=must, moonshot=moonshot,
        )  # fmt: skip
        size = [o["index_bytes"] / 2**20 for _, o in pairs]
        row = lab.record.add(
            "row", row="17", **common, unit="MiB", op=["memory", engine], figure="single",
            single_ms=[t["mib"] for t, _ in pairs], ours_ms={engine: size},
            ratio=[t["mib"] / mib for (t, _), mib in zip(pairs, size)], must=memory, moonshot=None,
        )  # fmt: skip
        say("  " + report.line(row))


def segments(lab, sizes, engines):
    n = min(max(sizes), MILLION)
    lab.use("c1000p10", n, 64)
    for op, engine in ((("knn", 10), "auto"), (("knn", 10), "scan"), (("radius", 8), "auto")):
        times = lab.rounds({count: lab.our_turn(op, engine, 200, segments=count) for count in SEGMENTS})
        for count, ms in times.items():
            lab.record.add("segments", **lab.facts(), op=list(op), engine=engine, segments=count, ms=ms)


def cold(lab, sizes):
    """The first query of a process, the index's files in no cache and in the page cache."""
    n = max(sizes)
    lab.use("c1000p10", n, 64)
    op = ("knn", 10)
    for engine in ("auto", "scan"):
        lab.verify(op, engine, 30)
        # Only pages that the disk has are dropped.
        os.sync()
        times = {who: [] for who in ("cold", "warm")}
        for _ in range(lab.args.rounds):
            for who in times:
                for file in lab.build(engine).iterdir():
                    with open(file, "rb") as opened:
                        if who == "cold":
                            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                times[who].append(lab.bench(op, engine, 1, False, None, 1, passes=1)["ms_mean"])
        for who, ms in times.items():
            lab.record.add("cold", **lab.facts(), op=list(op), engine=engine, who=who, ms=ms)


def real(lab, sizes, engines):
    """Codes of trained models: as they are, and as many as the largest size, each with fresh noise."""
    for name, (codes, _) in lab.args.real.items():
        for n in sorted({codes.stat().st_size // 8, max(sizes)}):
            for op, peer in REAL:
                case = Case("real", name, 64, op, peer, None, None, (), queries=(200, 50))
                measure(lab, case, n, engines)


def growth(lab, sizes, largest):
    for n in GROWTH_SIZES + [10**8]:
        if n > largest:
            break
        for name, op, engine, peers in GROWTH:
            lab.use(name, n, 64)
            count = 100 if n <= MILLION else 30
            turns = {f"tanhash {engine}": lab.our_turn(op, engine, count)}
            for peer in peers:
                turns[peer] = lab.peer_turn(peer, op, count)
            for who, ms in lab.rounds(turns).items():
                lab.record.add("growth", **lab.facts(), op=list(op), who=who, ms=ms)


def recall(lab, sizes, engines):
    op = ("knn", 10)
    for n in sizes:
        lab.use("c1000p10", n, 64)
        turns = {f"tanhash {engine}": lab.our_turn(op, engine, 200) for engine in ("auto", *engines)}
        points = {who: (who, {}, 1.0) for who in turns}
        for peer, settings in RECALL.items():
            if n > MILLION and "HNSW" in peer:
                continue
            for given in settings:
                label = f"{peer} {given}"
                points[label] = (peer, given, lab.recall(peer, op, 200, given))
                # One call for all of them: no share of Python in the time.
                turns[label] = lab.peer_turn(peer, op, 200, batch=1, **given)
        for label, ms in lab.rounds(turns).items():
            who, given, reached = points[label]
            lab.record.add("recall", **lab.facts(), op=list(op), who=who, tuned=given, recall=reached, ms=ms)


def shell(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    return done.stdout.strip()


def has_engine(tanhash, engine):
    """Whether the program knows the engine: it refuses an unknown one before it looks for files."""
    words = ["bench", "--codes", os.devnull, "--queries", os.devnull, "--bits", "64", "--k", "1", "--engine", engine]
    return subprocess.run([tanhash, *words], capture_output=True).returncode != 2


def about(args, engines):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    pip = json.loads(shell(sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    wanted = {line.split("==")[0] for line in (HERE / "requirements.txt").read_text().split()}
    versions = {package["name"]: package["version"] for package in pip if package["name"] in wanted}
    lock = (HERE / "mih-rs/Cargo.lock").read_text().split('name = "mih-rs"\nversion = "')[1]
    out = Path(os.path.relpath(args.out.resolve(), REPOSITORY))
    words = ["benches/peers/run.py", "--out", out.name if out.parts[0] == ".." else str(out), "--sizes", args.sizes]
    for name in ("cases", "skip", "grow_to", "bench_args"):
        if getattr(args, name):
            words += ["--" + name.replace("_", "-"), getattr(args, name)]
    for name in args.real:
        words += ["--real", f"{name}=CODES,QUERIES"]
    words += ["--rounds", str(args.rounds), "--seconds", f"{args.seconds:g}", "--core", str(args.core)]
    return dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=shell("git", "rev-parse", "HEAD"),
        changed=bool(shell("git", "status", "--porcelain", "--untracked-files=no")),
        command=shlex.join(words), cpu=cpu, cores=os.cpu_count(), memory_gib=round(memory, 1),
        system=f"{platform.system()} {platform.release()}", python=platform.python_version(),
        rustc=shell("rustc", "--version"), tanhash=shell(args.tanhash, "--version"),
        versions={**versions, "mih-rs": lock.split('"')[0]},
        engines=["auto", *engines], rounds=args.rounds, core=args.core, load_before=os.getloadavg()[0],
    )  # fmt: skip


def cargo(*words, **environment):
    command = [os.environ.get("CARGO", "cargo"), *map(str, words)]
    subprocess.check_call(command, cwd=REPOSITORY, env=dict(os.environ, **environment))


def main():
    args = arguments()
    args.data = args.data.resolve()
    named = (given.partition("=") for given in args.real)
    args.real = {name: tuple(Path(path).resolve() for path in paths.split(",")) for name, _, paths in named}
    if not args.tanhash:
        cargo("build", "--release", "--features", "cli")
        args.tanhash = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "release/tanhash"
    args.tanhash = args.tanhash.resolve()
    target = args.data / "mih-rs"
    manifest = HERE / "mih-rs/Cargo.toml"
    # As its author measures it: for this very CPU.
    cargo("build", "--release", "--quiet", "--locked", "--manifest-path", manifest, "--target-dir", target,
          RUSTFLAGS="-C target-cpu=native")  # fmt: skip
    args.mih_rs = target / "release/peer-mih-rs"

    sizes = sorted(int(float(size)) for size in args.sizes.split(","))
    only, skip = ({word for word in words.split(",") if word} for words in (args.cases, args.skip))
    wanted = lambda name: (not only or name in only) and name not in skip  # noqa: E731
    engines = [engine for engine in args.engines.split(",") if engine and has_engine(args.tanhash, engine)]
    args.out.mkdir(parents=True, exist_ok=True)
    record = Record(args.out / "record.jsonl")
    record.add("run", **about(args, engines))
    lab = Lab(args, record)
    started = datetime.datetime.now()
    try:
        # Set by set, so that one set's indexes are there at a time.
        work = [(case.set, case.bits, n, case) for case in CASES if wanted(case.row) for n in case.sizes(sizes)]
        order = {key: at for at, key in enumerate(dict.fromkeys((n, name, bits) for name, bits, n, _ in work))}
        for name, bits, n, case in sorted(work, key=lambda job: (job[2], order[job[2], job[0], job[1]])):
            measure(lab, case, n, engines)
        for n in sizes:
            if wanted("16") or wanted("17") or wanted("builds"):
                builds(lab, n, engines)
        if wanted("15") or wanted("filters"):
            filters(lab, sizes)
        if wanted("18") or wanted("depth"):
            depth(lab, sizes)
        if wanted("segments"):
            segments(lab, sizes, engines)
        if wanted("cold"):
            cold(lab, sizes)
        if wanted("real"):
            real(lab, sizes, engines)
        if wanted("recall"):
            recall(lab, sizes, engines)
        if wanted("growth"):
            growth(lab, sizes, int(float(args.grow_to)) if args.grow_to else max(sizes))
    finally:
        lab.leave()
        minutes = (datetime.datetime.now() - started).total_seconds() / 60
        record.add("end", minutes=round(minutes, 1), load_after=os.getloadavg()[0], mismatches=lab.mismatches)
        report.write(record.lines, args.out)
    print((args.out / "table.md").read_text())
    if lab.mismatches:
        raise SystemExit(f"{lab.mismatches} cases in which answers of tanhash are not those of FAISS Flat")


if __name__ == "__main__":
    main()
