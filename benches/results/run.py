#!/usr/bin/env python3
"""Runs the experiments of docs/RESULTS.md, one JSON file each, and goes on where it was stopped.

    run.py --out FOLDER [--tier cpu|gpu] [--only PATTERN]... [--again] [--smoke] [--list]

An experiment ("cell") whose file is in FOLDER is done and skipped; `--again` runs it anew, `--only` takes names with
shell wildcards. Training that was killed goes on from its last epoch. A file holds the commands, the figures, seconds,
seed, commit, program digest, versions, processor and date. A cell whose data is not given is named and left out.
`report.py` makes the tables.

What cells read is given by variables, and commands are recorded with their names in place of paths:

    TANHASH      the program, target/release/tanhash
    FEATURES     EfficientNet-Lite0 features of CIFAR-100 (`tanhash features`); made from CIFAR100 and LITE0 if missing
    CIFAR10_FEATURES  the same of CIFAR-10
    LITE0        its weights, .data/weights/efficientnet-lite0.safetensors (`make weights`); also what is fine-tuned
                 in the first groups of the tier gpu
    CIFAR100     CIFAR-100, as `--data cifar100:` takes it
    TREE         hierarchy.txt of Barz and Denzler's Cifar-Hierarchy
    FASHION      the folder of Fashion-MNIST's four files
    CLOTHING     EfficientNet-Lite0 features of class folders of photographs
    AUTHORS      a checkout of github.com/kamwoh/orthohash, for the comparison with its loss
    RESNET50     \\ torchvision's weights as safetensors (docs/guide/backbones.md), for the tier gpu
    RESNET34     /

Needs Python 3.10 with numpy, and torch for the comparison. `--smoke` runs every step of the tier gpu for one
epoch on a few pictures of CIFAR100, to see that its commands are accepted; its figures mean nothing.
"""

import argparse
import datetime
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SEEDS = (1, 2, 3)
BITS = (16, 32, 64)
THREADS = ("--threads", "1")

# Heads on features: the same budget for all. The rate is that of the best mAP@all on a validation split of the
# train split (cells tune/*, 32 bits, seed 7).
BUDGET = ("--epochs", "10", "--batch", "256")
RATES = {
    "orthohash": ("--lr", "0.001"),
    "orthohash, shc centers": ("--lr", "0.003"),
    "orthohash, class means": ("--lr", "0.001"),
    "shc": ("--lr", "0.003"),
    "shc, released": ("--lr", "0.003"),
    "shrewd": ("--lr", "0.003"),
    "csq": ("--lr", "0.001"),
    "dpn": ("--lr", "0.003"),
    "greedyhash": ("--lr", "0.003"),
    "hashnet": ("--lr", "0.003"),
}
# What a label says beside the method.
OWN = {
    "orthohash, shc centers": ("--centers", "shc"),
    "orthohash, class means": ("--centers", "class-means"),
    "shc, released": ("--variant", "released"),
}
# Of data sets with a few thousand train pictures: more epochs of smaller batches.
SMALL_BUDGET = ("--epochs", "30", "--batch", "64")
# CIFAR-10, with the lengths that were published.
CIFAR10_BITS = (48, 64)
CIFAR10 = ("orthohash", "orthohash, class means", "shc", "csq", "dpn", "greedyhash", "hashnet")
GRID = ("0.001", "0.003", "0.01")
# Of the terms of SHREWD's loss, beside its classification's: the papers' weights are not known.
SHREWD_GRID = [(similarity, kl) for similarity in ("3", "30", "300") for kl in ("0.0001", "0.001", "0.01")]


# Bits in which two semantic centers differ at least: the distance of Gilbert and Varshamov, and four fifths of it.
DISTANCES = {16: ("4", "3"), 32: ("10", "8"), 64: ("24", "19")}


def method_of(label):
    return label.split(",")[0]


def slug(label):
    return label.replace(", ", "+").replace(" ", "-")


