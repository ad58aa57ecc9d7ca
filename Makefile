# Everything runs from here with Python 3.11+ and make alone: `make test`, `make demo`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
DEMO ?= demo
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help setup demo test check lint format typecheck links clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv

$(VENV)/.installed: pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -e '.[dev,viz,track,lit,studio]'
	touch $@

setup: $(VENV)/.installed  ## make .venv and install genvid into it

demo: setup  ## train, allocate, generate and score on small clips (DATA=folder: on your own); writes demo/report.html
	$(BIN)/python recipes/demo.py --output $(DEMO) $(if $(DATA),--data $(DATA))

test: setup  ## run the test suite: on a machine with GPUs, the tests that need them first
	if $(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then \
	$(BIN)/python -m pytest --gpu -n 2 --dist loadfile; fi
	$(BIN)/python -m pytest -n 2 --dist loadfile

links:  ## lay the tree out as it is imported, for tools that follow files
	rm -rf build/typing && mkdir -p build/typing/genvid
	ln -s $(CURDIR)/genvid/* $(CURDIR)/tokenizer $(CURDIR)/eval $(CURDIR)/recipes build/typing/genvid/

typecheck: setup links  ## mypy --strict on the four packages
	cd build && ../$(BIN)/mypy --config-file ../pyproject.toml -p genvid

lint: setup  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: lint typecheck test  ## all that CI runs

clean:  ## remove .venv, build, dist and demo
	rm -rf $(VENV) build dist *.egg-info demo
