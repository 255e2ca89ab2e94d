# `make quickstart` and `make test` are all that a newcomer needs: both set up what they need first.
.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
PROJECTS := pyproject.toml core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
JOBS ?= 2
ARGS ?=

# The first Python that is new enough. PYTHON=/path/to/python names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# A group of [dependency-groups] as a requirements file: pip reads groups itself only since 25.1.
REQUIREMENTS = import sys, tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]], sep="\n")

.PHONY: help setup quickstart test check lint types format docs bench clean

help: ## Show these targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv and install everything into it (once, and again when a project file changes).

$(INSTALLED): constraints.txt $(PROJECTS)
	@test -n "$(PYTHON)" || { echo "graftwork needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into $(VENV): some minutes the first time, nothing after that."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(REQUIREMENTS)' dev > $(VENV)/dev.txt
# One command, so that pip settles on one torch for all of them.
	$(BIN)/python -m pip install --quiet -c constraints.txt -r $(VENV)/dev.txt \
		-e './core[models]' $(patsubst %/pyproject.toml,-e ./%,$(wildcard plugins/*/pyproject.toml))
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@$(BIN)/python -c '$(REQUIREMENTS)' bench > $(VENV)/bench.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r $(VENV)/bench.txt
	@touch $@

quickstart: $(INSTALLED) ## Train a small model on real text, fine-tune it and ask it questions: about 3 minutes.
	$(BIN)/graft quickstart $(ARGS)

# One thread each: more of them than cores makes small tests several times slower.
test: $(INSTALLED) ## Run all tests. ARGS='-k registry' picks some.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

check: lint types ## Run ruff and mypy.

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED) ## Let ruff format and repair what it can.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED) ## Write the generated parts of docs/ again.
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/chart.py

bench: $(BENCH_INSTALLED) ## Measure speed and memory side by side with TRL.
	$(BIN)/python benchmarks/run.py $(ARGS)

clean: ## Remove .venv, caches and what builds leave behind.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist core/dist plugins/*/dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
