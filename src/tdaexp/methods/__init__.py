"""One file per method; `base.py` says what a method is, `study.py` what it may look at."""