class Cell:
    """A name, what it is, the variables it needs and the function that runs it and returns its figures."""

    def __init__(self, name, about, needs, run):
        self.name, self.about, self.needs, self.run = name, about, needs, run


class Shell:
    """Runs commands with `$NAME` for paths, and keeps what was run and how long it took."""

    def __init__(self, places, work, log):
        self.places, self.work, self.log, self.commands, self.seconds = places, work, log, [], {}

    def path(self, name):
        return self.work / name

    def expand(self, text):
        for name, place in {**self.places, "WORK": str(self.work), "HERE": str(HERE)}.items():
            text = text.replace(f"${name}", place or "")
        return text

    def __call__(self, kind, *command):
        """The last JSON document on stdout, or None."""
        shown = " ".join(command).replace("$HERE", "benches/results")
        print("  " + shown, file=self.log, flush=True)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        argv = [self.expand(word) for word in command]
        argv[0] = {"tanhash": self.places["TANHASH"], "python3": sys.executable}[argv[0]]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{shown}\n{done.stderr.strip()[-2000:]}")
        # A GPU that is not used, say.
        for line in done.stderr.splitlines():
            if line.startswith("tanhash: "):
                print("  " + line, file=self.log, flush=True)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        kept = self.seconds.setdefault(kind, {"wall": 0.0, "cpu": 0.0})
        kept["wall"], kept["cpu"] = round(kept["wall"] + wall, 2), round(kept["cpu"] + cpu, 2)
        self.commands.append(shown)
        lines = done.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def figures(report, prefix=""):
    """What is kept of a report of `tanhash eval`."""
    kept = {"map_all": report["map_all_expected"], "n_queries": report["n_queries"], "n_database": report["n_database"]}
    if report["protocol"]["cutoff"] != "all":
        kept[f"map_{report['protocol']['cutoff']}"] = report["map"]
        kept[f"map_{report['protocol']['cutoff']}_min_relevant"] = report["map_by_denominator"]["min_relevant_r"]
    if report.get("hierarchical"):
        kept["mahp_250"] = report["hierarchical"]["mahp"]
    return {prefix + name: value for name, value in kept.items()}


def trained(shell, data, options, seed, bits, measure, threads=THREADS):
    """Trains, measures by each of `measure` (a prefix of its figures, options of eval), and returns all figures."""
    model = "$WORK/model.safetensors"
    # An earlier run of this cell was killed.
    resume = ["--resume"] if any(shell.work.glob("model.*state")) else []
    run = shell(
        "train", "tanhash", "train", "--json", "--data", data, "--bits", str(bits), "--seed", str(seed),
        *options, *threads, "--out", model, *resume,
    )  # fmt: skip
    out = {"train_s": run["seconds"], "loss": run["loss"], "device": run["device"]}
    if run.get("selection"):
        out["validation_map_all"] = run["selection"]["value"]
    for prefix, *arguments in measure:
        # The seed draws the split too.
        report = shell("eval", "tanhash", "eval", "--json", "--model", model, "--seed", str(seed), *arguments)
        out |= figures(report, prefix)
    return out


def distances(shell, *classes):
    shell("distances", "python3", "$HERE/hierarchy_distances.py", "$TREE", "$WORK/distances.npy", *classes)
    return ("--distances", "$WORK/distances.npy")


def head_cell(group, label, bits, seed, features, split="", tree=False, budget=BUDGET):
    place = f"${features}"

    def run(shell):
        data = f"features{split}:{place}"
        options = ("--method", method_of(label), *budget, *OWN.get(label, ()), *RATES[label])
        if method_of(label) == "shrewd" and tree:
            options += distances(shell, f"{place}/classes.txt")
        measure = [("", "--data", data, "--r", "1000")]
        if tree and bits == 64 and not split:
            measure.append(("test_", "--data", f"features@leave-one-out:{place}", "--hierarchy", "$TREE"))
        return trained(shell, data, options, seed, bits, measure)

    about = {"group": group, "method": label, "bits": bits, "seed": seed, "split": split or "official"}
    needs = [features] + (["TREE"] if tree and (bits == 64 or label == "shrewd") else [])
    return Cell(f"{group}/{slug(label)}-{bits}-{seed}", about, needs, run)


