"""Converts a PyTorch state dict (.pth, .pt) to .safetensors, once, on any machine with Python 3.8.

    python3 convert_weights.py resnet50.pth resnet50.safetensors

Needs no torch. The file's pickle is read by an unpickler that knows tensors and dictionaries and nothing
else, so no code in the file is run. Floating-point tensors become float32; counters of batches and other
integers are left out.
"""

import array
import collections
import io
import json
import pickle
import struct
import sys
import zipfile

# Bytes a value, and the code of Python's struct; None for what is left out.
STORAGES = {
    "FloatStorage": (4, "f"),
    "DoubleStorage": (8, "d"),
    "HalfStorage": (2, "e"),
    "LongStorage": (8, None),
    "IntStorage": (4, None),
    "BoolStorage": (1, None),
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage:
    def __init__(self, name):
        self.name = name
        self.data = b""


class Tensor:
    def __init__(self, storage, offset, shape, stride):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def float32(self, name):
        """The values as little-endian float32, row-major, or None for integers."""
        size, code = STORAGES[self.storage.name]
        if code is None:
            return None
        steps = [(length - 1) * stride for length, stride in zip(self.shape, self.stride)]
        if any(length < 1 for length in self.shape) or any(step < 0 for step in steps):
            sys.exit(f"{name}: expected sizes from 1 up, found the shape {self.shape}")
        wanted = (self.offset + sum(steps) + 1) * size
        if len(self.storage.data) < wanted:
            sys.exit(f"{name}: expected {wanted} bytes, found {len(self.storage.data)}; the file is cut off")
        stored = struct.iter_unpack("<" + code, self.storage.data)
        stored = array.array("f", (value[0] for value in stored))
        values = array.array("f")

        def gather(at, axis):
            if axis == len(self.shape):
                values.append(stored[at])
            elif axis + 1 == len(self.shape):
                stride = self.stride[axis]
                values.extend(stored[at : at + (self.shape[axis] - 1) * stride + 1 : max(stride, 1)])
            else:
                for i in range(self.shape[axis]):
                    gather(at + i * self.stride[axis], axis + 1)

        gather(self.offset, 0)
        if sys.byteorder == "big":
            values.byteswap()
        return values.tobytes()


def rebuild_tensor(storage, offset, shape, stride, *_):
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def rebuild_parameter(tensor, *_):
    return tensor


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}


class Unpickler(pickle.Unpickler):
    """Knows tensors and dictionaries; anything else in the file is an error."""

    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) not in ALLOWED:
            sys.exit(f"expected a state dict of tensors, found {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, saved):
        kind, name, key = saved[:3]
        if kind != "storage":
            sys.exit(f"expected a storage, found {kind}")
        if not isinstance(name, str):
            sys.exit(f"expected a kind of storage, found {name}")
        return self.storages.setdefault(str(key), Storage(name))


def read(path):
    storages = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (root,) = {name.rsplit("/data.pkl", 1)[0] for name in archive.namelist() if name.endswith("/data.pkl")}
            tensors = Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl")), storages).load()
            for key, storage in storages.items():
                storage.data = archive.read(f"{root}/data/{key}")
        return tensors
    with open(path, "rb") as file:
        if Unpickler(file, storages).load() != LEGACY_MAGIC:
            sys.exit(f"{path}: expected a file of torch.save")
        Unpickler(file, storages).load()  # The version of the format.
        Unpickler(file, storages).load()  # The machine that wrote it.
        tensors = Unpickler(file, storages).load()
        for key in Unpickler(file, storages).load():
            storage = storages[str(key)]
            (n_values,) = struct.unpack("<q", file.read(8))
            storage.data = file.read(n_values * STORAGES[storage.name][0])
    return tensors


def main(source, target):
    tensors = read(source)
    for key in ("state_dict", "model"):
        if key in tensors and isinstance(tensors[key], dict):
            tensors = tensors[key]
    header, blobs, offset = {}, [], 0
    for name, tensor in tensors.items():
        name = name[len("module.") :] if name.startswith("module.") else name
        data = tensor.float32(name) if isinstance(tensor, Tensor) else None
        if data is None:
            continue
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        blobs.append(data)
        offset += len(data)
    if not blobs:
        sys.exit(f"{source}: found no tensor of floating-point numbers")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in blobs:
            file.write(data)
    print(f"{target}: {len(blobs)} tensors, {offset} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
