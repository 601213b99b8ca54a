# The targets for people and CI. `make demo` and `make test` are enough to start.
#   make demo ARGS="--out DIR --quick"     options for `qilin demo`
#   make test PYTHON=python3.12            the Python for .venv (3.11 or newer)
#   make test XDIST="-n 0"                 fast tests in one process (default: up to four)
#   make .venv/ready PIP_ARGS="--find-links DIR"   options for pip, such as a folder of wheels

PYTHON ?= python3
BIN := .venv/bin
XDIST := -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-floor gpu-dry architectures fuzz lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/ready  ## run the whole pipeline on this machine; options: ARGS="--out DIR --quick"
	$(BIN)/qilin demo $(ARGS)

test: .venv/ready  ## run the fast tests, then the end-to-end tests
	$(BIN)/python -m pytest $(XDIST) -m "not story and not long and not gpu"
	$(BIN)/python -m pytest -m "story and not long and not gpu"

test-all: test  ## run the long tests too
	$(BIN)/python -m pytest -m "long and not gpu"

# The oldest supported versions with the build of torch for CUDA, from tests/floor.txt, are installed into .floor (6 GB);
# GPU_PYTHON=DIR/bin/python takes another environment that has them.
ifeq ($(origin GPU_PYTHON), undefined)
  GPU_PYTHON := $(CURDIR)/.floor/bin/python
  FLOOR := .floor/ready
endif
STUB ?= .stub-gpu
ON_STUB := PYTHONPATH=src:tests PYTORCH_ALLOC_CONF=expandable_segments:True OMP_NUM_THREADS=1 BUDGET=3600 \
  TORCHINDUCTOR_CACHE_DIR=$(abspath $(STUB))/inductor TRITON_CACHE_DIR=$(abspath $(STUB))/kernels

test-floor: $(FLOOR)  ## run the tests of models and training with the oldest supported versions
	PYTHONPATH=src:tests $(GPU_PYTHON) -m pytest -m "not story and not long and not gpu" -rs tests/model tests/train

gpu-dry: $(FLOOR)  ## run the GPU benchmark and recipes on a GPU without kernels (tests/gpu/stub): minutes
	tests/gpu/stub/build.sh $(GPU_PYTHON) $(STUB)
	rm -rf $(STUB)/smoke $(STUB)/full
	$(ON_STUB) $(STUB)/python tests/gpu/stub/recipes.py
	$(ON_STUB) OUT=$(STUB)/smoke $(STUB)/python bench/train/hopper.py smoke
	$(ON_STUB) OUT=$(STUB)/full STUB_GPU_BYTES=150109356032 STUB_GPU_NAME="NVIDIA H200" \
	  $(STUB)/python bench/train/hopper.py full
	! grep '"failed"' $(STUB)/smoke/rows.jsonl $(STUB)/full/rows.jsonl

architectures: .venv/ready  ## try all architectures and write the tables of docs/training.md (minutes)
	QILIN_WRITE_TABLES=1 $(BIN)/python -m pytest -m long tests/train/test_guard.py

fuzz: .venv/ready  ## mutated inputs for every reader; seconds: ARGS="--seconds 1200 --seed 7"
	$(BIN)/python tests/fuzz/run.py $(ARGS)

lint: .venv/ready  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready  ## format the code and apply the fixes of ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and builds, not demo folders and runs
	rm -rf .venv .floor .stub-gpu build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

.floor/ready: tests/floor.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .floor
	{ grep -vE "^($$(sed -n 's/==.*//p' tests/floor.txt | paste -sd '|'))==" constraints.txt; cat tests/floor.txt; } \
	  > .floor/constraints.txt
	.floor/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c .floor/constraints.txt -e '.[dev,small]'
	@touch $@

# torch is installed first: otherwise a later package would fetch another build of it.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Qilin needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "make: choose another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "[1/3] create .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { \
	  echo "make: $(PYTHON) could not create .venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "[2/3] install torch (a large download; some minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	@echo "[3/3] install $$(grep -c '==' constraints.txt) packages and Qilin (a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Qilin is ready: .venv/bin/qilin --help"
