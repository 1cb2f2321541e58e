# `make demo` and `make test` set up all they need in .venv, from Python and (for the native kernels) a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
# Any torch from 2.13 on will do; torchvision is needed by the tests of parity with it alone.
TORCH ?= torch==2.14.1 torchvision==0.29.1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
EMULATOR := $(shell find tests/emulator -path '*/_build' -prune -o \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) -print)

.PHONY: help demo test fuzz parity soak test-cuda test-ptx test-sanitized test-elastic bench bench-augment bench-cuda cuda-report lint format docs info clean

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

test-cuda: $(VENV)/.test  ## the ops' tests on this machine's GPU; needs CUDA_HOME
	FASTCL_BUILD=cuda PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --editable '.[run,test]'
	$(BIN)/python -m pytest -q -m cuda

FUZZ_TABLES ?= 1000000
fuzz: $(VENV)/.test  ## the augmentation kernels on a million random tables under sanitizers
	FASTCL_FUZZ_TABLES=$(FUZZ_TABLES) $(BIN)/python -m pytest -q -n auto tests/test_fuzz_augment.py

PARITY ?= 1000
parity: $(VENV)/.test  ## uint8 pixels beside torchvision's: a thousand random images of each op; a few minutes
	FASTCL_PARITY=$(PARITY) $(BIN)/python -m pytest -q -s tests/test_augment_parity.py

MINUTES ?= 60

soak: $(VENV)/.fastcl  ## an hour of training (MINUTES=60); fails where memory grows
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py --minutes $(MINUTES)

test-elastic: $(VENV)/.test  ## one of two processes of a run is killed ten times; a few minutes
	FASTCL_KILLS=10 $(BIN)/python -m pytest -q -s tests/test_run_distributed.py -k killed

bench: $(VENV)/.test  ## the benchmarks, beside the peers that are installed (pip install '.[peers]')
	$(BIN)/python -m pytest -q bench --benchmark-sort=fullname

bench-augment: $(VENV)/.test  ## augmentation beside its peers, as ratios; then epochs of SimCLR and of the digits run
	$(BIN)/python bench/bench_augment.py --plot docs/augment.svg
	$(BIN)/python bench/simclr_epoch.py
	$(BIN)/python bench/digits_epoch.py

CUDA_BENCHES := bench/bench_ntxent.py bench/bench_similarity_lse.py bench/bench_losses.py bench/bench_augment.py \
  bench/bench_int8_linear.py bench/bench_int8_conv2d.py

bench-cuda: $(VENV)/.test  ## the benchmarks on this machine's GPU; needs CUDA_HOME
	FASTCL_BUILD=cuda PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --editable '.[run,test]'
	FASTCL_BENCH_DEVICE=cuda $(BIN)/python -m pytest -q $(CUDA_BENCHES) --benchmark-sort=fullname

# A CUDA toolkit without root: what compiles, and what reads the result.
$(VENV)/.cuda: $(VENV)/.torch $(VENV)/.test
	$(PIP) --no-deps nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
	$(PIP) --no-deps nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37
	$(PIP) --no-deps --target .venvs/cutlass nvidia-cutlass==4.2.0.0
	@touch $@

cuda-report: $(VENV)/.cuda  ## compile the CUDA kernels for every architecture; what ptxas made of them, within limits
	$(BIN)/python tools/cuda_report.py

# The same cases with what nvcc emits in the kernels' place. The losses use no tensor cores of sm_75; the PTX of
# sm_90 is compiled anew only where it differs from that of sm_80. The augmentation has one code path.
test-ptx: $(VENV)/.cuda $(VENV)/.test  ## the CUDA kernels' tests with the PTX that nvcc emits, on the emulator
	FASTCL_EMULATOR_PTX=75:contrast $(BIN)/python -m pytest -q -n auto tests/test_contrast_cuda.py -k simt
	FASTCL_EMULATOR_PTX=80:contrast $(BIN)/python -m pytest -q -n auto tests/test_contrast_cuda.py -k 'not simt'
	FASTCL_EMULATOR_PTX=90:contrast $(BIN)/python -m pytest -q -n auto tests/test_contrast_cuda.py -k ntxent
	FASTCL_EMULATOR_PTX=80:augment $(BIN)/python -m pytest -q tests/test_augment_cuda.py
	FASTCL_EMULATOR_PTX=80:augment $(BIN)/python -m pytest -q tests/test_augment_draws.py -k 'emulated and bits'
	FASTCL_EMULATOR_PTX=75:int8_linear $(BIN)/python -m pytest -q -n auto tests/test_int8_cuda.py -k sm_75
	FASTCL_EMULATOR_PTX=80:int8_linear $(BIN)/python -m pytest -q -n auto tests/test_int8_cuda.py -k sm_80

# libstdc++ comes first as well: ASan replaces its throw, and Python alone would not have loaded it yet.
test-sanitized: $(VENV)/.test  ## every CUDA kernel on the emulator under TSan, and under ASan and UBSan
	pids=; failed=0; for sanitizer in thread:libtsan.so address:libasan.so; do \
	  FASTCL_EMULATOR_SANITIZER=$${sanitizer%:*} \
	    LD_PRELOAD="$$(g++ -print-file-name=$${sanitizer#*:}) $$(g++ -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0:exitcode=66 \
	    $(BIN)/python -m pytest -q -p no:cacheprovider tests/test_contrast_cuda.py tests/test_augment_cuda.py tests/test_int8_cuda.py \
	    -k 'same_bits or impossible' & pids="$$pids $$!"; \
	done; for pid in $$pids; do wait $$pid || failed=1; done; exit $$failed

lint: $(VENV)/.lint $(VENV)/.test  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(EMULATOR)
	$(BIN)/mypy

format: $(VENV)/.lint  ## put every file into shape
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC) $(EMULATOR)

docs: $(VENV)/.fastcl  ## the documentation, in site/
	$(PIP) 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.26'
	$(BIN)/mkdocs build --strict

info: $(VENV)/.fastcl  ## what is installed and which backend runs what
	$(BIN)/fastcl info

clean:  ## remove what was built, and .venv
	rm -rf $(VENV) build site fastcl/_C*.so *.egg-info
