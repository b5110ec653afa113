# The two commands: `make race` and `make test`. Each makes .venv if it is not there.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
FRAMEWORKS := .venv/frameworks
DOCS := .venv/docs
PEERS := .venv/peers
VERSIONS := .venv/versions

.PHONY: race battery test test-slow test-frameworks versions lint bench docs

race: $(INSTALLED)
	$(BIN)/unscheduled race

# The data are downloaded once; a task whose data cannot be had is left out.
battery: $(INSTALLED)
	-$(BIN)/unscheduled data fetch
	$(BIN)/unscheduled battery

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

test-frameworks: $(FRAMEWORKS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests_frameworks

# The oldest and the newest pair of Python and torch; NOXSESSION chooses others.
versions: $(VERSIONS)
	$(BIN)/nox

lint: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: $(PEERS)
	$(BIN)/python -m benchmarks.run

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch first and by its exact version, so that nothing else chooses another build of it
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gpu-test,lint]'
	touch $@

$(FRAMEWORKS): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test-frameworks]'
	touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VERSIONS): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[versions]'
	touch $@