def tune_distance_cell(label, bits, which, seed):
    def run(shell):
        options = ("--method", method_of(label), *BUDGET, *OWN.get(label, ()), *RATES[label], "--min-distance", DISTANCES[bits][which])
        return trained(shell, "features:$FEATURES", (*options, "--validation-share", "0.1", "--validate-every", "10"), seed, bits, [])

    about = {"group": "tune-distance", "method": label, "bits": bits, "seed": seed, "distance": ("all", "four fifths")[which]}
    return Cell(f"tune-distance/{slug(label)}-{bits}-{DISTANCES[bits][which]}-{seed}", about, ["FEATURES"], run)


def tune_cell(label, lr, weights=None):
    def run(shell):
        options = ("--method", method_of(label), *BUDGET, "--lr", lr, *OWN.get(label, ()))
        if weights:
            options += ("--similarity-weight", weights[0], "--kl-weight", weights[1])
        options += ("--validation-share", "0.1", "--validate-every", "10")
        if label == "shrewd":
            options += distances(shell, "$FEATURES/classes.txt")
        return trained(shell, "features:$FEATURES", options, 7, 32, [])

    about = {"group": "tune", "method": label, "bits": 32, "seed": 7, "lr": lr}
    name = f"tune/{slug(label)}-{lr}"
    if weights:
        about |= {"group": "tune-weights", "similarity_weight": weights[0], "kl_weight": weights[1]}
        name = f"tune-weights/{slug(label)}-{'-'.join(weights)}"
    return Cell(name, about, ["FEATURES"] + (["TREE"] if label == "shrewd" else []), run)


def untrained_cell(group, encoder, bits, seed, features, tree=False):
    """ITQ, learned from the database's features without labels, or random hyperplanes."""

    def run(shell):
        import numpy as np

        place = Path(shell.places[features])
        rows, labels, splits = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("features", "labels", "splits"))
        for name, bit in (("database", 2), ("query", 4)):
            np.save(shell.path(f"{name}.npy"), rows[splits & bit > 0])
            np.save(shell.path(f"{name}-labels.npy"), np.asarray(labels[splits & bit > 0], np.int64))
        fit = ("--fit", "$WORK/database.npy") if encoder == "itq" else ()
        for name in ("database", "query"):
            shell(
                "encode", "tanhash", "encode", "--json", "--encoder", encoder, *fit, "--bits", str(bits), "--seed", str(seed),
                "--input", f"$WORK/{name}.npy", "--out", f"$WORK/{name}.bin",
            )  # fmt: skip
        query = ("--query-codes", "$WORK/query.bin", "--query-labels", "$WORK/query-labels.npy", "--bits", str(bits))
        base = ("--database-codes", "$WORK/database.bin", "--database-labels", "$WORK/database-labels.npy")
        out = figures(shell("eval", "tanhash", "eval", "--json", *query, *base, "--r", "1000"))
        if tree and bits == 64:
            names = ("--hierarchy", "$TREE", "--class-names", f"${features}/classes.txt", "--leave-one-out")
            out |= figures(shell("eval", "tanhash", "eval", "--json", *query, *names), "test_")
        return out

    about = {"group": group, "method": encoder, "bits": bits, "seed": seed, "split": "official"}
    return Cell(f"{group}/{encoder}-{bits}-{seed}", about, [features] + (["TREE"] if tree and bits == 64 else []), run)


# Ours, the formula in PyTorch, and the authors' own modules, in turns: same features, codebook, optimizer, schedule, batch
# size, epochs and threads. The order of the pictures is drawn by each program's own generator from the same seed.
SAME = ("--epochs", "10", "--batch", "256", "--lr", "0.003", "--margin", "0.2")


