# `make demo` and `make test` are all a newcomer needs: each makes the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test faults peers lint docs format install clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

install: $(STAMP)  ## make the virtual environment and install the pinned versions

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[scripts,dev,docs]'
	touch $(STAMP)

demo: $(STAMP)  ## the main job: the planning agent with bilevel and NLL models, its learner alone (Reacher-v5)
	$(BIN)/python scripts/demo.py --out runs/demo --resume

lint: docs  ## ruff and mypy, and the site without a warning
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## the site, in build/docs; a link that leads nowhere is an error
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

format: $(STAMP)  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## lint, types and the whole test suite, on all cores
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

faults: $(STAMP)  ## 200 kills -9, full disks, hostile files, at full length (about half an hour)
	FAULTS=200 $(BIN)/python -m pytest tests/faults -s

peers:  ## the libraries that scripts/bench.py measures us beside, in an environment of their own
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0 'numpy==1.26.*' gymnasium==0.26.3 \
		'hydra-core==1.3.*' termcolor tqdm torchrl==0.14.1
	.venv-peers/bin/python -m pip install --quiet --no-deps mbrl==0.2.0

clean:  ## remove the virtual environment and caches (never runs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
