# `make help` lists what there is. Nothing needs to be installed but Python 3.11 or later and make.

PYTHON ?=# the interpreter for .venv; empty: python3, or the newest found
VENV ?= .venv
PEERS ?= .peers
ARGS ?=# more arguments for the program or for pytest

BIN := $(VENV)/bin
RUN := $(VENV)/.run-installed
DEV := $(VENV)/.dev-installed
SDKS := openai-1 openai-2 openai-3
SDK_STAMPS := $(SDKS:%=$(PEERS)/%/.installed)
NODE := tests/peers/node
CLIENTS := tests/clients
LIBRARIES := agno haystack-ai langchain-community langchain-openai litellm llama-index-tools-openai-image-generation
PORTKEY := bench/peers/portkey
UV := .venvs/lock/bin/uv pip
UV_COMPILE = $(UV) compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS)

# Tests start the gateway some hundred times: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(RUN) ## Create .venv and install the gateway with its locked dependencies
	@echo "Installed: $(BIN)/gateway"

.PHONY: run
run: $(RUN) ## Start the gateway on 127.0.0.1:8080, with the simulator unless DASHSCOPE_API_KEY is set
	@exec $(BIN)/gateway demo $(ARGS)

# Not what is in .venv alone: the SDKs that tests call the gateway with are in .peers.
TESTS := PEERS=$(PEERS) $(BIN)/python scripts/run-tests
COV :=# --cov: add to the coverage data in .coverage

.PHONY: test
test: $(DEV) ## Run the whole test suite; with ARGS="-k limits" only a part
	@$(MAKE) --jobs=2 peers
ifeq ($(ARGS),)
	@$(TESTS) $(COV)
else
	@PEERS=$(PEERS) $(BIN)/python -m pytest $(ARGS)
endif

.PHONY: test-fast
test-fast: $(DEV) ## Run what is quick, between two edits: none that measures time, none with an SDK
	@$(TESTS) --fast

.PHONY: test-skipped
test-skipped: $(DEV) ## Run what `make test` skipped the last time, for want of a program
	@$(MAKE) --jobs=2 peers
	@$(TESTS) --skipped $(COV)

.PHONY: coverage
coverage: $(DEV) ## Run the whole test suite, and fail if it leaves too much of the code out
	@rm -f .coverage .coverage.*
	@$(MAKE) test COV=--cov
	@$(BIN)/python -m coverage report

.PHONY: test-all-pythons
test-all-pythons: ## Run the suite on each of Python 3.11, 3.12 and 3.13 that is found
	@scripts/test-all-pythons 3.11 3.12 3.13

.PHONY: lint
lint: $(DEV) ## Check format, lint and types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

.PHONY: format
format: $(DEV) ## Format the code and fix what ruff can fix by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: check
check: ## Format check, lint, types and tests; fails too if they changed a file
	@scripts/unchanged-by $(MAKE) lint coverage

.PHONY: lock
lock: .venvs/lock/.installed ## Write every lock file anew; ARGS=--upgrade takes the newest versions
	@$(UV_COMPILE) pyproject.toml --excludes requirements-left-out.txt --output-file requirements.lock
	@$(UV_COMPILE) --group pyproject.toml:build --constraint requirements.lock --output-file requirements-build.lock
	@$(UV_COMPILE) pyproject.toml --group build --group dev --constraint requirements.lock --constraint requirements-build.lock --output-file requirements-dev.lock
	@$(UV_COMPILE) --group pyproject.toml:picture --output-file requirements-picture.lock
	@$(UV_COMPILE) --group pyproject.toml:lock --output-file requirements-lock.lock
	@echo "litellm[proxy]==1.108.7" | $(UV_COMPILE) - --no-annotate --output-file bench/peers/litellm.lock
	@for major in 1 2 3; do \
	    echo "openai~=$$major.0" | $(UV_COMPILE) - --no-annotate --output-file tests/peers/openai-$$major.lock; \
	done
	@printf '%s\n' $(LIBRARIES) | $(UV_COMPILE) - --no-annotate --output-file $(CLIENTS)/libraries.lock
	@echo semantic-kernel | $(UV_COMPILE) - --no-annotate --output-file $(CLIENTS)/semantic-kernel.lock
	@if command -v npm >/dev/null; then for folder in $(NODE) $(PORTKEY) $(CLIENTS)/node; do \
	    (cd $$folder && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund --silent); \
	done; else echo "npm was not found: the package-lock.json files stay as they are"; fi

