#!/usr/bin/env python3
"""An OrthoHash head on features in PyTorch, to compare `tanhash train` with.

    orthohash_torch.py --features DIR --centers C.npy --out DIR [--authors CHECKOUT] [--epochs N] [--batch N] [--lr X]
        [--margin M] [--seed N] [--threads N]

DIR is what `tanhash features` writes. Writes packed codes and labels of the query and database splits, and prints one
JSON line: `train_s` and `train_cpu_s` (of the processor) are of the loop alone, with the features in memory. The head, the loss and s = sqrt(bits) are written from
the formula; with `--authors` the cosines and the loss are the authors' own classes, imported from a checkout of
github.com/kamwoh/orthohash. Adam with torch's defaults, half a cosine down to 0, the last partial batch dropped.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


class Head(torch.nn.Module):
    """v = BatchNorm(f W^T), W from N(0, 0.01^2), without a bias."""

    def __init__(self, n_features, bits):
        super().__init__()
        self.linear = torch.nn.Linear(n_features, bits, bias=False)
        self.norm = torch.nn.BatchNorm1d(bits)
        torch.nn.init.normal_(self.linear.weight, std=0.01)

    def forward(self, features):
        return self.norm(self.linear(features))


def formula(centers, scale, margin):
    """Cross entropy of softmax(s (cos(v, o_c) - m [c is the class]))."""
    unit = F.normalize(centers, dim=1)

    def loss(logits, labels):
        cosines = F.normalize(logits, dim=1) @ unit.T
        target = F.one_hot(labels, len(centers))
        return F.cross_entropy(scale * (cosines - margin * target), labels)

    return loss


def authors(checkout, centers, scale, margin):
    sys.path.insert(0, str(checkout))
    from functions.loss.orthohash import OrthoHashLoss
    from models.alexnet import CosSim

    cosines = CosSim(centers.shape[1], len(centers), centers, learn_cent=False)
    criterion = OrthoHashLoss(s=scale, m=margin)
    return lambda logits, labels: criterion(cosines(logits), logits, labels, onehot=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--centers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--margin", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    features, labels, splits = (np.load(options.features / f"{name}.npy") for name in ("features", "labels", "splits"))
    centers = torch.from_numpy(np.load(options.centers).astype(np.float32))
    bits = centers.shape[1]
    train = splits & 1 > 0
    xs, ys = torch.from_numpy(features[train]), torch.from_numpy(labels[train].astype(np.int64))

    start, cpu_start = time.monotonic(), time.process_time()
    head = Head(xs.shape[1], bits)
    arguments = (centers, math.sqrt(bits), options.margin)
    loss_of = authors(options.authors, *arguments) if options.authors else formula(*arguments)
    optimizer = torch.optim.Adam(head.parameters(), lr=options.lr)
    per_epoch = len(xs) // options.batch
    steps = options.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for _ in range(options.epochs):
        order = torch.randperm(len(xs))[: per_epoch * options.batch].view(per_epoch, options.batch)
        for rows in order:
            loss = loss_of(head(xs[rows]), ys[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start

    head.eval()
    for name, bit in (("database", 2), ("query", 4)):
        rows = splits & bit > 0
        with torch.no_grad():
            logits = torch.cat([head(part) for part in torch.from_numpy(features[rows]).split(4096)])
        np.packbits(logits.numpy() > 0, axis=1, bitorder="little").tofile(options.out / f"{name}.bin")
        np.save(options.out / f"{name}.npy", labels[rows].astype(np.int64))
    print(json.dumps({"train_s": seconds, "train_cpu_s": cpu_seconds, "loss": loss.item(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
