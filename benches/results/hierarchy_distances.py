#!/usr/bin/env python3
"""Semantic distances of classes from a tree, for `tanhash train --method shrewd --distances`.

    hierarchy_distances.py TREE OUT.npy [CLASSES]

TREE is indented by two dashes a level, as CIFAR-100's by Barz and Denzler; CLASSES has one class name a line, in the
order of the labels; without it the classes are the leaves by name, with underscores for blanks. The
distance of two classes is the height of their lowest common ancestor over the height of the root, the height of a
node being the longest way down to a leaf; 0 on the diagonal. Trees only: a name that occurs twice is refused.
"""

import sys

import numpy as np


def key(name):
    return name.lower().replace(" ", "").replace("-", "").replace("_", "")


def parents(lines):
    """The parent of every node but the root, by name."""
    above, path = {}, []
    for line in filter(str.strip, lines):
        name = line.lstrip("- ").strip()
        depth = (len(line) - len(line.lstrip("-"))) // 2
        if key(name) in above:
            sys.exit(f"{name} occurs twice: not a tree")
        if depth > len(path) or (depth == 0 and path):
            sys.exit(f"{name} is at depth {depth}, below a node of depth {len(path) - 1}")
        path[depth:] = [key(name)]
        above[key(name)] = path[depth - 1] if depth else None
    return above


def distances(above, classes):
    def upwards(name):
        while name is not None:
            yield name
            name = above[name]

    missing = [name for name in classes if key(name) not in above]
    if missing:
        sys.exit(f"not in the tree: {', '.join(missing)}")
    height = dict.fromkeys(above, 0)
    for name in above:
        for steps, node in enumerate(upwards(name)):
            height[node] = max(height[node], steps)
    [root] = [name for name, parent in above.items() if parent is None]
    out = np.zeros((len(classes), len(classes)), np.float32)
    for i, first in enumerate(classes):
        ancestors = set(upwards(key(first)))
        for j, second in enumerate(classes):
            common = next(node for node in upwards(key(second)) if node in ancestors)
            out[i, j] = height[common] / height[root] if i != j else 0
    return out


def leaves(lines):
    names = [line.lstrip("- ").strip().replace(" ", "_") for line in filter(str.strip, lines)]
    inner = {parent for parent in parents(lines).values() if parent}
    return sorted(name for name in names if key(name) not in inner)


if __name__ == "__main__":
    tree, out, *rest = sys.argv[1:]
    with open(tree) as file:
        lines = file.read().splitlines()
    names = open(rest[0]).read().splitlines() if rest else leaves(lines)
    np.save(out, distances(parents(lines), names))
