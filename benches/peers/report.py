"""Tables and plots from a record: `report.py FOLDER` makes them again."""

import json
import math
import re
import statistics
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from cases import NOT_RUN  # noqa: E402

median = statistics.median


def short(n):
    power = int(math.log10(n))
    return f"{n / 10**power:g}e{power}"


def figures(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def amount(value, unit="ms"):
    if unit == "ms" and value < 1:
        return f"{figures(value * 1e3)} us"
    return f"{figures(value)} {unit}"


def operation(line):
    op, argument = line["op"]
    if op == "build":
        return f"build, engine {argument}"
    if op == "memory":
        return f"codes and tables, engine {argument}"
    text = f"k={argument}" if op == "knn" else f"r={argument}"
    if line.get("share") is not None:
        text += f", filter {line['share']:.0%}"
    return text + (", batch" if line.get("row") == "3" else "")


def case(line):
    return f"{operation(line)}, {line['set']}, {short(line['n'])} x {line['bits']}"


def peer(line):
    text = line["peer"]
    text += "".join(f", {key} {value}" for key, value in line.get("tuned", {}).items() if key != "share")
    if line.get("recall") is not None:
        text += f" (recall {math.floor(line['recall'] * 1e4) / 1e4:.4f})"
    return text


def spread(values):
    return f"{figures(median(values))}x [{figures(min(values))}..{figures(max(values))}]"


def chosen(line):
    return line[f"{line['figure']}_ms"]


def peer_time(line):
    unit = line.get("unit", "ms")
    single, batch = line.get("single_ms"), line.get("batch_ms")
    text = amount(median(single), unit) if single else ""
    if batch:
        text += f" [{amount(median(batch), unit)}]"
    return text.strip()


def verdict(line):
    if line.get("must") is None:
        return "–"
    value, less = median(line["ratio"]), line["better"] == "less"
    reaches = lambda bound: value <= bound if less else value >= bound  # noqa: E731
    text = "yes" if reaches(line["must"]) else "no"
    if line.get("moonshot") is not None and reaches(line["moonshot"]):
        text = "moonshot"
    return text if line["stated"] else f"({text})"


def bound(line, name):
    if line.get(name) is None:
        return "–"
    return f"<={line[name]:g}x" if line["better"] == "less" else f"{line[name]:g}x"


def target_cells(line):
    unit, note = line.get("unit", "ms"), line.get("note")
    ours = amount(median(line["ours_ms"][line["engine"]]), unit)
    return [
        line["row"], case(line), peer(line) + (f"; {note}" if note else ""), peer_time(line),
        f"{ours} ({line['engine']})", spread(line["ratio"]), bound(line, "must"), bound(line, "moonshot"), verdict(line),
    ]  # fmt: skip


def line(row):
    return " | ".join(target_cells(row))


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines) + "\n"


def place(row):
    return (int(row["row"]) if row["row"].isdigit() else 99, row["row"], row["n"], row["set"], row["bits"])


def exponent(points):
    """The slope of log(ms) over log(n), by least squares."""
    return float(np.polyfit(np.log([n for n, _ in points]), np.log([ms for _, ms in points]), 1)[0])


def grouped(lines, key):
    groups = {}
    for entry in lines:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def growth_label(entry):
    return f"{entry['who']}, {operation(entry)}, {entry['set']}"


