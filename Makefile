# Every target makes .venv by itself when it is missing or out of date. Works with GNU make 3.81 and later.
#   make run        train the main job on bundled data
#   make test       the quick tests            make test-all   the slow ones as well
#   make check      all that a change must pass
#   make bench      side by side with peers     make docs       the catalogue and its figures, from the code
#   make device     what a machine with a GPU has to show; DNNKIT_PYTHON=python3 uses that interpreter, and its torch, in place of .venv
#   make rules      what the linter's rules are worth, measured on real images
# PYTHON=python3.12 chooses the interpreter for a new .venv; DNNKIT_DATA is the folder with data sets, if there is one.

PYTHON ?= python3
PYTEST_WORKERS ?= 2

PY := .venv/bin/python
# The folder is part of the name: the .venv of a checkout that was moved or copied still points to the old place.
STAMP := .venv/.ready-$(shell pwd | cksum | cut -d ' ' -f 1)
PEERS := .venv/.bench-ready
# A file at a time to a worker: what its tests share is made once. In the order of tests/conftest.py.
PYTEST := $(PY) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder
# pytest ends with 5 when nothing was selected.
NONE_IS_FINE := || test $$? -eq 5

.PHONY: help run test test-slow test-all check bench device rules docs clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dnnkit needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo 'Making .venv: a few minutes the first time.'
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f .venv/.ready-*
	@touch $@

# What the benchmarks, and their slow tests, measure dnnkit beside.
$(PEERS): $(STAMP)
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

run: $(STAMP)
	$(PY) -m dnnkit

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(PEERS)
	$(PYTEST) -m slow $(NONE_IS_FINE)

test-all: test
	$(MAKE) test-slow

check: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m mypy --strict dnnkit
	$(PYTEST) -m "not slow"
	$(PY) -m pytest tests/test_packaging.py -m slow

bench: $(PEERS)
	$(PY) -m benchmarks --write

device: $(if $(DNNKIT_PYTHON),,$(STAMP))
	$(or $(DNNKIT_PYTHON),$(PY)) -m benchmarks.device

rules: $(STAMP)
	$(PY) -m benchmarks.rules --write

docs: $(STAMP)
	$(PY) -m docs.generate

# Runs and their records are results, not build products: they stay.
clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
