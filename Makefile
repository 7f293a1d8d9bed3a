# Every target sets itself up: a virtual environment in .venv with the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo check fix test bench gpu-check soak fuzz

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

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

# With the Python at hand: machines with a GPU often come with torch and without a network.
GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) $(PYTHON))

gpu-check:  ## where there is a GPU: its tests, the engine against its peers (BENCH: further arguments), and throughput
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null || \
		{ echo "no GPU that the torch of $(GPU_PYTHON) can use; say which Python with: make gpu-check GPU_PYTHON=..."; exit 1; }
	$(GPU_PYTHON) -m pytest -m gpu $$(grep -rlE --include='test_*.py' 'mark[.]gpu|gpu: str' tests)
	$(GPU_PYTHON) -m benchmarks.engine --device cuda --model mini $(BENCH)
	$(GPU_PYTHON) -m benchmarks.engine --device cuda --model vit_h $(BENCH)
	$(GPU_PYTHON) -m benchmarks.throughput --device cuda --model vit_h
	$(GPU_PYTHON) -m benchmarks.throughput --device cuda --model vit_h --preset sa1b --images 128

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
