#!/usr/bin/env python3
"""tanhash side by side with its peers, in turns: `run.py --out DIR --sizes 1e6`. See README.md beside this file.

Makes the virtual environment that `measure.py` needs, unless it is there, and hands over.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / ".data/peers")
    home = parser.parse_known_args()[0].data.resolve() / "venv"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = home / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.check_call([sys.executable, "-m", "venv", home])
        pip = [home / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.check_call([*pip, "-r", HERE / "requirements.txt"])
        stamp.write_text(wanted)
    python = home / "bin/python"
    os.execv(python, [python, HERE / "measure.py", *sys.argv[1:]])


main()