def torch_cell(bits, seed):
    def run(shell):
        shell("setup", "tanhash", "centers", "--method", "bernoulli", "--classes", "100", "--bits", str(bits),
              "--seed", str(seed), "--out", "$WORK/centers.npy")  # fmt: skip
        sides = {}

        def ours():
            options = ("--method", "orthohash", *SAME, "--schedule", "cosine", "--centers", "$WORK/centers.npy")
            data = "features:$FEATURES"
            sides["tanhash"] = trained(shell, data, options, seed, bits, [("", "--data", data, "--r", "1000")])

        def python(side, *more):
            out = shell(
                side, "python3", "$HERE/orthohash_torch.py", "--features", "$FEATURES", "--centers", "$WORK/centers.npy",
                *SAME, "--seed", str(seed), "--threads", "1", "--out", "$WORK", *more,
            )  # fmt: skip
            report = shell(
                "eval", "tanhash", "eval", "--json", "--query-codes", "$WORK/query.bin", "--query-labels",
                "$WORK/query.npy", "--database-codes", "$WORK/database.bin", "--database-labels", "$WORK/database.npy",
                "--bits", str(bits), "--seed", str(seed), "--r", "1000",
            )  # fmt: skip
            sides[side] = out | figures(report)

        turns = [ours, lambda: python("formula")]
        if shell.places["AUTHORS"]:
            turns.append(lambda: python("authors", "--authors", "$AUTHORS"))
        # Each side is first in turn.
        for turn in turns[seed % len(turns):] + turns[: seed % len(turns)]:
            turn()
        return sides

    about = {"group": "torch", "method": "orthohash", "bits": bits, "seed": seed}
    return Cell(f"torch/{bits}-{seed}", about, ["FEATURES"], run)


# From nothing, by backbone. The larger one has the usual settings of residual networks for small pictures, and moves pictures
# by one pixel only: the database is the train split, which codes must fit too.
FASHION = {
    "conv-small": ("--augment", "pad-crop", "--epochs", "36", "--batch", "256", "--lr", "0.003", "--weight-decay", "0.0001"),
    "resnet-9": ("--augment", "shift", "--epochs", "12", "--batch", "128", "--optimizer", "sgd", "--lr", "0.1",
                 "--weight-decay", "0.0005", "--half"),
}  # fmt: skip


def fashion_cell(backbone, seed):
    def run(shell):
        data = "fashion-mnist:$FASHION"
        options = ("--method", "orthohash", "--backbone", backbone, *FASHION[backbone])
        return trained(shell, data, options, seed, 64, [("", "--data", data, "--r", "1000")])

    about = {"group": "fashion", "method": "orthohash", "backbone": backbone, "bits": 64, "seed": seed}
    return Cell(f"fashion/{backbone}-64-{seed}", about, ["FASHION"], run)


def cpu_cells():
    cells = [fashion_cell("conv-small", 1), *(fashion_cell("resnet-9", seed) for seed in SEEDS)]
    cells += [torch_cell(bits, seed) for seed in SEEDS for bits in BITS]
    for label in RATES:
        cells += [head_cell("cifar100", label, bits, seed, "FEATURES", tree=True) for bits in BITS for seed in SEEDS]
    for encoder in ("itq", "lsh"):
        cells += [untrained_cell("cifar100", encoder, bits, seed, "FEATURES", tree=True) for bits in BITS for seed in SEEDS]
    cells += [
        head_cell("clothing", method, 64, seed, "CLOTHING", budget=SMALL_BUDGET)
        for method in ("orthohash", "shc", "shrewd") for seed in SEEDS
    ]  # fmt: skip
    cells += [untrained_cell("clothing", encoder, 64, seed, "CLOTHING") for encoder in ("itq", "lsh") for seed in SEEDS]
    for split, methods in (("@shc", ("orthohash", "orthohash, class means", "shc", "shc, released", "csq")), ("@95-5", ("orthohash", "csq", "hashnet"))):
        for label in methods:
            group = "cifar100" + split.replace("@", "-")
            cells += [head_cell(group, label, bits, seed, "FEATURES", split) for bits in BITS for seed in SEEDS]
    for split, budget in (("@1", SMALL_BUDGET), ("@2", BUDGET)):
        cells += [
            head_cell(split.replace("@", "cifar10-"), label, bits, seed, "CIFAR10_FEATURES", split, budget=budget)
            for label in CIFAR10 for bits in CIFAR10_BITS for seed in SEEDS
        ]  # fmt: skip
    cells += [tune_cell(label, lr) for label in RATES for lr in GRID]
    cells += [tune_cell("shrewd", "0.003", weights) for weights in SHREWD_GRID]
    cells += [
        tune_distance_cell(label, bits, which, seed)
        for label in RATES if "--centers" in OWN.get(label, ()) for bits in BITS for which in (0, 1) for seed in (7, 8, 9)
    ]  # fmt: skip
    return cells


