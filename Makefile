# Two commands are all a newcomer needs: `make serve` and `make test`. `make` alone lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
ARGS ?=
# Processes that share the tests, file by file: 0 runs them in one, as a debugger needs it.
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin

# `command -v` is not enough: a version manager may leave shims that do not run.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
	$(p) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

DOCKER ?= docker
IMAGE ?= dijiang-serving:0.1.0
TORCH_INDEX_URL ?=

# The chart's tests have an environment of their own: Helm's engine, schemas, linters.
CHART := deploy/helm/dijiang
CHART_VENV := deploy/.venv
CHART_BIN := $(CHART_VENV)/bin
CHART_READY := $(CHART_VENV)/.installed

# Ray is large, and an option.
RAY_VENV := deploy/.ray-venv
RAY_BIN := $(RAY_VENV)/bin
RAY_READY := $(RAY_VENV)/.installed

# Locks, audits and bills of material are made by tools that nothing else needs.
SUPPLY_VENV := deploy/.supply-venv
SUPPLY_BIN := $(SUPPLY_VENV)/bin
SUPPLY_READY := $(SUPPLY_VENV)/.installed
LOCK = $(SUPPLY_BIN)/uv pip compile --quiet --no-config --no-header --no-annotate --generate-hashes \
	--upgrade --no-emit-find-links --python-version 3.11 --python-platform x86_64-manylinux_2_28

# Other people's clients and schemathesis need much that nothing else does.
CLIENTS := tests/clients_matrix
CLIENTS_VENV := deploy/.clients-venv
CLIENTS_READY := $(CLIENTS_VENV)/.installed
SCHEMATHESIS := tests/schemathesis
SCHEMATHESIS_VENV := deploy/.schemathesis-venv
SCHEMATHESIS_READY := $(SCHEMATHESIS_VENV)/.installed
DURATION ?= 600

