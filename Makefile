# rhoc: every target creates .venv first if it is absent. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Tensors here are small: one thread per process is fastest. Large-tensor benches want glibc to keep its pages.
ONE_THREAD := OMP_NUM_THREADS=1
KEEP_PAGES := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=1073741824

.PHONY: coverage bench-passes bench-digits bench-training gaussian-errors venv demo test test-slow lint bench test-gpu bench-gpu gpu-site clean help
.DEFAULT_GOAL := help

venv: $(READY)  ## create .venv with everything pinned

$(READY): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## the main job on this machine: compile, sweep, fit, predict, check, report (about five minutes)
	$(BIN)/rhoc demo

test: $(READY)  ## lint, types and the default tests
	@$(MAKE) --no-print-directory lint
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(READY)  ## the tests that take minutes
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/namespace.py >/dev/null
	$(BIN)/mypy -p rhoc

gaussian-errors: $(READY)  ## Gaussian errors of shipped formats that are missing or stale, computed anew
	$(ONE_THREAD) $(BIN)/python -m rhoc.compiler.gaussian_errors

coverage: $(READY)  ## capture of 154 models, 123 architectures of transformers among them (ten minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt 'transformers>=5'
	$(ONE_THREAD) $(BIN)/python tests/bench/coverage.py --processes 2

bench-passes: $(READY)  ## what passes are worth on a trained model (ten minutes)
	$(ONE_THREAD) $(BIN)/python tests/bench/passes.py

bench-training: $(READY)  ## training steps at width 512 against dense and peers, and bytes kept (fifteen minutes)
	$(ONE_THREAD) $(KEEP_PAGES) $(BIN)/python tests/bench/training.py

bench-digits: $(READY)  ## digits by an MLP and a CNN in compressed formats (three minutes of one processor)
	$(ONE_THREAD) $(BIN)/python tests/bench/digits.py

bench: $(READY)  ## ratios on this CPU, written to tests/bench/results
	$(ONE_THREAD) $(KEEP_PAGES) $(BIN)/python tests/bench/run.py

# A CUDA machine brings its own torch, so these two use whatever `python3` has. LIMIT=540 ends them after so many
# seconds with what was found by then; the bench goes on from there. Tests start in all files at once; a process
# that CUDA has failed in is replaced. What warns there are libraries of any version, so warnings are only shown.
test-gpu:  ## tests that need a CUDA device, with the machine's own torch
	./.ci/gpu $(if $(LIMIT),timeout --signal=INT $(LIMIT)) $(PYTHON) -m pytest -m gpu -W default --tb short \
		--numprocesses auto --dist worksteal --max-worker-restart 100 $$(grep -l 'pytest.mark.gpu' tests/test_*.py)

bench-gpu:  ## kernels on this GPU, written to tests/bench/results after every row; ONLY=int4 for some of them
	./.ci/gpu $(PYTHON) tests/bench/gpu.py $(if $(LIMIT),--limit-seconds $(LIMIT)) $(if $(ONLY),--only '$(ONLY)')

SITE ?= pydantic
SITE_PYTHON ?= 3.12
gpu-site:  ## packages that a CUDA machine without network lacks, into build/gpu-site (SITE, SITE_PYTHON)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --upgrade \
		--target build/gpu-site --only-binary=:all: --python-version $(SITE_PYTHON) \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 $(SITE)

clean:  ## remove .venv and everything generated
	rm -rf $(VENV) build rhoc.egg-info

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18