def markdown(lines):
    of = grouped(lines, lambda entry: entry["type"])
    [run], end = of["run"], of.get("end", [{}])[0]
    checks = of.get("check", [])
    asked, same = (sum(check[key] for check in checks) for key in ("queries", "same"))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    out = ["# tanhash and its peers, in turns\n"]
    facts = {
        "when": f"{run['date']}, {end.get('minutes', '?')} minutes",
        "what": f"{run['tanhash']}, commit {run['commit'][:12]}{' and changes' if run['changed'] else ''}, {run['rustc']}",
        "machine": f"{run['cpu']}, {run['cores']} cores, {run['memory_gib']:.0f} GiB, {run['system']}",
        "load": f"{run['load_before']:.1f} before, {end.get('load_after', 0):.1f} after; everything pinned to one core",
        "peers": f"{versions}; Python {run['python']}",
        "command": f"`{run['command']}`",
        "answers": f"{same:,} of {asked:,} are those of FAISS Flat" + ("" if same == asked else " **MISMATCH**"),
    }
    out += [f"- {name}: {text}" for name, text in facts.items()]
    if "row" in of:
        out += ["\n## Against the peers\n"]
        out += [
            f"Medians of at least {run['rounds']} rounds, a query each; the peer's time is one call a query [all queries in one call]."
            " The ratio is taken round by round, against the call of all queries where one call takes less than 50 us and"
            " where the case is about batches or tables of FAISS. A verdict in parentheses: the bound is stated for another"
            " size.\n"
        ]
        head = ["#", "case", "peer", "peer's time", "ours", "ratio", "must", "moonshot", "holds?"]
        rows = [target_cells(row) for row in sorted(of["row"], key=place)]
        for row, name, must, moonshot, why in NOT_RUN:
            wanted = {"must": must, "moonshot": moonshot, "better": "more"}
            bounds = [bound(wanted, which) for which in ("must", "moonshot")]
            rows += [[row, "–", f"{name}: not run, {why}", "–", "–", "–", *bounds, "–"]]
        out += [table(head, sorted(rows, key=lambda cells: int(cells[0]) if cells[0].isdigit() else 99))]
        out += ["## Engines by themselves\n"]
        engines = run["engines"]
        several = [row for row in sorted(of["row"], key=place) if len(row["ours_ms"]) > 1]
        cells = {
            (f"{case(row)} (#{row['row']})" if row["row"] == "3" else case(row)): [
                amount(median(row["ours_ms"][engine])) if engine in row["ours_ms"] else "–" for engine in engines
            ]
            for row in several
        }
        out += [table(["case", *engines], [[name, *times] for name, times in cells.items()])]
    if "index" in of:
        out += ["## Indexes\n", "Building includes tantivy's own files; `bytes` are those of codes and tables.\n"]
        head = ["set", "n x bits", "built for", "segments", "build s", "bytes a code", "whole index", "open ms"]
        key = lambda entry: tuple(entry[k] for k in ("set", "bits", "n", "engine", "segments"))  # noqa: E731
        rows = [
            [
                entries[0]["set"], f"{short(n)} x {bits}", engine, segments, figures(median(e["build_s"] for e in entries)),
                figures(entries[0]["index_bytes"] / n), figures(entries[0]["folder_bytes"] / n),
                figures(median(e["open_ms"] for e in entries)),
            ]
            for (name, bits, n, engine, segments), entries in sorted(grouped(of["index"], key).items())
        ]  # fmt: skip
        out += [table(head, rows)]
    if "peer" in of:
        head = ["peer", "set", "n x bits", "build s", "MiB", "bytes a code"]
        rows = [
            [
                name, set_name, f"{short(n)} x {bits}", figures(median(e["build_s"] for e in entries)),
                figures(entries[0]["mib"]), figures(entries[0]["mib"] * 2**20 / n),
            ]
            for (name, set_name, bits, n), entries in sorted(
                grouped(of["peer"], lambda e: (e["peer"], e["set"], e["bits"], e["n"])).items()
            )
        ]  # fmt: skip
        out += [table(head, rows)]
    if "segments" in of:
        groups = grouped(of["segments"], lambda entry: f"{case(entry)}, {entry['engine']}")
        counts = [entry["segments"] for entry in next(iter(groups.values()))]
        rows = []
        for name, entries in groups.items():
            times = [median(entry["ms"]) for entry in entries]
            # From the last but one: a single segment may be large enough for structures that smaller ones are not given.
            more = (times[-1] - times[-2]) / (counts[-1] - counts[-2])
            rows.append([name, *map(amount, times), f"{more * 1e3:.2f} us"])
        out += ["## Segments\n", table(["case", *counts, f"each further one beyond {counts[-2]}"], rows)]
    if "cold" in of:
        groups = grouped(of["cold"], lambda entry: f"{case(entry)}, {entry['engine']}")
        rows = []
        for name, entries in groups.items():
            times = {entry["who"]: entry["ms"] for entry in entries}
            rows.append([name, *(f"{amount(median(times[who]))} [{amount(min(times[who]))}..{amount(max(times[who]))}]" for who in ("cold", "warm"))])
        out += ["## The first query of a process\n"]
        out += ["Mapping pages and comparing the checksum of every section it needs, once.\n"]
        out += [table(["case", "files in no cache", "files in the page cache"], rows)]
    if "growth" in of:
        groups = grouped(of["growth"], growth_label)
        counts = sorted({entry["n"] for entry in of["growth"]})
        rows = []
        for name, entries in groups.items():
            points = {entry["n"]: median(entry["ms"]) for entry in entries}
            slope = f"{exponent(list(points.items())):.2f}" if len(points) > 1 else "–"
            rows.append([name, *(amount(points[n]) if n in points else "–" for n in counts), slope])
        out += ["## Growth\n", "The exponent is the slope of log time over log n, by least squares.\n"]
        out += [table(["", *map(short, counts), "exponent"], rows)]
    if "recall" in of:
        head = ["", "set", "recall", "time (peers: all queries in one call)"]
        rows = [
            [peer(entry | {"peer": entry["who"], "recall": None}), f"{entry['set']}, {short(entry['n'])} x {entry['bits']}",
             f"{entry['recall']:.4f}", amount(median(entry["ms"]))]
            for entry in of["recall"]
        ]  # fmt: skip
        out += ["## Recall and time, k=10\n", table(head, rows)]
    return "\n".join(out)


