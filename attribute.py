"""Attribute a model's behaviour to its training examples: `python attribute.py --help`."""

import sys
from pathlib import Path

from tdaexp.app import main

if __name__ == "__main__":
    sys.exit(main("attribute", Path(__file__).resolve().parent / "conf"))