.PHONY: clean
clean: ## Remove every environment, build and cache
	rm -rf .venv .venvs .peers .test-results $(NODE)/node_modules $(CLIENTS)/node/node_modules build dist htmlcov .coverage .coverage.* \
	    .hypothesis .schemathesis .mypy_cache .pytest_cache .ruff_cache
	find gateway tests -name __pycache__ -prune -exec rm -rf {} +

# Environments. A stamp inside each is older than its lock file when the lock has changed.

$(BIN)/python:
	@scripts/make-venv $(VENV) $(PYTHON)
	@scripts/install-locked $(VENV)  # nothing but the installer, which several then share

$(RUN): requirements.lock requirements-build.lock requirements-left-out.txt pyproject.toml | $(BIN)/python
	@echo "Installing the locked dependencies into $(VENV)"
	@scripts/install-locked $(VENV) requirements.lock requirements-build.lock -- --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.lock $(RUN)
	@echo "Installing the locked development tools into $(VENV)"
	@scripts/install-locked $(VENV) requirements-dev.lock
	@touch $@

.venvs/lock/.installed: requirements-lock.lock
	@scripts/make-venv .venvs/lock $(PYTHON)
	@scripts/install-locked .venvs/lock requirements-lock.lock
	@touch $@

.venvs/picture/.installed: requirements-picture.lock
	@scripts/make-venv .venvs/picture $(PYTHON)
	@scripts/install-locked .venvs/picture $<
	@touch $@

# The SDKs the tests call the gateway with, each in an environment of its own.

.PHONY: peers
peers: $(SDK_STAMPS) $(NODE)/node_modules/.installed ## Install the SDKs that the tests call the gateway with

$(PEERS)/%/.installed: tests/peers/%.lock | $(BIN)/python
	@echo "Installing the $* SDK into $(@D)"
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@scripts/install-locked $(@D) $<
	@touch $@

%/node_modules/.installed: %/package-lock.json %/package.json
	@if node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null; then \
	    echo "Installing Node's packages into $(@D)"; \
	    cd $* && npm ci --ignore-scripts --no-audit --no-fund --silent && touch node_modules/.installed; \
	else echo "No node >= 20 with npm was found: the tests of Node's packages will be skipped"; fi

# Libraries on top of the SDKs: 900 MB, so only on request, and by uv, which takes half a minute.

.PHONY: clients
clients: $(PEERS)/libraries/.installed $(PEERS)/semantic-kernel/.installed $(CLIENTS)/node/node_modules/.installed ## Install the libraries whose tests `make test` skips without them

$(PEERS)/%/.installed: $(CLIENTS)/%.lock | $(BIN)/python .venvs/lock/.installed
	@echo "Installing $* into $(@D)"
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(UV) install --quiet --no-cache --no-deps --require-hashes --python $(@D)/bin/python --requirement $<
	@$(UV) check --quiet --python $(@D)/bin/python
	@touch $@

.PHONY: tables
tables: $(DEV) ## Write the documents' tables anew from the code
	@$(BIN)/python scripts/write-tables

.PHONY: bench
bench: $(DEV) ## Measure the rate beside the floor of the stack; fails where it has dropped
	@$(BIN)/python bench/compare/run.py $(ARGS)

.PHONY: bench-full
bench-full: $(DEV) .venvs/picture/.installed ## Measure all of docs/performance.md anew, beside other gateways
	@$(BIN)/python bench/compare/run.py --full $(ARGS)

.PHONY: picture
picture: $(DEV) .venvs/picture/.installed ## Draw docs/dashboard.png anew: the dashboard over three minutes of load
	@$(BIN)/python bench/dashboard_run.py | .venvs/picture/bin/python bench/dashboard_picture.py docs/dashboard.png
