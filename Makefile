# Everything people do with the project, by one word. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3.11)
BIN := .venv/bin
# A test process for each core, with one thread each: more would mostly wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
# Tests that look at the same long run go to the same process.
GROUPED := --dist loadgroup
EXTRAS := analysis timm export dev
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast check soak results clean lock bench-data

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/installed  ## create .venv and install what requirements.lock pins (done by the others if missing)

# Only a changed lock installs again: the second time this costs nothing.
.venv/installed: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; install Python 3.11 or later and give its name, e.g. make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; give another one, e.g. make setup PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

train: setup  ## train the quickstart; make train ARGS="optimizer.lr=3e-4" passes settings
	$(BIN)/python src/train.py experiment=quickstart $(ARGS)

test: setup  ## run every test
	$(PYTEST) $(GROUPED) -m "not soak" $(ARGS)

test-fast: setup  ## run the tests that take seconds
	$(PYTEST) -m "not slow and not soak" $(ARGS)

check: setup  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: setup  ## the long repetitions
	$(PYTEST) $(GROUPED) -m soak $(ARGS)

results: setup  ## write docs/results.md from the headers of configs/experiment
	$(BIN)/python docs/results.py

bench-data: setup  ## ratios of the loaders to others; needs the data sets below $$IMAGO_DATA_DIR and a quiet machine
	$(BIN)/python benchmarks/data.py $(ARGS)

clean:  ## remove .venv, caches and drawn data; runs in logs/ stay
	rm -rf .venv data/shapes data/cache build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The extras wandb and mlflow stay out: nothing here tests them, and every setup would download a server with MLflow.
lock:  ## resolve pyproject.toml into requirements.lock again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --prerelease if-necessary-or-explicit $(EXTRAS:%=--extra %) pyproject.toml -o requirements.lock
