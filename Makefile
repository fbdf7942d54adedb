# `make` or `make help` tells what there is. Nothing is needed beforehand but python3 (3.11 or later, with venv) and make.

SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .tools/bin/uv
RUN := .venv/bin/python
PYTEST := $(RUN) -m pytest

export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help

##@ Two commands

.PHONY: demo
demo: .venv/.complete ## The main job on real data: train a cluster, save, serve, predict, clean up
	$(RUN) examples/demo.py

.PHONY: test
test: check unit integration e2e ## Lint, types, import rules and every test that this machine can run

##@ Parts of `make test`

.PHONY: check
check: .venv/.complete ## Lint, formatting, types, import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.PHONY: unit
unit: .venv/.complete ## Pure rules, contracts and simulations: seconds
	$(PYTEST) tests/unit tests/contract tests/simulation

.PHONY: integration
integration: .venv/.complete ## Rooms against real NATS and PostgreSQL
	$(PYTEST) tests/integration

.PHONY: e2e
e2e: .venv/.complete ## The running product with real TensorFlow, and with processes killed under it
	$(PYTEST) tests/faults tests/e2e

##@ More

.PHONY: bench
bench: .venv/.complete ## Measure against bare baselines: one JSON line for each figure
	$(RUN) -m benchmarks

.PHONY: test-compose
test-compose: .venv/.complete ## Build the images and run the main job in containers; needs a Docker engine
	$(PYTEST) tests/compose

.PHONY: test-kubernetes
test-kubernetes: .venv/.complete ## The main job on the cluster that KUBECONFIG names; tests/kubernetes/conftest.py tells the settings
	@test -z "$(ELEARN_TEST_IN_CLUSTER)" || command -v helm >/dev/null || $(MAKE) .tools/bin/helm || echo "helm can't be had here" >&2
	$(PYTEST) tests/kubernetes

.PHONY: contracts
contracts: .venv/.complete ## Write docs/contracts and docs/settings.md anew from the structs, and the protocol buffers
	$(RUN) -m services.api.contracts
	$(RUN) deploy/settings.py
	$(RUN) elearn/grpc/generate.py

.PHONY: manifests
manifests: .tools/bin/helm ## Write deploy/kubernetes/elearn.yaml anew from the chart
	.tools/bin/helm template elearn deploy/kubernetes/chart --namespace elearn > deploy/kubernetes/elearn.yaml

.PHONY: format
format: .venv/.complete ## Format and mend what can be mended by itself
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.PHONY: clean
clean: ## Remove the environment and what tools left behind
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## This
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- the environment, from the lock file ------------------------------------------------------------

$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON): install Python 3.11 or later, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "elearn needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv: install it (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.tools/bin/helm: deploy/kubernetes/get_helm.py $(UV)
	.tools/bin/python deploy/kubernetes/get_helm.py .tools/bin

.venv/.complete: uv.lock pyproject.toml $(UV)
	$(UV) sync --quiet --frozen --all-extras --compile-bytecode --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@touch $@
