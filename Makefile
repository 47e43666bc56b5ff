# keyface: `make demo` and `make test` are all that is needed. Requires make, bash and Python 3.11 to 3.13.
#
# The virtual environment is stamped with a checksum of pyproject.toml and of this file: once it is
# complete, no target asks pip for anything, so both commands work again offline from the cache.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help app demo models test lint fast picture clean

VENV ?= .venv
DEMO ?= demo
PYTEST_ARGS ?=

# Tests of training code want torch. The version is pinned because the CPU build of exactly this release
# is the one that CI has; a newer or unpinned torch brings gigabytes of CUDA libraries. `TORCH=none` leaves
# it out, and so does the recipe where only the CUDA build is to be had: those tests then skip and say why.
TORCH ?= torch==2.13.0

# Builds engines for graphics cards ahead of time, without a card; some tests do. `TENSORRT_RTX=none` leaves it out.
TENSORRT_RTX ?= tensorrt-rtx-cu13>=1.5

# The first interpreter that is new enough (and not newer than what mediapipe has wheels for).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)

STATE := $(firstword $(shell cat pyproject.toml Makefile | cksum))
APP_STAMP := $(VENV)/.keyface-app-$(STATE)
TEST_STAMP := $(VENV)/.keyface-test-$(STATE)
BIN := $(VENV)/bin

help:
	@echo 'make demo    install keyface, fetch the models, make a clip of a generated person, anonymise it'
	@echo 'make test    install what the tests need and run every check'
	@echo 'make models  fetch and verify the models only'
	@echo 'make lint    style, types and room boundaries only'
	@echo 'make fast    the tests that take seconds only'
	@echo 'make picture the demo, and its contact sheet into docs/'
	@echo 'make clean   remove the virtual environment and what the demo made (not the models, not keys)'

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'keyface needs Python 3.11, 3.12 or 3.13; install one, or name it: make PYTHON=/path/to/python3.12 demo' >&2; exit 1; }
	@echo '== creating $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv '$(VENV)' || { rm -rf '$(VENV)'; echo 'python could not create a virtual environment; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

$(APP_STAMP): | $(BIN)/python
	@echo '== installing keyface into $(VENV)'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[openvino]'
	@rm -f $(VENV)/.keyface-app-*
	@touch '$@'

$(TEST_STAMP): | $(BIN)/python
	@echo '== installing keyface and what its tests need into $(VENV)'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[test,openvino]'
	@BIN='$(BIN)' TORCH='$(TORCH)' bash tests/install_torch.sh
	@BIN='$(BIN)' TENSORRT_RTX='$(TENSORRT_RTX)' bash tests/install_tensorrt_rtx.sh
	@bash tests/install_media_servers.sh
	@bash tests/install_browser.sh
	@rm -f $(VENV)/.keyface-app-* $(VENV)/.keyface-test-*
	@touch '$(APP_STAMP)' '$@'

app: $(APP_STAMP)

models: $(APP_STAMP)
	@$(BIN)/keyface models pull

demo: models
	@$(BIN)/keyface demo --out '$(DEMO)'

# The README's picture, from the demo's contact sheet: nobody in it is real.
picture: demo
	@$(BIN)/python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").save(sys.argv[2], quality=88)' \
		'$(DEMO)/contact-sheet.png' docs/contact-sheet.jpg

lint: $(TEST_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports

fast: $(TEST_STAMP)
	@$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test: lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf '$(VENV)' '$(DEMO)' build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
