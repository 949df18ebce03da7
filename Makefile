# Every target makes what it needs: a virtual environment with the exact versions of constraints.txt.
PYTHON ?= python3
MODEL ?= models/cairn-4m
BOOKS ?= ../shared/corpus/books.jsonl.xz
PORT ?= 8000
BIN := .venv/bin
# An installer's options, e.g. PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a CPU-only torch.
PIP_FLAGS ?=

.PHONY: help demo serve paper test test-slow check audit format constraints clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/installed  ## hide facts in a long text, read it over REST, ask about them (TEXT=book.txt TOKENS=100000)
	$(BIN)/python -m clients.demo --model $(MODEL) $(if $(TEXT),--text $(TEXT)) $(if $(TOKENS),--tokens $(TOKENS))

serve: .venv/installed  ## serve MODEL (a folder or a hub name; ours if left out) on PORT
	$(BIN)/python -m server serve --model $(MODEL) --port $(PORT)

paper: .venv/installed-dev  ## the paper's tables for our own models, and conformance (BOOKS=books.jsonl.xz)
	@test -f $(BOOKS) || { echo "$(BOOKS) is missing; give the books as BOOKS=FILE (docs/paper.md)"; exit 1; }
	$(BIN)/python -m bench.perplexity --data $(BOOKS) --json bench/results/paper.json
	$(BIN)/python -m bench.conformance $(wildcard tests/data/*-small ../shared/conformance/*-paper)
	$(BIN)/python -m bench.perplexity --print bench/results/paper.json $(wildcard bench/results/passkey-curve.json)

test: .venv/installed-dev  ## run the tests (under 12 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/installed-dev  ## run the long tests too
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed-dev audit  ## formatting, lint, types, and known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: .venv/installed-dev  ## known vulnerabilities of what constraints.txt pins (needs the network, or is skipped)
	$(BIN)/python -m tests.audit

format: .venv/installed-dev  ## format and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: .venv/installed-dev  ## write constraints.txt from what is installed
	$(BIN)/pip freeze --all --exclude cairn-server --exclude cairn-client --exclude torch --exclude pip > constraints.new
	(echo "# Exact versions of everything that Cairn and its tests install; \`make constraints\` writes it anew."; \
	 echo "torch==2.13.0"; cat constraints.new) > constraints.txt && rm constraints.new

clean:  ## remove the environment and what tools left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
