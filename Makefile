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
PIP_INSTALL := install --quiet --disable-pip-version-check --no-input
UV_VERSION := 0.13.9
UV_COMPILE = .venvs/lock/bin/uv pip compile --quiet --no-strip-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS)

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

# Those that load a machine by themselves, or time what a loaded one is late for: one after the other.
ALONE := tests/operations tests/observability/test_prometheus.py tests/paying/test_delivery_memory.py \
    $(addprefix tests/reliability/test_,failover.py fair_pacing.py redis_loss.py resharding.py)
# The others in four processes, for most of their time is spent waiting.
PYTEST := PEERS=$(PEERS) $(BIN)/python -m pytest
# What failed is run once more, alone: a busy machine is late for some that measure time.
AGAIN := --last-failed --last-failed-no-failures none
COV :=# --cov, for what is run first
COV_MORE :=# and for what adds to it

.PHONY: test
test: $(DEV) peers ## Run the whole test suite; with ARGS="-k limits" only a part
ifeq ($(ARGS),)
	@$(PYTEST) --numprocesses 4 --dist loadfile $(COV) $(ALONE:%=--ignore=%) \
	    || $(PYTEST) $(AGAIN) $(COV_MORE) --cov-report= --cov-fail-under=0 $(ALONE:%=--ignore=%)
	@$(PYTEST) $(COV_MORE) $(ALONE) || $(PYTEST) $(AGAIN) $(COV_MORE) $(ALONE)
else
	@$(PYTEST) $(ARGS)
endif

.PHONY: coverage
coverage: ## Run the whole test suite, and fail if it leaves too much of the code out
	@$(MAKE) test COV="--cov --cov-report= --cov-fail-under=0" COV_MORE="--cov --cov-append"

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
	@$(UV_COMPILE) pyproject.toml --group build --output-file requirements.lock
	@$(UV_COMPILE) pyproject.toml --group build --group dev --constraint requirements.lock --output-file requirements-dev.lock
	@$(UV_COMPILE) --group pyproject.toml:picture --output-file requirements-picture.lock
	@for major in 1 2 3; do \
	    echo "openai~=$$major.0" | $(UV_COMPILE) - --no-annotate --output-file tests/peers/openai-$$major.lock; \
	done
	@if command -v npm >/dev/null; then \
	    cd $(NODE) && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund --silent; \
	else echo "npm was not found: $(NODE)/package-lock.json stays as it is"; fi

.PHONY: clean
clean: ## Remove every environment, build and cache
	rm -rf .venv .venvs .peers $(NODE)/node_modules build dist htmlcov .coverage .coverage.* \
	    .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find gateway tests -name __pycache__ -prune -exec rm -rf {} +

# Environments. A stamp inside each is older than its lock file when the lock has changed.

$(BIN)/python:
	@scripts/make-venv $(VENV) $(PYTHON)

$(RUN): requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked dependencies into $(VENV)"
	@$(BIN)/python -m pip $(PIP_INSTALL) --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.lock $(RUN)
	@echo "Installing the locked development tools into $(VENV)"
	@$(BIN)/python -m pip $(PIP_INSTALL) --require-hashes --requirement requirements-dev.lock
	@touch $@

.venvs/lock/.installed: Makefile
	@scripts/make-venv .venvs/lock $(PYTHON)
	@.venvs/lock/bin/python -m pip $(PIP_INSTALL) uv==$(UV_VERSION)
	@touch $@

.venvs/picture/.installed: requirements-picture.lock
	@scripts/make-venv .venvs/picture $(PYTHON)
	@.venvs/picture/bin/python -m pip $(PIP_INSTALL) --require-hashes --requirement $<
	@touch $@

# The SDKs the tests call the gateway with, each in an environment of its own.

.PHONY: peers
peers: $(SDK_STAMPS) $(NODE)/node_modules/.installed ## Install the SDKs that the tests call the gateway with

$(PEERS)/%/.installed: tests/peers/%.lock | $(BIN)/python
	@echo "Installing the $* SDK into $(@D)"
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --python $(@D)/bin/python $(PIP_INSTALL) --require-hashes --requirement $<
	@touch $@

$(NODE)/node_modules/.installed: $(NODE)/package-lock.json $(NODE)/package.json
	@if node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null; then \
	    echo "Installing the Node SDK into $(NODE)/node_modules"; \
	    cd $(NODE) && npm ci --ignore-scripts --no-audit --no-fund --silent && touch node_modules/.installed; \
	else echo "No node >= 20 with npm was found: the tests of the Node SDK will be skipped"; fi

.PHONY: tables
tables: $(DEV) ## Write the documents' tables anew from the code
	@$(BIN)/python scripts/write-tables

.PHONY: picture
picture: $(DEV) .venvs/picture/.installed ## Draw docs/dashboard.png anew: the dashboard over three minutes of load
	@$(BIN)/python bench/dashboard_run.py | .venvs/picture/bin/python bench/dashboard_picture.py docs/dashboard.png
