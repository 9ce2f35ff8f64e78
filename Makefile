# make demo   the two commands of the README, from nothing        make test        lint, types, tests
# make bench  timings against peers, printed as ratios            make test-long   the tests that take long
# make train-tiny  trains the shipped model again                 make torture     kills an extraction 200 times
# make dashboard   opens the dashboard over runs/
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long bench train-tiny dashboard torture

help:
	@sed -n 's/^# //p' Makefile

# torch goes first: asked for later, its newest build would be taken instead of the tested one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	@mkdir -p .venv/src/htc_probe
	@ln -sfn $(CURDIR)/extract $(CURDIR)/probes $(CURDIR)/analysis $(CURDIR)/dashboards .venv/src/htc_probe/
	@touch $@

install: $(INSTALLED)

demo:
	@echo "This takes about 3 minutes on 2 cores, and 3 GB of disk:"
	@echo "  1. install the toolkit into .venv (1 minute, from the package index)"
	@echo "  2. run the small model over 2,000 rendered scenes (half a minute)"
	@echo "  3. probe what its one token holds (1 minute); the answer comes last"
	@echo "Stopped, it goes on where it was. Commands by name: source .venv/bin/activate"
	@echo
	@$(MAKE) --no-print-directory --silent install
	$(BIN)/htc-extract --split val
	$(BIN)/htc-probe semantic detail

# A thread a process: files run side by side, and threads of more would wait for each other.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses auto --dist load

bench: install
	$(BIN)/python -m benchmarks.star

train-tiny: install
	$(BIN)/htc-train tiny --out extract/models/htc-tiny

dashboard: install
	$(BIN)/htc-dashboard

torture: install
	$(BIN)/python -m pytest tests/torture.py
