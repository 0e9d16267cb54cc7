"""One file per method; `base.py` says what a method is, `tdaexp.problem` what it may look at."""
