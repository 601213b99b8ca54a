# The words people and CI use. `make demo` and `make test` are all a newcomer needs.
#   make demo ARGS="--out DIR --quick"     options for `qilin demo`
#   make test PYTHON=python3.12            another Python for .venv (3.11 or newer)
#   make test AT_ONCE="-n 0"               fast tests one after the other; otherwise on up to four cores
#   make .venv/ready PIP_ARGS="--find-links DIR"   options for pip, such as a folder of wheels

PYTHON ?= python3
BIN := .venv/bin
AT_ONCE := -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/ready  ## the whole story on this machine; options: ARGS="--out DIR --quick"
	$(BIN)/qilin demo $(ARGS)

test: .venv/ready  ## fast tests, then the story
	$(BIN)/python -m pytest $(AT_ONCE) -m "not story and not long and not gpu"
	$(BIN)/python -m pytest -m "story and not long and not gpu"

test-all: test  ## the long ones too
	$(BIN)/python -m pytest -m "long and not gpu"

lint: .venv/ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready  ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and builds; demo folders and runs stay
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes in first: a later package must find it there, not fetch a build of its own choice.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Qilin needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "make: name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "[1/3] .venv: a Python environment of its own, with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { \
	  echo "make: $(PYTHON) could not make .venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "[2/3] torch (the large one; minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	@echo "[3/3] the other $$(grep -c '==' constraints.txt) packages and Qilin itself (a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Qilin is ready: .venv/bin/qilin --help"
