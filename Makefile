# Everything a fresh machine needs is Python (3.11 to 3.13) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
OUTPUT ?= results
ARGS ?=

.PHONY: study dashboard test test-all faults rehearse bench check clean

study: $(VENV)/ready  ## the main job: the best split of a budget on GMM4
	$(BIN)/python studies/budget_split.py --output $(OUTPUT) $(ARGS)

dashboard: $(VENV)/ready  ## MLflow's UI on 127.0.0.1 over the same records
	$(BIN)/python -m harness.dashboard --output $(OUTPUT) $(ARGS)

test: $(VENV)/ready  ## everything but what is marked slow or cluster
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python -m pytest -n 0 -m "(ray or faults) and not slow and not cluster" $(ARGS)

test-all: $(VENV)/ready  ## everything
	$(BIN)/python -m pytest -n 0 -m "" $(ARGS)

faults: $(VENV)/ready  ## kill studies at random moments and count what is lost
	$(BIN)/python -m pytest -n 0 -m faults
	$(BIN)/python -m tests.faults.random_kills --output $(OUTPUT)/faults $(ARGS)

rehearse: $(VENV)/ready  ## a cluster's whole life on hosts made of namespaces: Linux, root, openssh-server and rsync
	$(PIP) install -c constraints.txt -e ".[cluster]"
	$(BIN)/python clusters/rehearse.py

bench: $(VENV)/ready  ## ratios, measured side by side
	$(BIN)/python -m benchmarks $(ARGS)

check: $(VENV)/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[dev,molecules]"
	touch $@