COLOURS = ["#b3261e", "#1f6fb2", "#3a7d34", "#8a5a00", "#6b4fa0", "#2b8a8a", "#8c8c8c", "#c2577a"]


def save(figure, path):
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    # Trailing blanks and the like say nothing.
    path.write_text(re.sub(r"[ \t]+\n", "\n", path.read_text()))


def plot_cases(rows, path):
    wanted = [row for row in sorted(rows, key=place) if row["better"] == "more" and row.get("unit", "ms") == "ms"]
    # Once each: some cases count for several rows.
    rows = list({(case(row), row["peer"], row["engine"]): row for row in reversed(wanted)}.values())
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.2))
    for at, row in enumerate(rows):
        theirs, ours = median(chosen(row)), median(row["ours_ms"][row["engine"]])
        axes.barh(at + 0.19, theirs, 0.36, color="#9aa5b1", label="peer" if at == 0 else None)
        axes.barh(at - 0.19, ours, 0.36, color=COLOURS[0], label="tanhash" if at == 0 else None)
    names = [f"{case(row)}\n{peer(row)}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=6.5)
    axes.set_xscale("log")
    axes.set_xlabel("ms a query")
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    save(figure, path)


def plot_growth(entries, path):
    figure, axes = plt.subplots(figsize=(8, 5))
    for (name, group), colour in zip(grouped(entries, growth_label).items(), COLOURS):
        points = sorted((entry["n"], median(entry["ms"])) for entry in group)
        ours = group[0]["who"].startswith("tanhash")
        slope = f"  n^{exponent(points):.2f}" if len(points) > 1 else ""
        axes.plot(*zip(*points), "o-" if ours else "s--", color=colour, label=name + slope, markersize=4, linewidth=1.4)
    axes.set(xscale="log", yscale="log", xlabel="codes of 64 bits", ylabel="ms a query")
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(figure, path)


def plot_recall(entries, path):
    sizes = sorted({entry["n"] for entry in entries})
    figure, all_axes = plt.subplots(1, len(sizes), figsize=(6.5 * len(sizes), 4.5), squeeze=False)
    whose = list(dict.fromkeys(entry["who"] for entry in entries))
    for n, axes in zip(sizes, all_axes[0]):
        for who, group in grouped([entry for entry in entries if entry["n"] == n], lambda e: e["who"]).items():
            points = sorted((median(entry["ms"]), entry["recall"]) for entry in group)
            ours = who.startswith("tanhash")
            colour = COLOURS[whose.index(who) % len(COLOURS)]
            axes.plot(*zip(*points), "D" if ours else "o-", color=colour, label=who, markersize=7 if ours else 4, linewidth=1)
        axes.set(xscale="log", xlabel="ms a query (peers: all queries in one call)", ylabel="recall by distance, k=10")
        axes.set_title(f"{entries[0]['set']}, {short(n)} x {entries[0]['bits']}", fontsize=10)
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=8, loc="lower right")
    save(figure, path)


def write(lines, folder):
    folder = Path(folder)
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tanhash", "font.size": 9})
    (folder / "table.md").write_text(markdown(lines))
    of = grouped(lines, lambda entry: entry["type"])
    for kind, name, plot in (
        ("row", "cases.svg", plot_cases), ("growth", "growth.svg", plot_growth), ("recall", "recall.svg", plot_recall),
    ):  # fmt: skip
        if kind in of:
            plot(of[kind], folder / name)


BEGINS, ENDS = "<!-- what follows is written by benches/peers/report.py -->", "<!-- up to here -->"


def fill(page, lines, folder):
    """Puts the tables of a record between the marks of a page, a heading lower than in its own file."""
    page = Path(page)
    before, rest = page.read_text().split(BEGINS)
    _, after = rest.split(ENDS)
    tables = markdown(lines).split("\n", 1)[1].replace("\n## ", "\n### ")
    plots = [f"![{path.stem}](../{path})" for path in sorted(Path(folder).glob("*.svg"))]
    parts = [before + BEGINS, tables.strip(), *plots, ENDS + after]
    page.write_text("\n\n".join(parts))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lines = [json.loads(text) for text in open(folder / "record.jsonl")]
    write(lines, folder)
    for page in sys.argv[2:]:
        fill(page, lines, folder)
