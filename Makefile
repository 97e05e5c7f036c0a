# Every target does its own set-up: `make demo` and `make test` work on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is kept, whatever the environment says: the tests start dozens of processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test bench check docs notebooks format golden clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# The stamp is newer than what it was made from, so a changed dependency list remakes the environment.
.venv/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pocketcnn needs Python 3.11 or newer; run make PYTHON=python3.11")'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/stamp  ## train and compare all five methods on digits, and say which pages to open
	$(BIN)/pocketcnn compare --data digits --models resnet20 --methods plain ring:size=0.1 puppet pde condconv:num_experts=2 involution \
	    --equal-size --seeds 3 --preset demo --epochs 8 --output runs/demo
	$(BIN)/pocketcnn explore runs/demo/resnet20-[!w]*/seed0 --data digits --records runs/demo --output runs/demo/explore.html
	@echo 'Open in a browser: runs/demo/report.html (the comparison) and runs/demo/explore.html (the nets themselves).'

test: .venv/stamp  ## the whole test suite
	$(BIN)/pytest

bench: .venv/stamp  ## time every method side by side, about 20 minutes: results/bench
	$(BIN)/pocketcnn bench --output results/bench

check: .venv/stamp  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/stamp  ## the site of the documentation, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'Open in a browser: site/index.html'

notebooks: .venv/stamp  ## run the notebooks of examples/ again; their scripts are what is edited
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt jupytext nbconvert ipykernel
	cd examples && ../$(BIN)/jupytext --quiet --to ipynb --execute 0*.py

format: .venv/stamp  ## rewrite files the way `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: .venv/stamp  ## rewrite the golden files of the tests; read the diff before committing it
	$(BIN)/pytest -n 0 --update-golden -m golden

clean:  ## remove everything that was generated
	rm -rf .venv build dist runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
