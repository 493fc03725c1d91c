VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python

.PHONY: demo test check fuzz faults

demo: $(VENV)/.installed
	$(RUN) main.py --config demo.yaml --train --detection $(SETTINGS)

test: $(VENV)/.installed-dev
	$(RUN) -m pytest -q -rs -n 2 --dist worksteal $(COVERAGE)

fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) tests/fuzz.py $(FUZZ)

faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) tests/kill.py $(FAULTS)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/test_faults.py

check: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@
