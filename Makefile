# Everything a developer types. Each target installs what it needs first: Debian packages (Slurm
# included) when they are missing, then a virtual environment in .venv.
#
#   make demo       the five-minute story: two sites, a full queue, a job that overflows
#   make test       the default suite, on real Slurm
#   make test-all   the slow tests too; keeps a dated result file in tests/results/
#   make lint       ruff, mypy, shellcheck
#   make docs       regenerate what is generated, check every link
#   make bench      speed against its promises, side by side
#   make wheel-check  build the wheel, install it elsewhere, use it from /

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Slurm's daemons live in sbin, which an ordinary user's PATH may not hold
export PATH := $(PATH):/usr/sbin:/sbin

PYTHON ?= python3
TORCH ?= torch==2.13.0
# more than the cores: tests on real Slurm mostly wait
JOBS ?= 4
PYTEST_ARGS ?=
BIN := .venv/bin
PYTEST := HPCSCALE_STRICT_SLURM=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

.PHONY: help setup demo demo-output test test-all lint format docs bench wheel-check clean

help:
	@sed -n 's/^#   //p' Makefile

setup: .make/system .make/venv

.make/system: .ci/system-packages
	.ci/system-packages
	@mkdir -p $(@D) && touch $@

# pip first: dependency groups need pip 25.1, and Debian 12 ships 23.0
.make/venv: pyproject.toml .make/system
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --group dev --editable '.[demo]'
	$(BIN)/python -m compileall -q hpcscale
	@mkdir -p $(@D) && touch $@

demo: setup
	$(BIN)/python docs/demo/run_demo.py

# keeps the output: `make docs` takes it into the README
demo-output: setup
	$(BIN)/python docs/demo/run_demo.py --save
	$(MAKE) docs

test: setup
	$(PYTEST) -m 'not slow and not traces' $(PYTEST_ARGS)

test-all: setup
	.ci/test-all env $(PYTEST) $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run .ci/system-packages .ci/test-all .ci/wheel-check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/site_config.py
	$(BIN)/python docs/lint_rules.py
	$(BIN)/python docs/generate.py
	$(BIN)/pytest -q tests/unit/test_docs.py

bench: setup
	HPCSCALE_STRICT_SLURM=1 $(BIN)/python tests/benchmarks/run.py
	HPCSCALE_STRICT_SLURM=1 $(BIN)/python tests/benchmarks/ssh_submit.py

wheel-check: setup
	.ci/wheel-check

clean:
	rm -rf .make .venv build dist .mypy_cache .ruff_cache .pytest_cache