# The tier gpu: networks that are trained themselves, on pictures that are enlarged on the device. A step is meant to stay
# below ten minutes on one data-center GPU; a step is one run, and what is killed costs an epoch of one.
FINE_TUNED = {"--half": None, "--augment": "resized-crop", "--batch": "128"}
# Small enough for two cores too: a run sees about 200,000 pictures, and its classifier, where it has one, as many.
LITE = {"--picture-side": "96", "--augment": "flip", "--batch": "128", "--lr": "0.001", "--backbone-lr-scale": "0.5"}
# Chosen by the cells tune-lite/* and tune-side/*: larger pictures, fewer times each. The classifier of SHC's stage 1 sees them at 96
# pixels; only the similarity of the classes is taken from it.
LITE_160 = {**LITE, "--picture-side": "160", "--backbone-lr-scale": "1", "--running-statistics": None, "--epochs": "8"}
STAGE_1 = {"lite-shc-160": {"--picture-side": "96", "--epochs": "20"}}
# With the rates that the cells tune-head/* chose, by loss; S by the command of above.
LITE_96 = {**LITE_160, "--picture-side": "96", "--lr": "0.003", "--backbone-lr-scale": "0.333"}
OF_CENTRAL = {"--backbone-lr-scale": "0.1"}
STAGE_1["lite-shc-96"] = {"--picture-side": "96", "--epochs": "20", "--lr": "0.001", "--backbone-lr-scale": "1"}
SHC_CENTERS = {"--centers": "shc"}
CLASS_MEANS = {"--centers": "class-means"}
OF_SHC = {"orthohash": {}, "orthohash, shc centers": SHC_CENTERS, "orthohash, class means": CLASS_MEANS, "shc": {}, "csq": {}}
# The backbone's rate is that of the other methods.
SHREWD_LITE = {"--lr": "0.003", "--backbone-lr-scale": "0.17"}
OF_MAHP = {"shrewd": {}, "orthohash": {}, "orthohash, shc centers": SHC_CENTERS}
GPU = {
    # split, backbone, variable of its weights, methods with their options, options of all, options of eval
    "lite-95-5": (
        "@95-5", "efficientnet-lite0", "LITE0",
        {"orthohash": {}, "orthohash, shc centers": SHC_CENTERS, "csq": {}},
        {**LITE, "--epochs": "4"},
        ("--r", "1000"),
    ),
    "lite-shc": (
        "@shc", "efficientnet-lite0", "LITE0",
        OF_SHC,
        {**LITE, "--epochs": "20"},
        ("--r", "all"),
    ),
    "lite-shc-160": (
        "@shc", "efficientnet-lite0", "LITE0",
        OF_SHC,
        LITE_160,
        ("--r", "all"),
    ),
    "lite-shc-96": (
        "@shc", "efficientnet-lite0", "LITE0",
        {**OF_SHC, "shc": OF_CENTRAL, "csq": OF_CENTRAL},
        LITE_96,
        ("--r", "all"),
    ),
    "lite-mahp": (
        "@leave-one-out", "efficientnet-lite0", "LITE0",
        {**OF_MAHP, "shrewd": SHREWD_LITE},
        {**LITE, "--epochs": "4"},
        ("--r", "all", "--hierarchy", "$TREE"),
    ),
    "gpu-95-5": (
        "@95-5", "resnet-50", "RESNET50",
        {"orthohash": {}, "csq": {}, "hashnet": {}},
        {**FINE_TUNED, "--epochs": "12"},
        ("--r", "1000"),
    ),
    "gpu-shc": (
        "@shc", "resnet-34", "RESNET34",
        OF_SHC,
        {**FINE_TUNED, "--epochs": "60"},
        ("--r", "all"),
    ),
    "gpu-mahp": (
        "@leave-one-out", "resnet-18-cifar", None,
        OF_MAHP,
        {"--half": None, "--augment": "pad-crop", "--batch": "256", "--epochs": "100", "--weight-decay": "0.0005",
         "--optimizer": "sgd", "--lr": "0.05"},
        ("--r", "all", "--hierarchy", "$TREE"),
    ),
}  # fmt: skip


