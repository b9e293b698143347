# The commands of the project; `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3.14 || echo python3.11)
BIN := .venv/bin
# One test process per core, with one thread each: more threads would compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
# Tests that use the same long run are sent to the same process.
GROUPED := --dist loadgroup
SERVED := logs/train/quickstart
EXTRAS := analysis timm export openvino prune sweep serve labels hub litdata docs dev
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train serve test test-fast check soak results metrics clean new docs schema release-check lock bench bench-quick bench-data export-env

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: .venv/installed  ## create .venv and install the packages of requirements.lock (the others do it if needed)

# Installs again only if the lock has changed.
.venv/installed: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; install Python 3.11 or later and set its name, e.g. make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; set another one, e.g. make setup PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the packages of requirements.lock into .venv: some minutes, 7 GB"
	$(BIN)/python -m pip install --progress-bar on --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Packages of formats of `export.py` that cannot be installed into .venv. PaddlePaddle 3.3 computes wrong numbers on CPUs.
PACKAGES_paddle := paddlepaddle==3.2.2 sympy six astor packaging
UNCHECKED_paddle := x2paddle==1.6.0
PACKAGES_executorch := executorch==1.5.1
ENV = .venv-$(FORMAT)

export-env:  ## create .venv-FORMAT, in which export.py format=FORMAT runs: FORMAT=paddle or FORMAT=executorch
	@test -n "$(PACKAGES_$(FORMAT))" || { echo "error: FORMAT=$(FORMAT) is neither paddle nor executorch; the other formats need no environment of their own" >&2; exit 2; }
	@$(MAKE) --no-print-directory setup
	$(BIN)/python -m venv $(ENV)
	@printf '%s\n' "$(CURDIR)"/.venv/lib/python*/site-packages "$(CURDIR)/src" \
	  > "$$(echo $(ENV)/lib/python*/site-packages)/imago.pth"
	$(ENV)/bin/python -m pip install --progress-bar on $(PACKAGES_$(FORMAT))
	$(if $(UNCHECKED_$(FORMAT)),$(ENV)/bin/python -m pip install --no-deps $(UNCHECKED_$(FORMAT)))

train: setup  ## train experiment=quickstart; settings: make train ARGS="optimizer.lr=3e-4"
	$(BIN)/python src/train.py experiment=quickstart $(ARGS)

serve: setup $(SERVED)/export/model.onnx  ## serve experiment=quickstart, a page for the browser; trains and exports it first
	$(BIN)/python src/serve.py model=$(SERVED) $(ARGS)

$(SERVED)/export/model.onnx: | setup
	$(BIN)/python src/train.py experiment=quickstart run_name=$(notdir $(SERVED)) resume=auto
	$(BIN)/python src/export.py run=$(SERVED)

test: setup  ## run every test
	$(PYTEST) $(GROUPED) -m "not soak" $(ARGS)

test-fast: setup  ## run the fast tests
	$(PYTEST) -m "not slow and not soak" $(ARGS)

check: setup  ## check formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: setup  ## run the long repetitions
	$(PYTEST) $(GROUPED) -m soak $(ARGS)

release-check:  ## before a release: a fresh clone of the last commit is set up, checked, tested and built
	test -z "$$(git status --porcelain)" || { echo "error: there are changes that are not committed" >&2; exit 2; }
	rm -rf build/release && git clone --quiet . build/release
	$(MAKE) --no-print-directory -C build/release setup check docs test
	cd build/release && .venv/bin/python tools/licenses.py && .venv/bin/python -m pip wheel --quiet --no-deps -w dist .
	@ls build/release/dist

schema: setup  ## write JSON schemas of configs/ for editors, see docs/editors.md
	PYTHONPATH=src $(BIN)/python tools/schema.py

new: setup  ## start a project of your own: make new NAME=birdnet DIR=../birdnet
	@$(BIN)/python tools/new_project.py "$(NAME)" "$(DIR)"

docs: setup  ## build the documentation: build/docs/index.html
	PYTHONPATH=src $(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

results: setup  ## write docs/results.md from the headers of configs/experiment
	$(BIN)/python docs/results.py

metrics: setup  ## print size, function lengths, and modules and calls of a training run
	$(BIN)/python benchmarks/metrics.py $(ARGS)

bench: setup  ## measure speed, 15 minutes, and print a table; needs the datasets in IMAGO_DATA_DIR and an idle machine
	$(BIN)/python benchmarks/summary.py --measure full

bench-quick: setup  ## the same in 3 minutes, without training
	$(BIN)/python benchmarks/summary.py --measure quick

bench-data: setup  ## compare the loaders with others; needs the datasets in IMAGO_DATA_DIR and an idle machine
	$(BIN)/python benchmarks/data.py $(ARGS)

clean:  ## remove .venv and caches; keeps the runs in logs/
	rm -rf .venv data/cache build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Without the extras wandb and mlflow: no test needs them, and MLflow would install a server with every setup.
lock:  ## resolve pyproject.toml and write requirements.lock
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	  --prerelease if-necessary-or-explicit $(EXTRAS:%=--extra %) pyproject.toml -o requirements.lock
