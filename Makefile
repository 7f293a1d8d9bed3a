# Every target sets itself up: a virtual environment in .venv with the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Strict: a broken link or reference is an error (not with --quiet, which hides warnings from it).
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.DEFAULT_GOAL := help
.PHONY: help demo check docs fix test test-lowest bench gpu-check soak fuzz

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

demo: $(INSTALLED)  ## masks for six photographs: tables, a summary, pictures
	$(BIN)/maskmill demo

check: $(INSTALLED)  ## lint, format, types, direction of imports, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(SITE)

docs: $(INSTALLED)  ## the documentation site, in site/
	$(SITE)

fix: $(INSTALLED)  ## lets ruff correct and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(INSTALLED)  ## the whole test suite
	$(BIN)/pytest

# Without the tests against transformers, which needs newer versions, and that of the bloom filter, which old versions of pyarrow do
# not write. Old versions of some packages use what newer versions of others deprecate, so warnings are not errors here.
test-lowest:  ## the fast tests with the lowest version of each dependency, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[demo,evaluate,train,view]' \
		hypothesis 'moto[s3,server]' pytest pytest-timeout segment-anything triton
	.venv-lowest/bin/pytest -W default -m 'not slow and not gpu and not ray and not browser' --ignore tests/benchmarks \
		--ignore tests/model/test_against_oracles.py --ignore tests/model/test_checkpoint.py \
		--ignore tests/model/test_sam2.py --ignore tests/pipeline/test_golden_sam2.py \
		--ignore-glob 'tests/annotations/test_*_export.py' \
		--deselect tests/pipeline/test_table.py::test_bloom_filter_excludes_images_between_the_first_and_the_last

bench: $(INSTALLED)  ## the engine against its peers; memory of a very large image
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.engine --model vit_b --photographs 1
	$(BIN)/python -m benchmarks.memory

# Uses .venv or else the Python of the machine: machines with a GPU often have torch but no network.
GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) $(PYTHON))

gpu-check:  ## on a machine with a GPU: GPU tests, the engine against its peers (BENCH: more arguments), throughput
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null || \
		{ echo "no GPU that the torch of $(GPU_PYTHON) can use; say which Python with: make gpu-check GPU_PYTHON=..."; exit 1; }
	$(GPU_PYTHON) -m pytest -m gpu $$(grep -rlE --include='test_*.py' 'mark[.]gpu|gpu: str' tests)
	$(GPU_PYTHON) -m benchmarks.engine --device cuda --model mini $(BENCH)
	$(GPU_PYTHON) -m benchmarks.engine --device cuda --model vit_h $(BENCH)
	$(GPU_PYTHON) -m benchmarks.throughput --device cuda --model vit_h
	$(GPU_PYTHON) -m benchmarks.throughput --device cuda --model vit_h --preset sa1b --images 128

soak: $(INSTALLED)  ## kills workers, machines and drivers 250 times, and counts lost images
	$(BIN)/python -m tests.soak --kills 250

fuzz: $(INSTALLED)  ## feeds damaged images, archives, tables and run lengths for ten minutes
	$(BIN)/python -m tests.fuzz --seconds 600

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "maskmill needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing what pyproject.toml names into .venv: minutes, and gigabytes where torch comes with CUDA"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# A reference for tests. Without its dependencies, because torchvision is one of them (testing/sam2_oracles.py).
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-deps --no-build-isolation sam2==1.1.0
	@touch $@