def words(options):
    return [word for pair in options.items() for word in pair if word is not None]


def similarity(shell, options, data, seed):
    """Options that give a run the S of a run that is hardly more than SHC's stage 1, `options` those of the network.

    S does not depend on the bits, so the first cell of a group and a seed that needs it keeps it for the others, which
    record the same command, and the seconds that it took then.
    """
    own = "$WORK/classes.safetensors"
    kept = shell.work.parent / f"similarity-{seed}"
    command = [
        "tanhash", "train", "--json", "--data", data, "--bits", "16", "--seed", str(seed), "--method", "shc",
        *words({**options, "--classifier-epochs": options["--epochs"], "--epochs": "1"}), "--out", own,
    ]  # fmt: skip
    same = kept.exists() and json.loads((kept / "command.json").read_text()) == command
    if same:
        shell.commands.append(" ".join(command))
        shell.seconds["classifier"] = json.loads((kept / "seconds.json").read_text())
    else:
        shell("classifier", *command, *(["--resume"] if any(shell.work.glob("classes.*.state")) else []))
        part = kept.with_suffix(".part")
        part.mkdir(exist_ok=True)
        shutil.copy(shell.expand(own + ".similarity.npy"), part / "S.npy")
        (part / "command.json").write_text(json.dumps(command))
        (part / "seconds.json").write_text(json.dumps(shell.seconds["classifier"]))
        shutil.rmtree(kept, ignore_errors=True)
        part.rename(kept)
    shutil.copy(kept / "S.npy", shell.expand(own + ".similarity.npy"))
    return ["--similarity", own + ".similarity.npy"]


def gpu_cell(group, label, bits, seed, smoke):
    split, backbone, weights, methods, options, measure = GPU[group]
    brief = {"--epochs": "1", "--batch": "25"} if smoke else {}

    def run(shell):
        # A few pictures are too few for the split of SHC.
        data = f"cifar100{'' if smoke and split == '@shc' else split}:$CIFAR100"
        network = {"--backbone": backbone, **options, **brief, **({"--weights": f"${weights}"} if weights else {})}
        own = ["--method", method_of(label), *words({**network, **methods[label], **brief})]
        if method_of(label) == "shc" or "shc centers" in label:
            own += similarity(shell, {**network, **STAGE_1.get(group, {}), **brief}, data, seed)
        if label == "shrewd":
            own += distances(shell)
        return trained(shell, data, own, seed, bits, [("", "--data", data, *measure)], threads=())

    about = {"group": group, "method": label, "bits": bits, "seed": seed, "split": split[1:], "backbone": backbone}
    needs = ["CIFAR100", *([weights] if weights else []), *(["TREE"] if "$TREE" in measure else [])]
    return Cell(f"{group}/{slug(label)}-{bits}-{seed}", about, needs, run)


