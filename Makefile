# Every target does its own set-up in .venv; a fresh machine needs Python 3.11, make and pip.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where real data lies for benchmarks; never needed by `make test`.
DATA ?= data

.PHONY: help install demo test test-lowest test-readers check format bench release clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## Set up .venv with everything that demo and test need

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install ## Train on a small task with the built-in model and show what happened
	$(BIN)/lorakit demo

# Tests compute in one thread each: two at once, a file to a worker, which shares its models.
TWO := -n 2 --dist loadfile

test: install ## Run the tests, and the examples in docstrings
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m 'not readers' $(TWO)
	$(BIN)/python -m pytest --doctest-modules src

LOWEST := .venv-lowest

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	touch $@

test-lowest: $(LOWEST)/.installed ## Run the tests at the lowest versions of pyproject.toml
	OMP_WAIT_POLICY=passive $(LOWEST)/bin/python -m pytest -m 'not readers' $(TWO)

test-readers: install ## Run the tests that read whole models in other runtimes
	$(BIN)/python -m pytest -m readers

check: install ## Format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

# BENCH takes more flags, such as BENCH='--rounds 1 --out speed.jsonl'.
bench: $(VENV)/.installed-bench ## Training speed beside peft and TRL: make bench DATA=folder
	$(BIN)/python benchmarks/train_speed.py --data $(DATA) $(BENCH)

# Apart from .venv, so that the bytes of a release depend on requirements-release.txt alone.
RELEASE := build/release-venv
$(RELEASE)/.installed: requirements-release.txt
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-release.txt
	touch $@

release: $(RELEASE)/.installed ## Build sdist and wheel twice, compare and check them; uploads nothing
	.ci/release $(RELEASE)/bin/python

clean: ## Remove the environment and caches
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
