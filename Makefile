# make demo: run the whole group on a rendered clip.  make test: everything CI runs.  Both set themselves up in .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/demo
	$(BIN)/peoplecounter demo

test: .venv/dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore tests/ops  # most of them wait
	$(BIN)/python -m pytest tests/ops  # supervisors: their time limits want the cores

lint: .venv/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: .venv/dev
	$(BIN)/python -m tests.bench.cpu

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/demo

clean:
	rm -rf .venv .demo .bench .models .pytest_cache .ruff_cache .hypothesis build *.egg-info
