#!/usr/bin/env bash
# The peers' environment, apart from the project's own: benchmarks/peers/.venv. Made once; again where a pin changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
stamp=.venv/installed
[ "$stamp" -nt requirements.txt ] && [ "$stamp" -nt packages.txt ] && [ "$stamp" -nt ../../constraints.txt ] && exit 0
"${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --upgrade pip
.venv/bin/python -m pip install --quiet -c ../../constraints.txt -r requirements.txt
.venv/bin/python -m pip install --quiet --no-deps -r packages.txt
touch "$stamp"
