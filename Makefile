# `make` alone explains the targets.
PYTHON ?= python3
LIMIT ?= 24
KILLS ?= 500
PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install run test stress lint format bench golden clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: .venv/.installed ## Make .venv and install qwen_eval into it.

run: .venv/.installed ## Fetch the starter model and evaluate it on GSM8K (LIMIT=24 items; LIMIT=1.0 for all).
	$(PY) -m qwen_eval run --task gsm8k --limit $(LIMIT)

test: .venv/.installed-dev ## Run the whole test suite.
	$(PY) -m pytest

stress: .venv/.installed-dev ## Kill runs at KILLS=500 random moments, and see that each ends like one that was left alone.
	KILLS=$(KILLS) $(PY) -m pytest tests/test_durability.py -k killed_at_random -s

lint: .venv/.installed-dev ## Check style, types and formatting.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/.installed-dev ## Format the code.
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: .venv/.installed .venv-lm-eval/.installed ## Measure the engine beside lm-evaluation-harness (needs QWEN_EVAL_DATA).
	$(PY) benchmarks/engines.py

golden: .venv/.installed-dev ## Write the golden prompts anew (needs QWEN_EVAL_DATA).
	$(PY) tests/tasks/make_golden.py

clean: ## Remove .venv and caches; results stay.
	rm -rf .venv .venv-lm-eval .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Expected Python 3.11 or newer, found $$($(PYTHON) --version 2>&1). Next: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	@touch $@

.venv-lm-eval/.installed:
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/python -m pip install --disable-pip-version-check -c constraints.txt torch transformers accelerate lm_eval==0.4.13
	@touch $@
