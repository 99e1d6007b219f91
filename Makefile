# Each target makes the environment (.venv) first and needs nothing but Python 3.11 or 3.12 and pip's usual package index.
# ARGS is passed on: make tune ARGS="--tasks breastmnist", make test ARGS="-k config".
ARGS ?=
PYTHON ?=
BIN := .venv/bin

.PHONY: help env tune bench storm test check format

help:
	@echo "make tune    tune both backbones on the default tasks, from nothing to a table, a report and a model"
	@echo "make bench   all benchmarks, some hours; ARGS names some, or --quick to see that they work"
	@echo "make storm   30 searches, each with a process killed at a random moment, then resumed; about a minute each"
	@echo "make test    all tests"
	@echo "make check   style, types and the fast tests, some minutes on two cores"
	@echo "make format  let ruff mend what it can"
	@echo "make env     only the environment, in .venv"
	@echo 'ARGS="..." is passed on to the command behind tune, bench, storm and test.'

tune: env
	$(BIN)/python experiments/tune_backbones.py $(ARGS)

bench: env
	$(BIN)/python benchmarks/run.py $(ARGS)

storm: env
	$(BIN)/python tests/cluster/storm.py $(ARGS)

test:
	@.ci/run $(ARGS)

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: .venv/.stamp

# One pip command, so that torch and torchvision are resolved together. The stamp comes last: an interrupted install is taken up again.
.venv/.stamp: pyproject.toml constraints.txt tests/s3-server.txt
	@python=$$(.ci/find-python "$(PYTHON)") && { $(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv .venv; }
	@echo "Installing into .venv (about 7 GB with torch's CUDA libraries; some minutes the first time)."
	@$(BIN)/python -m pip install $(if $(MAKE_TERMOUT),,--quiet) --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m venv .venv/s3-server
	@.venv/s3-server/bin/python -m pip install $(if $(MAKE_TERMOUT),,--quiet) --disable-pip-version-check -r tests/s3-server.txt
	@touch $@
