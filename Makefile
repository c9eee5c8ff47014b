# Every target does its own set-up in .venv; a fresh machine needs Python 3.11, make and pip.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where real data lies for benchmarks; never needed by `make test`.
DATA ?= data

.PHONY: help install demo test test-lowest test-readers test-triton sanitize check format bench release clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed $(VENV)/.kernels ## Set up .venv with everything that demo and test need

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The compiled kernels of native/, where there is a C++ compiler. Without them everything works by plain torch.
NATIVE := $(wildcard native/pyproject.toml native/CMakeLists.txt native/lorakit_kernels/*.py native/src/*)
$(VENV)/.kernels: $(VENV)/.installed $(NATIVE)
	@if ! command -v $(CXX) >/dev/null; then \
	    echo "no C++ compiler ($(CXX)): lorakit computes by plain torch"; \
	elif ! $(BIN)/python -m pip install --quiet --disable-pip-version-check ./native; then \
	    echo "the compiled kernels could not be built: lorakit computes by plain torch"; \
	fi
	@touch $@

demo: install ## Train on a small task with the built-in model and show what happened
	$(BIN)/lorakit demo

# Tests compute in one thread each: two at once, a file to a worker, which shares its models.
TWO := -n 2 --dist loadfile

test: install ## Run the tests, and the examples in docstrings
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m 'not readers' $(TWO)
	$(BIN)/python -m pytest --doctest-modules --doctest-ignore-import-errors src

LOWEST := .venv-lowest

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	touch $@

test-lowest: $(LOWEST)/.installed ## Run the tests at the lowest versions of pyproject.toml
	OMP_WAIT_POLICY=passive $(LOWEST)/bin/python -m pytest -m 'not readers' $(TWO)

test-readers: test-triton ## Run the tests that read whole models in other runtimes, and those of the GPU's kernels
	$(BIN)/python -m pytest -m readers

# Tests of the compiled kernels, under AddressSanitizer and UndefinedBehaviorSanitizer. Python itself is not
# compiled with them, so that the runtime is loaded before it; what Python never frees is no leak of ours.
SANITIZED := build/sanitize
sanitize: $(VENV)/.installed ## Run the tests of the compiled kernels under AddressSanitizer
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/lorakit_kernels
	cmake -S native -B $(SANITIZED)/build -DLK_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	cmake --build $(SANITIZED)/build
	cp native/lorakit_kernels/__init__.py $(SANITIZED)/build/liblorakit_kernels.so $(SANITIZED)/lorakit_kernels/
	PYTHONPATH=$(SANITIZED) LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -p no:cacheprovider $(SANITIZE_TESTS)
SANITIZE_TESTS := $(wildcard tests/kernels/test_native_*.py)

$(VENV)/.installed-gpu: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gpu]'
	touch $@

# A process of its own: Triton decides when it is imported whether it interprets.
test-triton: install $(VENV)/.installed-gpu ## Run the Triton kernels in Triton's interpreter, and compile them for GPUs
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels/test_triton.py
	LORAKIT_TEST_TRITON=compile $(BIN)/python -m pytest tests/kernels/test_triton_compiles.py

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
