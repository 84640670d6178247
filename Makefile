# vitkern: `make demo` and `make test` need nothing but Python 3.10+ and make; both build .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: demo test prove fuzz mutants coverage strec lint check gpu clean

$(READY): pyproject.toml setup.py
	@$(PYTHON) tests/set_up.py $(VENV)
	@touch $@

demo: $(READY)
	$(RUN) -m benchmarks.demo

test: $(READY)
	$(RUN) tests/run.py

prove: $(READY)
	$(RUN) tests/run.py prove

fuzz: $(READY)
	$(RUN) -m vitkern lab fuzz --cases 20000

mutants: $(READY)
	$(RUN) -m vitkern lab mutants

coverage: $(READY)
	$(RUN) -m vitkern coverage --out docs/coverage.md

strec: $(READY)
	$(RUN) -m vitkern strec demo

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

check: $(READY)
	$(RUN) -m vitkern check

gpu: # GPU="9 --only benchmarks --copy FOLDER": minutes, a part of it, a second place for the results
	$(PYTHON) tests/gpu/run.py $(GPU)

clean:
	rm -rf $(VENV) .lab build dist *.egg-info
