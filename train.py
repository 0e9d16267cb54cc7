"""Train the configured model on the configured data set: `python train.py --help`."""

import sys
from pathlib import Path

from tdaexp.app import main

if __name__ == "__main__":
    sys.exit(main("train", Path(__file__).resolve().parent / "conf"))
