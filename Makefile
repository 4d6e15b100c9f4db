# Two commands are all a newcomer needs: `make serve` and `make test`. `make` alone lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# `command -v` is not enough: a version manager may leave shims that do not run.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
	$(p) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

# What an installation is made of: when none of it has changed, nothing is installed again.
SOURCES := pyproject.toml constraints.txt $(wildcard dijiang_runtime/ops/cpu/*.cpp)
RUNTIME_READY := $(VENV)/.installed-runtime
TEST_READY := $(VENV)/.installed-test
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: serve
serve: $(RUNTIME_READY) ## Serve on http://127.0.0.1:8000. HOST= PORT= MODEL= ARGS= change it
	@$(BIN)/dijiang serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

.PHONY: test
test: lint $(TEST_READY) ## Lint, check types and run the tests
	$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: $(TEST_READY) ## Run ruff and mypy, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: format
format: $(TEST_READY) ## Format the code and apply ruff's safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: bench
bench: $(RUNTIME_READY) ## Measure decode by batch and position, and prefill. ARGS= passes options
	@$(BIN)/dijiang bench $(ARGS)

.PHONY: simulate
simulate: $(TEST_READY) ## Simulate a million requests with faults, checking every step. ARGS= passes options
	$(BIN)/python -m tests.simulation $(ARGS)

.PHONY: install
install: $(TEST_READY) ## Install everything, for work in an editor

.PHONY: clean
clean: ## Remove the environment, the caches and the build outputs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo >&2 "Python 3.11 or newer with venv was not found" \
		"(on Debian: apt-get install python3 python3-venv)."; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(RUNTIME_READY): $(SOURCES) | $(BIN)/python
	@echo "Installing dijiang-serving (a few minutes the first time)"
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

$(TEST_READY): $(SOURCES) | $(BIN)/python
	@echo "Installing dijiang-serving with all that its tests need (a few minutes the first time)"
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation -e '.[test]'
	@touch $(RUNTIME_READY) $@
