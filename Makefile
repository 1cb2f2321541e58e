# `make demo` and `make test` set up all they need in .venv, from Python and (for the native kernels) a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
# Any torch from 2.13 on will do; torchvision is needed by the tests of parity with it alone.
TORCH ?= torch==2.14.1 torchvision==0.29.1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test fuzz bench bench-augment lint format docs info clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) 'setuptools>=77' wheel ninja
	@touch $@

# The package, editable, with its native kernels; again whenever their sources change.
$(VENV)/.fastcl: $(VENV)/.torch pyproject.toml setup.py $(CSRC)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --editable '.[run]'
	@$(BIN)/fastcl info
	@touch $@

$(VENV)/.test: $(VENV)/.fastcl
	$(PIP) --no-build-isolation --editable '.[run,compress,export,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.torch pyproject.toml
	$(PIP) clang-format==23.1.5 mypy==2.4.1 ruff==0.17.6
	@touch $@

demo: $(VENV)/.fastcl  ## learn handwritten digits without labels, shrink the encoder, write runs/demo/report.html
	$(BIN)/fastcl run --data digits --out runs/demo --overwrite

test: $(VENV)/.test  ## all tests, a process for each core
	$(BIN)/python -m pytest -q -n auto --dist loadfile

fuzz: $(VENV)/.test  ## the augmentation kernels on a million random tables under sanitizers
	FASTCL_FUZZ_TABLES=1000000 $(BIN)/python -m pytest -q -s tests/test_fuzz_augment.py

bench: $(VENV)/.test  ## the benchmarks, beside the peers that are installed (pip install '.[peers]')
	$(BIN)/python -m pytest -q bench --benchmark-sort=fullname

bench-augment: $(VENV)/.test  ## augmentation beside its peers, as ratios; then an epoch of SimCLR beside lightly's
	$(BIN)/python bench/bench_augment.py --plot docs/augment.svg
	$(BIN)/python bench/simclr_epoch.py

lint: $(VENV)/.lint $(VENV)/.test  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/mypy

format: $(VENV)/.lint  ## put every file into shape
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

docs: $(VENV)/.fastcl  ## the documentation, in site/
	$(PIP) 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.26'
	$(BIN)/mkdocs build --strict

info: $(VENV)/.fastcl  ## what is installed and which backend runs what
	$(BIN)/fastcl info

clean:  ## remove what was built, and .venv
	rm -rf $(VENV) build site fastcl/_C*.so *.egg-info
