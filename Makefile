# Everything a newcomer needs: `make demo` sets up and runs the main job, `make test` sets up and passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RESULTS ?= results-local

.PHONY: help setup setup-dev demo test lint leaderboard performance clean

help:
	@echo "make demo         set up, then pretrain, finetune and evaluate a first detector (12 minutes on 2 cores of a Xeon, more on slow ones)"
	@echo "make test         set up, then run lint, types and all tests"
	@echo "make lint         ruff (format and lint) and mypy"
	@echo "make leaderboard  open the leaderboard on http://localhost:8501"
	@echo "make performance  measure, print and write docs/performance.md (most of an hour)"

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: setup
	$(BIN)/python -m benchmark run --backbone swin --mode agssp --protocol mini-v1 --seeds 0 --results $(RESULTS)
	$(BIN)/python -m benchmark report --results $(RESULTS)

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

leaderboard: setup
	$(BIN)/python -m leaderboard

performance: setup-dev
	$(BIN)/python tests/performance/page.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
