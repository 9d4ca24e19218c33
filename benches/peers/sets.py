"""Sets of packed codes and queries: from a seed `uni`, `cCxPP`, `corr` and `dup`; and those of files."""

import re

import numpy as np

QUERIES = 1000
SEED = 20
CHUNK = 1 << 18
COPIES = 100_000

# Every bit of a real code that is taken again differs with this probability.
FRESH_NOISE = 0.02


def flips(rng, shape, p):
    """Words whose bits are one with probability `p`, to 16 binary digits."""
    digits = round(p * (1 << 16))
    words = np.zeros(shape, np.uint64)
    for place in range(16):
        draw = rng.integers(0, 1 << 64, shape, np.uint64)
        if digits >> place & 1:
            words |= draw
        elif place and digits & ((1 << place) - 1):
            words &= draw
    return words


def as_bytes(words, bits):
    return words.view(np.uint8).reshape(len(words), -1)[:, : bits // 8]


def uniform(rng, bits):
    words = -(-bits // 64)
    return lambda n: as_bytes(rng.integers(0, 1 << 64, (n, words), np.uint64), bits)


def clusters(rng, bits, count, p):
    """`count` random centres; a code is one of them with every bit flipped with probability `p`."""
    words = -(-bits // 64)
    centres = rng.integers(0, 1 << 64, (count, words), np.uint64)

    def draw(n):
        return as_bytes(centres[rng.integers(0, count, n)] ^ flips(rng, (n, words), p), bits)

    return draw


def correlated(rng, bits, dimensions=24, width=8):
    """Signs of Gaussian vectors against hyperplanes that turn slowly from one bit to the next."""
    rough = rng.standard_normal((dimensions, bits + width - 1))
    planes = np.stack([rough[:, at : at + width].sum(1) for at in range(bits)], 1).astype(np.float32)

    def draw(n):
        vectors = rng.standard_normal((n, dimensions), np.float32)
        return np.packbits(vectors @ planes > 0, axis=1, bitorder="little")

    return draw


def duplicates(rng, bits, n, copies):
    """Clusters, in which one code has many copies; every other query is near that code."""
    draw = clusters(rng, bits, 1000, 0.10)
    code = draw(1)
    codes = draw(n)
    codes[rng.choice(n, copies, replace=False)] = code
    queries = draw(QUERIES)
    near = np.repeat(code, len(queries[::2]), axis=0)
    for row, query in enumerate(near):
        for bit in rng.choice(bits, row % 4, replace=False):
            query[bit // 8] ^= 1 << bit % 8
    queries[::2] = near
    return codes, queries


def more_of(rng, bits, base):
    """Codes of a file, each as often as it comes, with fresh noise."""
    words = -(-bits // 64)
    wide = np.zeros((len(base), words * 8), np.uint8)
    wide[:, : bits // 8] = base
    wide = wide.view(np.uint64)
    return lambda n: as_bytes(wide[rng.integers(0, len(wide), n)] ^ flips(rng, (n, words), FRESH_NOISE), bits)


def make(name, n, bits, folder, real={}):
    """Paths of the codes and the queries, made unless they are there. `real` has those of files, by name."""
    files = real.get(name)
    if files and files[0].stat().st_size == n * bits // 8:
        return files
    stem = folder / f"{name}_{n}_{bits}_s{SEED}"
    codes, queries = stem.with_suffix(".codes"), stem.with_suffix(".queries")
    if codes.exists() and queries.exists():
        return codes, queries
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.SFC64([SEED, bits, *name.encode()]))
    partial = stem.with_suffix(".partial")
    if name == "dup":
        rows, held_out = duplicates(rng, bits, n, min(COPIES, n // 10))
        rows.tofile(partial)
    else:
        cluster = re.fullmatch(r"c(\d+)p(\d+)", name)
        if files:
            draw = more_of(rng, bits, read(files[0], bits))
        elif cluster:
            draw = clusters(rng, bits, int(cluster[1]), int(cluster[2]) / 100)
        else:
            draw = {"uni": uniform, "corr": correlated}[name](rng, bits)
        # The queries first, so that they are the same at every n.
        held_out = read(files[1], bits) if files else draw(QUERIES)
        with open(partial, "wb") as out:
            for start in range(0, n, CHUNK):
                draw(min(CHUNK, n - start)).tofile(out)
    held_out.tofile(queries)
    partial.rename(codes)
    return codes, queries


def read(path, bits):
    return np.fromfile(path, np.uint8).reshape(-1, bits // 8)


def in_share(rows, share):
    """The rows that `tanhash bench --filter-share` allows."""
    mixed = np.arange(rows, dtype=np.uint64) * np.uint64(2_654_435_761) & np.uint64(0xFFFF_FFFF)
    return mixed / 2.0**32 < share
