#!/usr/bin/env python3
"""Tables of a record that run.py wrote: `report.py FOLDER PAGE` puts them between the marks of PAGE.

A mark is `<!-- NAME: written by benches/results/report.py -->`, up to `<!-- up to here -->`; NAME is a function in TABLES.
Figures are means over the seeds, then the sample standard deviation. Needs nothing but Python.
"""

import json
import re
import statistics
import sys
from pathlib import Path

BITS = (16, 32, 64)
NONE = "Not in this record"
NAMES = {
    "orthohash": "OrthoHash", "orthohash, shc centers": "OrthoHash, centers of SHC",
    "orthohash, class means": "OrthoHash, centers of class means", "shc": "SHC", "shc, class means": "SHC, centers of class means", "shc, released": "SHC, as released",
    "shrewd": "SHREWD (unverified)", "csq": "CSQ", "dpn": "DPN", "greedyhash": "GreedyHash", "hashnet": "HashNet", "itq": "ITQ, untrained", "lsh": "sign-LSH, untrained",
}  # fmt: skip
# The published mAP of papers and benchmarks on the same split (x 100), by group and method: mAP@1000 on 95/5, mAP@all on SHC's.
PUBLISHED = {
    "cifar100-95-5": ("ResNet-50 fine-tuned", {"orthohash": (61.7, 68.8, 72.2), "csq": (62.9, 66.8, 62.9), "hashnet": (16.1, 26.9, 38.4)}),
    "cifar100-shc": ("ResNet-34 fine-tuned", {"orthohash": (38.1, 39.5, 40.6), "csq": (42.7, 48.8, 51.9), "shc": (48.4, 51.9, 52.6)}),
}  # fmt: skip
PUBLISHED["lite-95-5"] = PUBLISHED["cifar100-95-5"]
PUBLISHED["lite-shc"] = PUBLISHED["lite-shc-160"] = PUBLISHED["lite-shc-96"] = PUBLISHED["cifar100-shc"]

# CIFAR-10, mAP@all, with the bits.
CIFAR10 = {
    "cifar10-1": {
        "orthohash": "82.4 (64)", "csq": "79.0 (64)", "dpn": "78.7 (48)", "greedyhash": "82.2, 81.7 (48)", "hashnet": "79.4 to 80.7 (48)",
    },
    "cifar10-2": {"greedyhash": "94.4, 93.2 (48)"},
}  # fmt: skip


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines) + "\n"


def mean(values, scale=100, digits=1, seeds=3):
    """Mean and spread; how many there are, if fewer than the seeds that belong in a table."""
    if not values:
        return "–"
    text = f"{scale * statistics.mean(values):.{digits}f}"
    text += f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return text + (f" (n = {len(values)})" if len(values) < seeds else "")


