# Every target first makes the environment if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The environment, and the further packages that tests, linters, benchmarks and docs need.
READY := $(VENV)/.ready
EXTRAS := $(VENV)/.ready-extras
# A second environment, with the oldest versions that pyproject.toml allows.
OLDEST := .venv-oldest
FINETUNE := $(BIN)/python recipes/finetune_neural.py --encoder runs/demo/encoder --encoder.geometry.tubelet_stride '[4, 5, 5]' \
  --steps 200 --evaluation.every 100

# Tests run on every core, up to eight, with one thread each.
PYTEST_PARALLEL := -m pytest -n logical --maxprocesses 8 --dist worksteal

MEASURED := docs/published/benchmarks

.PHONY: help demo test test-slow test-oldest lint bench bench-gpu docs clean

help:
	@echo "make demo   pretrain on rendered videos, fit models of neurons, draw a figure"
	@echo "make test   run the test suite (make test-slow: the tests that take minutes;"
	@echo "            make test-oldest: with the oldest versions that pyproject.toml allows)"
	@echo "make lint   run ruff and mypy"
	@echo "make bench  measure speed and memory as ratios to other implementations (make bench-gpu: on a GPU)"
	@echo "make docs   build the documentation into docs/_build"
	@echo "make clean  remove the environments"

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); use make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV): about 6 GB, some minutes"
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --constraint requirements.lock --editable .
	@touch $@

$(EXTRAS): $(READY)
	$(BIN)/python -m pip install -qq --constraint requirements.lock --editable '.[dev,bench,docs,onnx,neural,search]'
	@touch $@

demo: $(READY)
	$(BIN)/python recipes/simclr_clevrer.py --run_dir runs/demo --resume auto
	$(FINETUNE) --run_dir runs/demo_neurons --resume auto
	$(FINETUNE) --encoder.weights fresh --run_dir runs/demo_neurons_fresh --resume auto
	@$(BIN)/python examples/demo_report.py runs/demo runs/demo_neurons runs/demo_neurons_fresh

test: $(EXTRAS)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST_PARALLEL)

test-slow: $(EXTRAS)
	$(BIN)/python -m pytest -m slow

$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install -qq uv
	$(OLDEST)/bin/uv pip install -q --python $(OLDEST)/bin/python --resolution lowest-direct --only-binary :all: \
	  --editable '.[dev,bench,docs,onnx,neural,search]'
	@touch $@

test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PYTEST_PARALLEL)

lint: $(EXTRAS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(EXTRAS)
	@set -e; for bench in $(filter-out %/bench_training.py,$(wildcard tests/benchmarks/bench_*.py)); do \
	  echo "== $$bench"; $(BIN)/python $$bench --out $(MEASURED); done
	$(BIN)/python tests/benchmarks/results.py

bench-gpu: $(EXTRAS)
	@set -e; for bench in training encoders class_only tubelets masked_tubelets neural_cores convgru readout growth live; do \
	  echo "== $$bench"; $(BIN)/python tests/benchmarks/bench_$$bench.py --device cuda --out $(MEASURED); done
	$(BIN)/python tests/benchmarks/results.py

docs: $(EXTRAS)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build
	@echo "open docs/_build/index.html"

clean:
	rm -rf $(VENV) $(OLDEST)
