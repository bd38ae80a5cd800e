# make demo: run the whole group on a rendered clip.  make test: everything CI runs.  Both set themselves up in .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test check lint types bench soak clean

demo: .venv/demo
	$(BIN)/peoplecounter demo

test: .venv/dev # in parallel, except for tests with time limits of their own: supervisors, cameras
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/ops --ignore tests/faults/test_rtsp.py
	$(BIN)/python -m pytest tests/ops tests/faults/test_rtsp.py

check: lint # under a minute: what needs no running group
	$(BIN)/python -m pytest -n 2 tests/pure tests/contract tests/link

lint: .venv/dev types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/dev # mypy needs the folders under their installed name
	@mkdir -p .venv/tree/peoplecounter && ln -sfn $(foreach room,common services deploy,../../../$(room)) .venv/tree/peoplecounter/
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m tests.bench.cpu

soak: .venv/dev
	$(BIN)/python -m tests.bench.soak

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[history]'
	@touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/demo

clean:
	rm -rf .venv .demo .bench .models .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
