# A bare machine needs python3 >= 3.11 and make; everything else lands in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test files run side by side: each wants a core and about 2 GB.
JOBS ?= 2
# By the environment, so that pip's isolated build is pinned too.
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet

.PHONY: demo test test-vllm chaos cluster chaos-cluster lint bench docs clean

demo: $(STAMP)
	@$(BIN)/resia demo

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Installs vLLM for processors (docs/engines.md) where it is not; skipped, with the reason, where it cannot be.
test-vllm: $(STAMP)
	RESIA_TEST_VLLM=prepare $(BIN)/python -m pytest tests/test_vllm_runs.py tests/test_vllm_engine.py

chaos: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m chaos

cluster: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m cluster_trial

chaos-cluster: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m chaos --cluster --jobs 3

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m resia.events.schema docs/events

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "resia needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[local,bio,gpu,ops,dev]'
	@touch $@

clean:
	rm -rf $(VENV)