# What the recipe of the group lite-shc-160 was chosen by, with less of a budget, on a split of SHC's that no table has: what batch
# normalization does and the backbone's rate, then the side of the pictures, each with as many epochs as take about the same time.
LITE_RATES = ("0.5", "1", "2")
LITE_SIDES = {"96": "10", "128": "6", "160": "4"}
# Then the rates of the head and of the network under it, by loss; with class means for SHC's centers, which need no classifier.
LITE_LOSSES = {"orthohash, class means": CLASS_MEANS, "shc, class means": CLASS_MEANS, "csq": {}}
# A tenth of the head's rate for the network is the default.
LITE_HEAD_RATES = (
    ("0.001", "0.0001"), ("0.003", "0.0001"), ("0.003", "0.0003"), ("0.01", "0.0003"), ("0.003", "0.0005"), ("0.01", "0.0005"),
    ("0.001", "0.001"), ("0.003", "0.001"), ("0.01", "0.001"), ("0.03", "0.001"), ("0.01", "0.002"),
)  # fmt: skip


def tune_lite_cell(name, about, options, smoke):
    about = {"method": "orthohash", "bits": 32, "seed": 7, **about}

    def run(shell):
        settings = {**LITE, "--running-statistics": None, "--backbone-lr-scale": "1", "--validation-share": "0.2", **options}
        settings = {key: value for key, value in settings.items() if value != "no"}
        settings["--validate-every"] = settings["--epochs"]
        if smoke:
            settings |= {"--epochs": "1", "--batch": "25", "--validate-every": "1"}
        data = f"cifar100{'' if smoke else '@shc'}:$CIFAR100"
        own = ("--method", method_of(about["method"]), "--backbone", "efficientnet-lite0", *words(settings), "--weights", "$LITE0")
        return trained(shell, data, own, about["seed"], about["bits"], [], threads=())

    return Cell(name, about, ["CIFAR100", "LITE0"], run)


def tune_lite_cells(smoke):
    cells = []
    for statistics in ("running", "batch"):
        for scale in LITE_RATES:
            about = {"group": "tune-lite", "statistics": statistics, "scale": scale}
            options = {"--picture-side": "64", "--epochs": "10", "--backbone-lr-scale": scale}
            options |= {"--running-statistics": "no"} if statistics == "batch" else {}
            cells.append(tune_lite_cell(f"tune-lite/{statistics}-{scale}", about, options, smoke))
    for side, epochs in LITE_SIDES.items():
        about = {"group": "tune-side", "side": side, "epochs": epochs}
        options = {"--picture-side": side, "--epochs": epochs}
        cells.append(tune_lite_cell(f"tune-side/{side}", about, options, smoke))
    for label, centers in LITE_LOSSES.items():
        for lr, rate in LITE_HEAD_RATES:
            about = {"group": "tune-head", "method": label, "bits": 64, "lr": lr, "network": rate}
            scale = f"{float(rate) / float(lr):.3g}"
            options = {"--picture-side": "96", "--epochs": "6", **centers, "--lr": lr, "--backbone-lr-scale": scale}
            cells.append(tune_lite_cell(f"tune-head/{slug(label)}-{lr}-{rate}", about, options, smoke))
    return cells


def gpu_cells(smoke):
    cells = tune_lite_cells(smoke)
    for group, (*_, methods, _, _) in GPU.items():
        lengths = (64,) if group.endswith("-mahp") or smoke else BITS
        seeds = SEEDS[:1] if smoke else SEEDS
        cells += [gpu_cell(group, label, bits, seed, smoke) for label in methods for bits in lengths for seed in seeds]
    return cells


def a_few_pictures(source, folder):
    """Links to two train pictures and a test picture of every class."""
    for split, count in (("train", 2), ("test", 1)):
        for one in sorted((Path(source) / split).iterdir()):
            if one.is_dir():
                into = folder / split / one.name
                into.mkdir(parents=True, exist_ok=True)
                for picture in sorted(one.iterdir())[:count]:
                    if not (into / picture.name).exists():
                        (into / picture.name).symlink_to(picture.resolve())
    return str(folder)


