# Everything a newcomer needs: `make demo` shows sectorwire at work, `make test` proves it.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
READY := .venv/ready
TESTS ?=

.PHONY: demo test test-only lint format soak chaos sabotage mutants bench-schedule lock clean

demo: $(READY)  ## the whole line on a simulated market; FOR=30 ends it after 30 seconds
	@$(BIN)/sectorwire demo $(if $(FOR),--seconds $(FOR))

test: $(READY) lint test-only  ## what CI runs: format, lint, types, every test

test-only: $(READY)
	$(BIN)/pytest -m "not soak" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(READY)  ## the tests that take minutes
	$(BIN)/pytest -m soak -s --timeout 3600 $(TESTS)

chaos: $(READY)  ## ten minutes in which real processes are killed, stopped, cut off and starved; KILLS=40 SEED=7 for others
	@$(BIN)/python -m tests.chaos $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

sabotage: $(READY)  ## each protection taken out of a copy, to see which tests notice; minutes. ONLY=fence for one
	@$(BIN)/python -m tests.sabotage $(ONLY)

mutants: $(BIN)/mutmut  ## small faults put into the pure modules, to see the tests notice them; minutes
	@$(BIN)/python -m tests.mutants

# Only this target needs it, so it is no part of the lock.
$(BIN)/mutmut: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1

bench-schedule: $(READY)  ## five minutes at most: a plan near its limit beside first come, first served, and the scheduler's cost
	$(BIN)/python -m bench.schedule

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "sectorwire needs Python 3.11 or later; set PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "making the environment in .venv ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

# Needs uv. One file for every platform and Python from 3.11, with hashes and without the address of an index.
lock:
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --output-file requirements.lock

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache
