# Every target sets itself up: a virtual environment in .venv with the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo check fix test bench soak fuzz

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

demo: $(INSTALLED)  ## masks for a handful of photographs: tables, summary, overlays
	$(BIN)/maskmill demo

check: $(INSTALLED)  ## lint, format, types, direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

fix: $(INSTALLED)  ## what ruff can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(INSTALLED)  ## the whole test suite
	$(BIN)/pytest

bench: $(INSTALLED)  ## the engine against its peers, same weights, one run; memory of a very large image
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.engine --model vit_b --photographs 1
	$(BIN)/python -m benchmarks.memory

soak: $(INSTALLED)  ## runs whose workers, machines and drivers are killed 250 times: is anything lost?
	$(BIN)/python -m tests.soak --kills 250

fuzz: $(INSTALLED)  ## ten minutes of damaged images, archives, tables and run lengths
	$(BIN)/python -m tests.fuzz --seconds 600

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "maskmill needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
