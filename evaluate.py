"""Judge influence stores, or another program's scores: `python evaluate.py --help`."""

import sys
from pathlib import Path

from tdaexp.app import main

if __name__ == "__main__":
    sys.exit(main("evaluate", Path(__file__).resolve().parent / "conf"))