def facts(places):
    """What every file says of where and with what it was made."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    program = Path(places["TANHASH"])
    version = subprocess.run([program, "--version"], capture_output=True, text=True)
    if version.returncode:
        sys.exit(f"{program} does not run: {version.stderr.strip()}")
    versions = {"tanhash": version.stdout.split()[-1], "python": platform.python_version()}
    for module in ("numpy", "torch"):
        try:
            versions[module] = importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            pass
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip().replace("\n", "; ")
    except FileNotFoundError:
        gpu = ""
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        "program_sha256": hashlib.sha256(program.read_bytes()).hexdigest()[:16],
        "versions": versions,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


PLACES = {
    "TANHASH": ROOT / "target/release/tanhash",
    "FEATURES": ROOT / ".data/features/cifar100",
    "LITE0": ROOT / ".data/weights/efficientnet-lite0.safetensors",
    **dict.fromkeys(("CIFAR10_FEATURES", "CIFAR100", "TREE", "FASHION", "CLOTHING", "AUTHORS", "RESNET50", "RESNET34")),
}


def find_places():
    places = {name: os.environ.get(name) or place for name, place in PLACES.items()}
    return {name: place and str(Path(place).expanduser().resolve()) for name, place in places.items()}


def make_features(places):
    """Features of CIFAR-100, if they are not there and can be made."""
    if Path(places["FEATURES"], "features.npy").exists() or not places["CIFAR100"]:
        return
    if not Path(places["LITE0"]).exists():
        print("no features of CIFAR-100, and no weights to make them: run `make weights`")
        return
    print("features of CIFAR-100, once", flush=True)
    subprocess.check_call([
        places["TANHASH"], "features", "--backbone", "efficientnet-lite0", "--weights", places["LITE0"],
        "--data", f"cifar100:{places['CIFAR100']}", "--out", places["FEATURES"],
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tier", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--work", type=Path, default=ROOT / ".data/results/work", help="for models and codes")
    arguments = parser.parse_args()
    cells = cpu_cells() if arguments.tier == "cpu" else gpu_cells(arguments.smoke)
    wanted = [cell for cell in cells if not arguments.only or any(fnmatch.fnmatch(cell.name, one) for one in arguments.only)]
    if arguments.list:
        print("\n".join(cell.name for cell in wanted))
        return
    places = find_places()
    known = facts(places)
    if arguments.tier == "cpu":
        make_features(places)
    elif arguments.smoke and places["CIFAR100"]:
        places["CIFAR100"] = a_few_pictures(places["CIFAR100"], arguments.work / "few")
    failed = 0
    for number, cell in enumerate(wanted, 1):
        target = arguments.out / f"{cell.name}.json"
        if target.exists() and not arguments.again:
            continue
        missing = [name for name in cell.needs if not places[name] or not Path(places[name]).exists()]
        if missing:
            print(f"[{number}/{len(wanted)}] {cell.name}: left out, set {', '.join(missing)}", flush=True)
            continue
        print(f"[{number}/{len(wanted)}] {cell.name}", flush=True)
        # What a killed run left there is gone on with.
        work = arguments.work / ("smoke" if arguments.smoke else ".") / cell.name
        work.mkdir(parents=True, exist_ok=True)
        shell = Shell(places, work.resolve(), sys.stdout)
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        try:
            found = cell.run(shell)
        except RuntimeError as error:
            failed += 1
            print(f"  failed: {error}", flush=True)
            continue
        # A run that goes on ends in the same model as one that was never killed; its seconds are those of the last part.
        commands = [command.removesuffix(" --resume") for command in shell.commands]
        entry = {**cell.about, "figures": found, "seconds": shell.seconds, "commands": commands, "date": date, **known}
        if commands != shell.commands:
            entry["resumed"] = True
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_text(json.dumps(entry, indent=1) + "\n")
        part.replace(target)
        shutil.rmtree(work)
    sys.exit(f"{failed} cells failed" if failed else 0)


if __name__ == "__main__":
    main()