class Record:
    """The cells of a folder."""

    def __init__(self, folder):
        self.cells = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*/*.json"))]

    def of(self, group, **wanted):
        return [
            cell for cell in self.cells
            if cell["group"] == group and all(cell.get(key) == value for key, value in wanted.items())
        ]  # fmt: skip

    def methods(self, group):
        there = {cell["method"] for cell in self.of(group)}
        return [name for name in NAMES if name in there]

    def values(self, group, figure, **wanted):
        cells = self.of(group, **wanted)
        return [cell["figures"][figure] for cell in cells if cell["figures"].get(figure) is not None]


def seeds(cells):
    return ", ".join(str(seed) for seed in sorted({cell["seed"] for cell in cells}))


def where(record, group):
    """One line: when, with what, and one command of the group."""
    cells = record.of(group)
    if not cells:
        return f"{NONE}."
    named = {}
    for cell in cells:
        for name, version in cell["versions"].items():
            named.setdefault(name, set()).add(version)
    versions = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in named.items())
    def machine(cell):
        on_gpu = cell["figures"].get("device", "cpu") != "cpu"
        return f"{cell.get('gpu') or 'a GPU'} beside {cell['cpu']}, {cell['cores']} cores" if on_gpu else f"{cell['cpu']}, {cell['cores']} cores"

    machines = " and ".join(sorted({machine(cell) for cell in cells}))
    commits = ", ".join(sorted({cell["commit"][:7] + (" and changes" if cell["changed"] else "") for cell in cells}))
    programs = ", ".join(sorted({cell["program_sha256"] for cell in cells}))
    dates = sorted(cell["date"][:10] for cell in cells)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    count = "1 cell, seed" if len(cells) == 1 else f"{len(cells)} cells, seeds"
    return f"{count} {seeds(cells)}; {when}; {machines}; {versions}; commit {commits}; program {programs}."


def example(record, group, **wanted):
    cells = record.of(group, **wanted)
    if not cells:
        return ""
    return "```text\n" + "\n".join(cells[0]["commands"]) + "\n```\n"


def cifar100(record):
    rows = []
    for method in record.methods("cifar100"):
        columns = [
            mean(record.values("cifar100", figure, method=method, bits=bits)) for figure in ("map_1000", "map_all") for bits in BITS
        ]
        hierarchical = mean(record.values("cifar100", "test_mahp_250", method=method, bits=64))
        trained = [cell["seconds"].get("train") or cell["seconds"]["encode"] for cell in record.of("cifar100", method=method)]
        rows.append([NAMES[method], *columns, hierarchical, f"{statistics.median(each['cpu'] for each in trained):.0f}"])
    head = ["method", *(f"mAP@1000, {bits}" for bits in BITS), *(f"mAP@all, {bits}" for bits in BITS), "mAHP@250, 64", "processor s"]
    return table(head, rows) + "\n" + where(record, "cifar100") + "\n\n" + example(record, "cifar100", method="orthohash", bits=64)


def split(group, figure, name):
    def tables(record):
        if not record.of(group):
            command = "results-gpu" if group.startswith("lite") else "results"
            return f"{NONE}: `make {command}` runs it and puts it here.\n"
        whose, published = PUBLISHED[group]
        rows = []
        for method in record.methods(group):
            ours = [mean(record.values(group, figure, method=method, bits=bits)) for bits in BITS]
            theirs = [f"{value:.1f}" for value in published.get(method, ())]
            rows.append([NAMES[method], *ours, " / ".join(theirs) or "–"])
        head = ["method", *(f"{name}, {bits}" for bits in BITS), f"published, {whose}, 16 / 32 / 64"]
        longest = max(cell["bits"] for cell in record.of(group))
        return table(head, rows) + "\n" + where(record, group) + "\n\n" + example(record, group, bits=longest)

    return tables


def cifar10(group):
    def tables(record):
        if not record.of(group):
            return f"{NONE}: `make results CIFAR10_FEATURES=DIR` runs it and puts it here.\n"
        lengths = sorted({cell["bits"] for cell in record.of(group)})
        rows = [
            [NAMES[method], *(mean(record.values(group, "map_all", method=method, bits=bits)) for bits in lengths), CIFAR10[group].get(method, "–")]
            for method in record.methods(group)
        ]  # fmt: skip
        head = ["method", *(f"mAP@all, {bits}" for bits in lengths), "published, AlexNet fine-tuned"]
        return table(head, rows) + "\n" + where(record, group) + "\n\n" + example(record, group, bits=64)

    return tables


def torch(record):
    rows = []
    sides = ("tanhash", "formula", "authors")
    for bits in BITS:
        cells = record.of("torch", bits=bits)
        if not cells:
            rows.append([f"{bits} bits", *["not run"] * 4])
            continue
        for figure, name in (("map_1000", "mAP@1000"), ("map_all", "mAP@all")):
            of = {side: [cell["figures"][side][figure] for cell in cells if side in cell["figures"]] for side in sides}
            gap = [100 * (a - b) for a, b in zip(of["tanhash"], of["authors"])]
            rows.append([f"{name}, {bits} bits", *(mean(of[side], digits=2) for side in sides), mean(gap, 1, 2)])
    ratios = {}
    for cell in record.of("torch"):
        of, seconds = cell["figures"], cell["seconds"]
        for side in sides[1:]:
            if side in of:
                ratios.setdefault(("wall", side), []).append(of[side]["train_s"] / of["tanhash"]["train_s"])
                ratios.setdefault(("process", side), []).append(seconds[side]["cpu"] / seconds["train"]["cpu"])
                if "train_cpu_s" in of[side]:
                    ratios.setdefault(("loop", side), []).append(of[side]["train_cpu_s"] / seconds["train"]["cpu"])
    what = {
        "wall": "seconds of training, by the clock", "process": "processor seconds of the whole process",
        "loop": "processor seconds, their loop to our whole process",
    }  # fmt: skip
    whose = {"formula": "the formula", "authors": "the authors' loss"}
    lines = [
        [f"{text}: {whose[side]} / tanhash", len(values), f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"]
        for kind, text in what.items() for side in sides[1:] if (values := ratios.get((kind, side)))
    ]  # fmt: skip
    out = table(["", "tanhash", "the formula in PyTorch", "the authors' loss", "tanhash - authors'"], rows)
    out += "\n" + table(["one thread, in turns", "rounds", "median [range]"], lines) if lines else ""
    return out + "\n" + where(record, "torch") + "\n\n" + example(record, "torch", bits=64)


def fashion(record):
    if not record.of("fashion"):
        return f"{NONE}: `make results FASHION=DIR` runs it and puts it here.\n"
    rows = []
    for cell in record.of("fashion"):
        of = cell["figures"]
        rows.append([
            f"`{cell['backbone']}`", cell["seed"], f"{of['map_1000']:.4f}", f"{of['map_1000_min_relevant']:.4f}", f"{of['map_all']:.4f}",
            f"{of['train_s'] / 60:.0f} min", f"{cell['seconds']['train']['cpu'] / 60:.0f} min" if "train" in cell["seconds"] else "–",
        ])  # fmt: skip
    head = ["network", "seed", "mAP@1000", "the same, over min(relevant, R)", "mAP@all", "training, by the clock", "processor time"]
    best = max(record.of("fashion"), key=lambda cell: cell["figures"]["map_1000"])
    return table(head, rows) + "\n" + where(record, "fashion") + "\n\n" + example(record, "fashion", backbone=best["backbone"])


def clothing(record):
    rows = []
    for method in record.methods("clothing"):
        columns = [mean(record.values("clothing", figure, method=method)) for figure in ("map_1000", "map_all")]
        rows.append([NAMES[method], *columns])
    return table(["method", "mAP@1000", "mAP@all"], rows) + "\n" + where(record, "clothing") + "\n\n" + example(record, "clothing", method="shc")


def tuned(record):
    rates = sorted({cell["lr"] for cell in record.of("tune")}, key=float)
    rows = []
    for method in record.methods("tune"):
        rows.append([NAMES[method], *(mean(record.values("tune", "validation_map_all", method=method, lr=rate), seeds=1) for rate in rates)])
    return table(["method", *(f"rate {rate}" for rate in rates)], rows) + "\n" + where(record, "tune") + "\n"


def tuned_distance(record):
    rows = []
    for method in record.methods("tune-distance"):
        for distance, name in (("all", "Gilbert-Varshamov"), ("four fifths", "four fifths of it")):
            values = [record.values("tune-distance", "validation_map_all", method=method, distance=distance, bits=bits) for bits in BITS]
            rows.append([NAMES[method], name, *map(mean, values)])
    head = ["method", "smallest distance", *(f"{bits} bits" for bits in BITS)]
    return table(head, rows) + "\n" + where(record, "tune-distance") + "\n\n" + example(record, "tune-distance", bits=64)


def tuned_weights(record):
    similarity = sorted({cell["similarity_weight"] for cell in record.of("tune-weights")}, key=float)
    kl = sorted({cell["kl_weight"] for cell in record.of("tune-weights")}, key=float)
    rows = []
    for one in similarity:
        values = (record.values("tune-weights", "validation_map_all", similarity_weight=one, kl_weight=other) for other in kl)
        rows.append([f"b = {one}", *(mean(of_one, seeds=1) for of_one in values)])
    return table(["", *(f"c = {one}" for one in kl)], rows) + "\n" + where(record, "tune-weights") + "\n"


def tuned_lite(record):
    scales = sorted({cell["scale"] for cell in record.of("tune-lite")}, key=float)
    rows = []
    for statistics_, name in (("running", "the weights' own, kept"), ("batch", "each batch's")):
        values = (record.values("tune-lite", "validation_map_all", statistics=statistics_, scale=scale) for scale in scales)
        rows.append([name, *(mean(of_one, seeds=1) for of_one in values)])
    head = ["statistics of batch normalization", *(f"rate {0.001 * float(scale):g}" for scale in scales)]
    return table(head, rows) + "\n" + where(record, "tune-lite") + "\n\n" + example(record, "tune-lite", statistics="running")


def tuned_head(record):
    methods = record.methods("tune-head")
    rates = sorted({(cell["network"], cell["lr"]) for cell in record.of("tune-head")}, key=lambda pair: tuple(map(float, pair)))
    rows = []
    for network, lr in rates:
        values = (record.values("tune-head", "validation_map_all", method=method, lr=lr, network=network) for method in methods)
        rows.append([network, lr, *(mean(of_one, seeds=1) for of_one in values)])
    head = ["rate of the network", "of the head", *(NAMES[method] for method in methods)]
    return table(head, rows) + "\n" + where(record, "tune-head") + "\n\n" + example(record, "tune-head", method="shc, class means")


def tuned_side(record):
    sides = sorted({cell["side"] for cell in record.of("tune-side")}, key=int)
    rows = [
        [f"{side} pixels, {cell['epochs']} epochs", mean(record.values("tune-side", "validation_map_all", side=side), seeds=1),
         f"{cell['seconds']['train']['cpu'] / 60:.0f}"]
        for side in sides for cell in record.of("tune-side", side=side)
    ]  # fmt: skip
    return table(["pictures", "mAP@all", "processor minutes"], rows) + "\n" + where(record, "tune-side") + "\n\n" + example(record, "tune-side")


def lite_mahp(record):
    group = "lite-mahp"
    if not record.of(group):
        return f"{NONE}: `make results-gpu` runs it and puts it here.\n"
    rows = [
        [NAMES[method], mean(record.values(group, "mahp_250", method=method)), mean(record.values(group, "map_all", method=method))]
        for method in record.methods(group)
    ]
    return table(["method", "mAHP@250, 64", "mAP@all, 64"], rows) + "\n" + where(record, group) + "\n\n" + example(record, group)


def gpu(record):
    groups = sorted({cell["group"] for cell in record.cells if cell["group"].startswith("gpu-")})
    if not groups:
        return f"{NONE}: `make results-gpu` runs them and puts them here.\n"
    out = []
    for group in groups:
        figures = ("mahp_250", "map_1000", "map_all")
        figure = next(name for name in figures if record.values(group, name))
        lengths = sorted({cell["bits"] for cell in record.of(group)})
        rows = [
            [NAMES[method], *(mean(record.values(group, figure, method=method, bits=bits)) for bits in lengths)]
            for method in record.methods(group)
        ]
        out += [f"{group}, {figure}:\n", table(["method", *(f"{bits} bits" for bits in lengths)], rows), where(record, group) + "\n"]
        out += [example(record, group)]
    return "\n".join(out)


TABLES = {
    "cifar100": cifar100, "split 95-5": split("cifar100-95-5", "map_1000", "mAP@1000"), "split shc": split("cifar100-shc", "map_all", "mAP@all"),
    "lite 95-5": split("lite-95-5", "map_1000", "mAP@1000"), "lite shc": split("lite-shc", "map_all", "mAP@all"),
    "lite shc 160": split("lite-shc-160", "map_all", "mAP@all"), "lite shc 96": split("lite-shc-96", "map_all", "mAP@all"), "lite mahp": lite_mahp,
    "cifar10 1": cifar10("cifar10-1"), "cifar10 2": cifar10("cifar10-2"), "torch": torch, "fashion": fashion, "clothing": clothing, "tuned": tuned, "tuned shrewd": tuned_weights, "tuned distance": tuned_distance, "tuned lite": tuned_lite, "tuned side": tuned_side, "tuned head": tuned_head, "gpu": gpu,
}  # fmt: skip


def fill(page, record):
    text = Path(page).read_text()
    mark = re.compile(r"(<!-- ([^:\n]*): written by benches/results/report\.py -->\n).*?(<!-- up to here -->)", re.DOTALL)
    names = [found[1] for found in mark.findall(text)]
    unknown = set(names) - set(TABLES)
    if unknown or not names:
        sys.exit(f"{page}: marks {sorted(unknown)} are no tables; there are {', '.join(TABLES)}")
    Path(page).write_text(mark.sub(lambda found: anew(found, record), text))


def anew(found, record):
    """A table from the record, or as it is where the record has none of its cells."""
    made = TABLES[found[2]](record)
    if NONE in made:
        print(f"{found[2]}: {NONE.lower()}. It stays as it is.", file=sys.stderr)
        return found[0]
    return f"{found[1]}\n{made}\n{found[3]}"


if __name__ == "__main__":
    folder, *pages = sys.argv[1:]
    for page in pages:
        fill(page, Record(folder))
