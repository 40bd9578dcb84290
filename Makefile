# Two commands set everything up: `make demo` and `make test`. Needs Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The tests of kernels need torch and Triton; `make test KERNELS=` leaves them out.
KERNELS ?= 1
TESTED := $(VENV)/.installed-for-tests$(KERNELS)

.PHONY: demo test coverage lint bench clean

demo: $(INSTALLED)
	$(RUN)/orcast run scenarios/quickstart.yaml --out runs/quickstart

test: $(TESTED)
	$(RUN)/python -m pytest -n auto --dist loadfile

# Lines and branches of all packages but kernels, whose bodies Triton compiles.
coverage: $(TESTED)
	$(RUN)/python -m pytest -n auto --dist loadfile --ignore tests/kernels --cov --cov-report term

lint: $(INSTALLED)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy sim scenarios reports orcast calibrate
	$(RUN)/mypy --explicit-package-bases --namespace-packages kernels

bench: $(INSTALLED)
	$(RUN)/python -m tests.benchmarks.speed
	$(RUN)/python -m tests.benchmarks.accuracy

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Orcast needs Python 3.11 or newer, not {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(TESTED): $(INSTALLED)
ifneq ($(KERNELS),)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster,kernels,tables]'
endif
	@touch $@

clean:
	rm -rf $(VENV) runs
