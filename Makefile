# Two commands for newcomers: `make demo` distils the shipped Fashion-MNIST teacher, `make test` checks that all
# of it works. `make test-all` adds what is for more confidence: every family, every store, every kill, every resume.
# `make fast` is for after an edit: it leaves out each test of more than a tenth of a second, and names those that take one.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests start some hundred processes, each of which would compile some thousand modules anew if none were kept.
export PYTHONDONTWRITEBYTECODE :=
# A process for each core. Each takes a stretch of the tests, so that a fixture is made in one of them as a rule.
SPREAD := --numprocesses=logical --dist=worksteal

.PHONY: demo test test-all unit fast lint reference docs install locked clean

demo: $(VENV)/.installed
	$(BIN)/redif distill configs/fashion_mnist_output.yaml run.name=demo $(ARGS)

test: unit
	$(BIN)/python -m pytest -m "cluster and not long" $(ARGS)

test-all: unit
	$(BIN)/python -m pytest -m "cluster or long" $(ARGS)

unit: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -m "not cluster and not long" $(SPREAD) $(ARGS)

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not cluster and not slow and not long" $(SPREAD) --durations=9 --durations-min=1 $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check redif_ray jobs tests benchmarks docs
	$(BIN)/ruff format --check redif_ray jobs tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The pages of the documentation that the code makes, and the documentation as a site in build/site.
reference: $(VENV)/.installed
	$(BIN)/python docs/generate.py

docs: reference $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html in a browser"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

# What continuous integration installs: files whose hashes are known, and nothing else. Modules are compiled when they are
# imported, since most of the installed ones never are.
locked: .ci/requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile --require-hashes --no-deps \
		--requirement .ci/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-docs

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
