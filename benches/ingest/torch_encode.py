"""Encodes pictures with a trained model as the bench `ingest` does, in PyTorch's eager mode with torchvision's network.

    pip install torch==2.11.0 torchvision==0.26.0
    TANHASH_BENCH_PYTHON=python3 TANHASH_BENCH_MODEL=FILE cargo bench --bench ingest --features cli,torch -- model

The bench starts `torch_encode.py MODEL PIXELS SIDE BATCH THREADS DEVICE`: a model of tanhash with a ResNet, and a file of
SIDE x SIDE x 3 bytes a picture. For each line on standard input it encodes all of them once, as the line asks: `plain` in the
layout that torchvision's networks start in, `channels-last` in the other; `half` after it for bfloat16. It prints their number,
the seconds they took, the seconds of processor time, and the codes in hexadecimal. Bytes are in memory at the start of the
time, packed bits at its end.
"""

import json
import struct
import sys
import time

import numpy as np
import torch
import torchvision


def read_model(path):
    with open(path, "rb") as file:
        (n_header,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(n_header))
        data = file.read()
    config = json.loads(header.pop("__metadata__")["tanhash"])
    tensors = {}
    for name, about in header.items():
        assert about["dtype"] == "F32", name
        begin, end = about["data_offsets"]
        values = np.frombuffer(data[begin:end], np.float32).reshape(about["shape"])
        tensors[name] = torch.from_numpy(values.copy())
    return config, tensors


class Hasher(torch.nn.Module):
    """The backbone and its head: v = BatchNorm(f W^T)."""

    def __init__(self, config, tensors):
        super().__init__()
        self.backbone = getattr(torchvision.models, config["backbone"].replace("-", ""))(weights=None)
        n_features = self.backbone.fc.in_features
        self.backbone.fc = torch.nn.Identity()
        self.head = torch.nn.Sequential(
            torch.nn.Linear(n_features, config["code_len_bits"], bias=False),
            torch.nn.BatchNorm1d(config["code_len_bits"]),
        )
        names = {"head.linear.": "head.0.", "head.norm.": "head.1."}
        state = {}
        for name, tensor in tensors.items():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            state[name] = tensor
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing), missing

    def forward(self, pictures, half):
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=half):
            features = self.backbone(pictures)
        return self.head(features.float())


def main():
    model, pixels, side, batch, threads, device = sys.argv[1:]
    side, batch = int(side), int(batch)
    torch.set_num_threads(int(threads))
    config, tensors = read_model(model)
    pixels = torch.from_numpy(np.fromfile(pixels, np.uint8).reshape(-1, side, side, 3))
    shift, scale = (torch.tensor(config["normalization"][key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    networks = {}
    for layout, format_ in (("plain", torch.contiguous_format), ("channels-last", torch.channels_last)):
        networks[layout] = Hasher(config, tensors).eval().to(device).to(memory_format=format_)

    def encode(layout, half):
        network, codes = networks[layout], []
        for part in pixels.split(batch):
            pictures = part.to(device).permute(0, 3, 1, 2).float() / 255
            format_ = torch.channels_last if layout == "channels-last" else torch.contiguous_format
            logits = network(((pictures - shift) / scale).contiguous(memory_format=format_), half)
            codes.append((logits > 0).cpu().numpy())
        return np.packbits(np.concatenate(codes), axis=1, bitorder="little")

    print(f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, {device}", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            begin, cpu_begin = time.perf_counter(), time.process_time()
            layout, *more = line.split()
            codes = encode(layout, "half" in more)
            print(len(codes), time.perf_counter() - begin, time.process_time() - cpu_begin, codes.tobytes().hex(), flush=True)


main()
