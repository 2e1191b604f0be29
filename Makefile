# What one does with this repository. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMO := retr-demo
FUZZ_SECONDS ?= 400

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all faults fuzz test-web bench audit lint clean

help: ## say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 16

install: $(READY) ## make .venv, with the command .venv/bin/retr

demo: $(READY) ## encode, index, search and measure CIFAR-10; ends with the tables
	$(BIN)/retr demo --out $(DEMO)

test: $(READY) ## run all tests that this machine can run, but for slow ones
	$(BIN)/python -m pytest

test-all: $(READY) ## run the slow ones too
	$(BIN)/python -m pytest -m ''

faults: $(READY) ## kill what writes at 100 random moments each, and at every step; half an hour
	RETR_FAULTS=100 $(BIN)/python -m pytest tests/faults

test-web: $(READY) ## the page of `retr serve` in a browser; wants chromium and chromedriver
	@command -v chromium chromedriver >/dev/null || { echo "no chromium here; apt install chromium chromium-driver"; exit 1; }
	$(BIN)/python -m pytest -n 0 tests/web

bench: $(READY) ## is anything slower than before, beside the bare libraries? Some minutes, alone
	$(BIN)/python -m benchmarks.speed.guard

lint: $(READY) ## ruff, mypy --strict, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(READY) ## give any bytes to what reads files and requests, for an hour; needs atheris
	$(BIN)/python -m pip install --quiet atheris
	cd tests/fuzz && for target in $$(../../$(BIN)/python -c 'import targets; print(*targets.TARGETS)'); do \
		../../$(BIN)/python run.py $$target $(FUZZ_SECONDS) || exit 1; done

audit: $(READY) ## are there known holes in what is installed? Asks PyPI
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable

clean: ## remove .venv and everything that was made
	rm -rf $(VENV) $(DEMO) .retr dist build

# Compiling all of torch would take longer than unpacking it: Python compiles what is imported.
# pip's --group reads [dependency-groups] since its version 25.1.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "retr needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --no-compile --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps 'milvus-lite>=3.2' # not its faiss-cpu
	touch $@
