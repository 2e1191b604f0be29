# Tasks of this repository. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(VENV)/.pip
READY := $(VENV)/.installed
READY_DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
DEMO := retr-demo
FUZZ_SECONDS ?= 400
# Many processes import torch. Where the environment forbids bytecode, each would compile it for seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo install-dev test test-fast test-all faults fuzz test-web bench audit lint clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

install: $(READY) ## install what a user needs into .venv; the command is .venv/bin/retr

demo: $(READY) ## encode, index, search and measure CIFAR-10; prints the tables
	$(BIN)/retr demo --out $(DEMO)

install-dev: $(READY_DEV) ## install what the tests and the linters need, too

test: $(READY_DEV) ## run all tests but the slow ones
	$(BIN)/python -m pytest

test-fast: $(READY_DEV) ## run the tests of one module: make test-fast MODULE=retrieval/hits.py
	files=$$($(BIN)/python tests/selection.py $(MODULE)) && $(BIN)/python -m pytest --seconds 15 $$files

test-all: $(READY_DEV) ## run all tests, and install a wheel into an empty environment
	RETR_EXAMPLES=all $(BIN)/python -m pytest -m ''

faults: $(READY_DEV) ## kill each writing run at 100 random moments and at every step; half an hour
	RETR_FAULTS=100 $(BIN)/python -m pytest tests/faults

test-web: $(READY_DEV) ## test the page of `retr serve` in a browser; needs chromium and chromedriver
	@command -v chromium chromedriver >/dev/null || { echo "chromium not found; run apt install chromium chromium-driver"; exit 1; }
	$(BIN)/python -m pytest -n 0 tests/web

bench: $(READY_DEV) ## compare speed with the bare libraries and with the last release; some minutes
	$(BIN)/python -m benchmarks.speed.guard

lint: $(READY_DEV) ## run ruff, mypy --strict and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(READY_DEV) ## send random bytes to all readers and to the service for an hour; installs atheris
	$(INSTALL) atheris
	cd tests/fuzz && for target in $$(../../$(BIN)/python -c 'import targets; print(*targets.TARGETS)'); do \
		../../$(BIN)/python run.py $$target $(FUZZ_SECONDS) || exit 1; done

audit: $(READY_DEV) ## look up known vulnerabilities of the installed packages; installs pip-audit
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --local --skip-editable

clean: ## remove .venv and all results
	rm -rf $(VENV) $(DEMO) .retr dist build

# pip reads [dependency-groups] (--group) since its version 25.1.
$(PIP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "retr needs Python 3.11 or newer; run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

# --no-compile: compiling all of torch takes longer than unpacking it. Python compiles what is imported.
$(READY): pyproject.toml | $(PIP)
	$(INSTALL) --editable .
	touch $@

# Milvus Lite depends on faiss-cpu, which would overwrite faiss-gpu.
$(READY_DEV): pyproject.toml | $(PIP)
	$(INSTALL) --editable . --group dev
	$(INSTALL) --no-deps 'milvus-lite>=3.2'
	touch $(READY) $@
