# Every target makes the environment first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow lint bench clean

help:
	@echo "make demo   render a CLEVRER-like sample, pretrain on it, export the encoder, draw figures"
	@echo "make test   run the test suite (make test-slow: the tests that take minutes)"
	@echo "make lint   ruff and mypy"
	@echo "make bench  speed and memory, as ratios measured side by side"
	@echo "make clean  remove the environment"

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); use make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --constraint requirements.lock --editable '.[dev,bench,onnx,neural]'
	@touch $@

demo: $(READY)
	$(BIN)/accelerate launch --quiet recipes/simclr_clevrer.py --run_dir runs/demo --resume auto

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	@set -e; for bench in tests/benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench; done

clean:
	rm -rf $(VENV)
