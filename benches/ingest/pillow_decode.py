"""Decodes JPEG files as the bench `ingest` does, with Pillow in two processes.

    pip install pillow
    TANHASH_BENCH_PYTHON=python3 TANHASH_BENCH_PICTURES=DIR cargo bench --bench ingest -- decode

The bench starts `pillow_decode.py DIR MAX`. For each line on standard input it decodes the files once: to RGB, scaled
by a bilinear filter so that the shorter side has 224 pixels, cropped about the middle, in memory. It prints their
number, the seconds they took, and the seconds of processor time. Reading the files and starting the processes are not timed.
"""

import io
import multiprocessing
import os
import sys
import time

import PIL
from PIL import Image, features

SIDE = 224


def shaped(data):
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    scale = SIDE / min(width, height)
    size = (max(SIDE, round(width * scale)), max(SIDE, round(height * scale)))
    picture = picture.resize(size, Image.BILINEAR)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return picture.crop((left, top, left + SIDE, top + SIDE)).tobytes()


def files_under(folder):
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from files_under(path)
        elif name.endswith(".jpg"):
            with open(path, "rb") as file:
                data = file.read()
            try:
                shaped(data)
            except Exception:  # the bench leaves out what does not decode, too
                continue
            yield data


def work(files, start, end, cpu):
    while True:
        start.wait()
        begin = time.process_time()
        for data in files:
            assert len(shaped(data)) == SIDE * SIDE * 3
        cpu.value = time.process_time() - begin
        end.wait()


def main():
    folder, limit = sys.argv[1], int(sys.argv[2])
    files = []
    for data in files_under(folder):
        files.append(data)
        if len(files) == limit:
            break
    start, end = multiprocessing.Barrier(3), multiprocessing.Barrier(3)
    spent = [multiprocessing.Value("d", 0.0) for _ in range(2)]
    for half, cpu in zip((files[0::2], files[1::2]), spent):
        multiprocessing.Process(target=work, args=(half, start, end, cpu), daemon=True).start()
    turbo = features.version("libjpeg_turbo")
    print(f"Pillow {PIL.__version__}, libjpeg-turbo {turbo}", flush=True)
    for _ in sys.stdin:
        start.wait()
        begin = time.perf_counter()
        end.wait()
        seconds = time.perf_counter() - begin
        print(len(files), seconds, sum(cpu.value for cpu in spent), flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