# What an installation is made of: when none of it has changed, nothing is installed again.
SOURCES := pyproject.toml constraints.txt $(foreach x,cpp h inl,$(wildcard dijiang_runtime/ops/cpu/*.$(x)))
RUNTIME_READY := $(VENV)/.installed-runtime
TEST_READY := $(VENV)/.installed-test
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

.PHONY: serve
serve: $(RUNTIME_READY) ## Serve on http://127.0.0.1:8000. HOST= PORT= MODEL= ARGS= change it
	@$(BIN)/dijiang serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

.PHONY: test
test: lint $(TEST_READY) ## Lint, check types and run the tests. TEST_WORKERS= processes
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(ARGS)

.PHONY: test-workers
test-workers: $(TEST_READY) ## Run what goes over HTTP against servers with three API workers
	DIJIANG_API_WORKERS=3 $(BIN)/python -m pytest tests/e2e tests/security -m "slow or not slow" $(ARGS)

# What runs on a GPU where there is one, and in Triton's interpreter elsewhere, and what needs one.
GPU_TESTS := tests/gpu tests/ops/triton tests/models/test_fused.py tests/models/test_fused_compiles.py

.PHONY: test-gpu
test-gpu: $(TEST_READY) ## Run what concerns GPUs, on the one that is there
	$(BIN)/python -m pytest $(GPU_TESTS) -m "gpu or not gpu" --timeout 600 $(ARGS)

# Only the system's own package manager is asked for a browser, and only where it is Debian's.
SUDO = $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: test-browser
test-browser: $(TEST_READY) ## Drive the playground in Chromium. Installs it where there is apt-get
	@command -v chromium >/dev/null || ! command -v apt-get >/dev/null || { \
		$(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends chromium; }
	@$(INSTALL) --no-build-isolation -e '.[browser]'
	$(BIN)/python -m pytest tests/playground -m browser $(ARGS)

.PHONY: test-langchain
test-langchain: $(TEST_READY) ## Run the pages' examples, LangChain's too, which it installs
	@$(INSTALL) --no-build-isolation -e '.[langchain]'
	$(BIN)/python -m pytest tests/clients/test_examples.py $(ARGS)

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

# The plugin warns where there is nothing to compare with, or only another machine's results.
BENCHMARK_OPTIONS := --benchmark-autosave --benchmark-columns=min,median,iqr,rounds \
	--benchmark-sort=name -W default::pytest_benchmark.logger.PytestBenchmarkWarning

.PHONY: benchmark
benchmark: $(TEST_READY) ## Run the small benchmark set; compare with ARGS='--benchmark-compare'
	$(BIN)/python -m pytest tests/bench/test_benchmarks.py -m benchmark $(BENCHMARK_OPTIONS) $(ARGS)

.PHONY: simulate
simulate: $(TEST_READY) ## Simulate a million requests with faults, checking every step. ARGS= passes options
	$(BIN)/python -m tests.simulation $(ARGS)

# Long runs against the real engine and server; docs/reliability.md has their results.
CAMPAIGNS := kill-loop worker-loop poison neighbours streams drain-loop soak capacity

.PHONY: $(CAMPAIGNS)
kill-loop: ## Kill the engine a thousand times under load. ARGS= passes options, as to all campaigns
worker-loop: ## Kill API workers three hundred times under load
poison: ## Break ten thousand rows of the model's batches, and compare their neighbours
neighbours: ## Compare a hundred thousand answers among random neighbours with those alone
streams: ## Hold ten thousand streams open, and measure their memory and the probes
drain-loop: ## Restart the server a hundred times under load
soak: ## A million requests, some left, some at fault: nothing may grow
capacity: ## Check the capacity model of docs/scaling.md against the load tester
$(CAMPAIGNS): $(TEST_READY)
	$(BIN)/python -m tests.campaigns.$(subst -,_,$@) $(ARGS)

.PHONY: fuzz
fuzz: $(TEST_READY) ## Send a hundred thousand malformed requests to a real server. ARGS= passes options
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: fuzz-guided
fuzz-guided: $(TEST_READY) ## Fuzz four parsers for DURATION= seconds each, guided by coverage. Linux only
	@$(INSTALL) --no-build-isolation -e '.[fuzz]'
	for target in bodies model-files detokenisation stop-strings; do \
		$(BIN)/python -m tests.fuzz.guided $$target --seconds $(DURATION) || exit 1; done

# What the demo model is made from is no part of this repository: see docs/demo-model.md.
STORIES ?=
HELDOUT ?=
SAMPLED ?=
DEMO_RUN := runs/demo
DEMO_DATA = $(foreach file,$(STORIES) $(SAMPLED),--data $(file)) --heldout $(HELDOUT)

.PHONY: demo-model
demo-model: $(TEST_READY) ## Train the demo model again. STORIES= HELDOUT= SAMPLED= name texts
	@test -n "$(STORIES)" && test -n "$(HELDOUT)" || { echo >&2 "STORIES= and HELDOUT= must name" \
		"text files; see docs/demo-model.md."; exit 1; }
	$(BIN)/dijiang tokenizer --data $(STORIES) --out $(DEMO_RUN)/tokenizer --vocab-size 2048
	test -f $(DEMO_RUN)/parent/model.safetensors || $(BIN)/dijiang train $(DEMO_RUN)/tokenizer \
		--config dijiang_runtime/demo/parent.json $(DEMO_DATA) --out $(DEMO_RUN)/parent \
		--tokens 18800000 --batch-size 16 --lr 2e-3 --bfloat16
	$(BIN)/dijiang convert $(DEMO_RUN)/parent $(DEMO_RUN)/converted --overwrite
	test -f $(DEMO_RUN)/trained/model.safetensors || \
		$(BIN)/dijiang train $(DEMO_RUN)/converted --teacher $(DEMO_RUN)/parent $(DEMO_DATA) \
		--out $(DEMO_RUN)/trained --tokens 4700000 --batch-size 4 --align-fraction 0.175 \
		--align-lr 5e-3 --lr 2e-3 --bfloat16 --dtype float16
	$(BIN)/dijiang eval $(DEMO_RUN)/parent --data $(HELDOUT)
	$(BIN)/dijiang eval $(DEMO_RUN)/trained --data $(HELDOUT)

.PHONY: chart-test
chart-test: $(CHART_READY) ## Test the Helm chart, the alerts and the Dockerfile. CRDS= names a folder of definitions
	$(CHART_BIN)/hadolint Dockerfile
	$(CHART_BIN)/yamllint --strict -c deploy/yamllint.yaml $(CHART)/values.yaml $(CHART)/ci $(CHART)/files
	$(CHART_BIN)/check-jsonschema --check-metaschema $(CHART)/values.schema.json
	$(CHART_BIN)/check-jsonschema --schemafile $(CHART)/values.schema.json $(CHART)/ci/*.yaml
	$(CHART_BIN)/python -m pytest -c tests/deploy/chart/pytest.ini tests/deploy/chart $(ARGS)

.PHONY: ray-test
ray-test: $(RAY_READY) ## Test the Ray Serve application with two replicas, in an environment of its own
	$(RAY_BIN)/python -m pytest tests/deploy/test_ray.py -m slow $(ARGS)

.PHONY: test-harness
test-harness: $(TEST_READY) ## Run lm-evaluation-harness on our models, which it installs
	@$(INSTALL) --no-build-isolation -e '.[train,harness]'
	$(BIN)/python -m pytest tests/models/test_harness.py $(ARGS)

.PHONY: clients-test
clients-test: $(RUNTIME_READY) $(CLIENTS_READY) ## Run other people's clients against a server. Needs Node.js 20
	$(CLIENTS_VENV)/bin/python -m pytest -c $(CLIENTS)/pytest.ini $(CLIENTS) $(ARGS)

.PHONY: schemathesis
schemathesis: $(TEST_READY) $(SCHEMATHESIS_READY) ## Hold a server to its OpenAPI document. DURATION= seconds, 600 by default
	$(BIN)/python -m tests.schemathesis --seconds $(DURATION) $(ARGS)

# The suite comes with the source of a package that the tests need anyway.
SUITE_SOURCE := build/jsonschema
JSON_SCHEMA_SUITE ?= $(SUITE_SOURCE)/json/tests/draft2020-12

.PHONY: schema-suite
schema-suite: $(TEST_READY) ## Hold answers to the JSON-Schema test suite. JSON_SCHEMA_SUITE= names its folder, else it is fetched
	@test -d $(JSON_SCHEMA_SUITE) || { mkdir -p $(SUITE_SOURCE) && \
		$(BIN)/python -m pip download --quiet --no-deps --no-binary jsonschema -d $(SUITE_SOURCE) \
			$$(grep '^jsonschema==' constraints.txt) && \
		tar -xzf $(SUITE_SOURCE)/jsonschema-*.tar.gz -C $(SUITE_SOURCE) --strip-components 1; }
	JSON_SCHEMA_SUITE=$(JSON_SCHEMA_SUITE) \
		$(BIN)/python -m pytest tests/engine/test_schema_suite.py -m slow -s $(ARGS)

.PHONY: chart-readme
chart-readme: $(TEST_READY) ## Write the table of values in the chart's README
	$(BIN)/python deploy/helm/values_table.py

.PHONY: lock
lock: $(SUPPLY_READY) ## Lock the image's packages by hash again. TORCH_INDEX_URL= names the CPU wheels
	@test -n "$(TORCH_INDEX_URL)$(UV_FIND_LINKS)" || { echo >&2 "TORCH_INDEX_URL= must name the" \
		"index of PyTorch's CPU wheels (or UV_FIND_LINKS= a folder of them)."; exit 1; }
	echo setuptools | $(LOCK) - -c constraints.txt -o deploy/requirements-build.txt
	env -u UV_FIND_LINKS $(LOCK) pyproject.toml -c constraints.txt -o deploy/requirements-cuda.txt
	$(LOCK) pyproject.toml -c constraints.txt -o deploy/requirements-cpu.txt \
		$(addprefix --index-strategy unsafe-best-match --extra-index-url ,$(TORCH_INDEX_URL))

.PHONY: audit
audit: $(SUPPLY_READY) ## Look the image's packages up among known vulnerabilities
	$(SUPPLY_BIN)/pip-audit --disable-pip --require-hashes -r deploy/requirements-cuda.txt $(ARGS)

.PHONY: sbom
sbom: $(SUPPLY_READY) ## Write dist/sbom.cdx.json, the bill of materials of the CPU image's packages
	@mkdir -p dist
	$(SUPPLY_BIN)/cyclonedx-py requirements deploy/requirements-cpu.txt --pyproject pyproject.toml \
		--mc-type application --output-reproducible --of JSON -o dist/sbom.cdx.json

.PHONY: image
image: ## Build the image. DOCKER= IMAGE= TORCH_INDEX_URL= change it
	$(DOCKER) build --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) -t $(IMAGE) .

.PHONY: image-test
image-test: ## Run the image as the chart does, and stream from it. DOCKER= IMAGE= ARGS= change it
	DOCKER="$(DOCKER)" deploy/check_image.sh $(IMAGE) $(ARGS)

.PHONY: install
install: $(TEST_READY) ## Install everything, for work in an editor

.PHONY: clean
clean: ## Remove the environment, the caches and the build outputs
	rm -rf $(VENV) $(CHART_VENV) $(SUPPLY_VENV) $(RAY_VENV) $(CLIENTS_VENV) $(CLIENTS)/node/node_modules \
		$(SCHEMATHESIS_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
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

$(CHART_READY): deploy/requirements-test.txt
	@test -n "$(PYTHON)" || { echo >&2 "Python 3.11 or newer with venv was not found."; exit 1; }
	@echo "Installing what the chart's tests need into $(CHART_VENV)"
	@$(PYTHON) -m venv $(CHART_VENV)
	@$(CHART_BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(SUPPLY_READY): deploy/requirements-supply.txt
	@test -n "$(PYTHON)" || { echo >&2 "Python 3.11 or newer with venv was not found."; exit 1; }
	@echo "Installing the supply-chain tools into $(SUPPLY_VENV)"
	@$(PYTHON) -m venv $(SUPPLY_VENV)
	@$(SUPPLY_BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(RAY_READY): $(SOURCES) deploy/ray/requirements.txt
	@test -n "$(PYTHON)" || { echo >&2 "Python 3.11 or newer with venv was not found."; exit 1; }
	@echo "Installing Ray and what its test needs into $(RAY_VENV)"
	@$(PYTHON) -m venv $(RAY_VENV)
	@$(RAY_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r deploy/ray/requirements.txt setuptools
	@$(RAY_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation -e .
	@touch $@

$(CLIENTS_READY): $(CLIENTS)/requirements.txt $(CLIENTS)/node/package.json
	@test -n "$(PYTHON)" || { echo >&2 "Python 3.11 or newer with venv was not found."; exit 1; }
	@command -v npm >/dev/null || { echo >&2 "Node.js 20 or newer with npm was not found."; exit 1; }
	@echo "Installing the clients into $(CLIENTS_VENV)"
	@$(PYTHON) -m venv $(CLIENTS_VENV)
	@$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@cd $(CLIENTS)/node && npm install --silent --no-package-lock --ignore-scripts
	@touch $@

$(SCHEMATHESIS_READY): $(SCHEMATHESIS)/requirements.txt
	@test -n "$(PYTHON)" || { echo >&2 "Python 3.11 or newer with venv was not found."; exit 1; }
	@echo "Installing schemathesis into $(SCHEMATHESIS_VENV)"
	@$(PYTHON) -m venv $(SCHEMATHESIS_VENV)
	@$(SCHEMATHESIS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
