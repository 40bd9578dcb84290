# `make demo`, `make test` and `make lint` set up what they need and install nothing the second time.
# Needs Python 3.11 or newer. What is installed is what requirements*.txt say, hashes included;
# `make lock` renews them within the ranges of pyproject.toml.

PYTHON ?= python3
# The tests of kernels need torch and Triton; `make test KERNELS=` leaves them out.
KERNELS ?= 1
# `make test REQUIRE=browser` fails where a test of that kind is skipped (kinds: tests/needs.py).
REQUIRE ?=
# `make test NEWEST=1` and `OLDEST=1` test what pyproject.toml allows, in environments of their own.
VENV := .venv$(if $(NEWEST),-newest)$(if $(OLDEST),-oldest)
RUN := $(VENV)/bin
TESTED := $(VENV)/$(if $(KERNELS),.test,.dev)
# Without compiling: of what is installed little is ever imported.
INSTALL := $(RUN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps
LOCKED := $(INSTALL) --require-hashes
ENDS := $(if $(NEWEST)$(OLDEST),$(VENV)/requirements.txt)
CORE := $(or $(ENDS),requirements.txt)
DEV := $(or $(ENDS),requirements-dev.txt)
TEST := $(or $(ENDS),requirements-test.txt)
BROWSERS := chromium chromium-browser google-chrome chrome

VLLM := .venv-vllm
VLLM_INSTALL := $(subst $(VENV),$(VLLM),$(INSTALL))
# `make test-vllm COUNT=200 SEED=7`: other workloads, and how many of each mode.
COUNT ?= 1000
SEED ?= 1

.PHONY: demo test attack test-clients test-vllm serve-vllm check-vllm coverage lint bench browser lock clean always
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	$(RUN)/orcast run scenarios/quickstart.yaml --out runs/quickstart

test: $(TESTED) browser
	$(RUN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		$(addprefix --require=,$(REQUIRE))

# Orcast's schedules of random workloads, held against vLLM's own code, step by step.
test-vllm: $(VENV)/.core $(VLLM)/.vllm
	$(RUN)/python -m tests.vllm --python $(VLLM)/bin/python --count $(COUNT) --seed $(SEED)

# vLLM serves a tiny model for real, on the processor, and Orcast schedules the same requests.
serve-vllm: $(VENV)/.core $(VLLM)/.vllm
	$(RUN)/python -m tests.vllm.runs --python $(VLLM)/bin/python --seed $(SEED)

# vLLM recorded under a light load, refined on, forecast under three others, and served: the page is
# runs/check-vllm/README.md. A quarter of an hour; nothing else should run meanwhile.
check-vllm: $(VENV)/.core $(VLLM)/.vllm
	$(RUN)/python -m tests.vllm.whole_loop --python $(VLLM)/bin/python

# Other people's clients, unchanged, against `orcast serve`. inference-perf needs Python 3.12: where it is
# installed, `.venv/bin/python -m tests.clients --inference-perf PROGRAM`.
test-clients: $(VENV)/.dev $(VLLM)/.vllm .venv-guidellm/.client .venv-aiperf/.client
	$(RUN)/python -m tests.clients --vllm $(VLLM)/bin/python \
		--guidellm .venv-guidellm/bin/guidellm --aiperf .venv-aiperf/bin/aiperf

# Hostile inputs of every kind for as long as is told, an hour unless `make attack SECONDS=600`;
# `SEED=7`: other ones. tests/attack/ has a few of each that `make test` tries.
SECONDS ?= 3600

attack: $(VENV)/.dev
	$(RUN)/python -m tests.attack --seconds $(SECONDS) --seed $(SEED)

# Lines and branches of all packages but kernels, whose bodies Triton compiles.
coverage: $(TESTED) browser
	$(RUN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		--ignore tests/kernels --cov --cov-report term

lint: $(VENV)/.dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy sim scenarios reports orcast calibrate
	$(RUN)/mypy --explicit-package-bases --namespace-packages kernels

bench: $(VENV)/.dev
	$(RUN)/python -m tests.benchmarks.speed
	$(RUN)/python -m tests.benchmarks.accuracy

# -- what is installed: the core, with the tools, with all that the tests of kernels need -----------

$(RUN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Orcast needs Python 3.11 or newer, not {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(CORE) pyproject.toml | $(RUN)/python
	$(LOCKED) -r $(CORE)
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(DEV) $(VENV)/.core
	$(LOCKED) -r $(DEV)
	@touch $@

# The tests use torch on the CPU: a CPU build where pip is told of one, otherwise PyPI's, which on
# Linux comes with CUDA.
$(VENV)/.test: $(TEST) requirements-torch-cpu.txt requirements-torch.txt $(VENV)/.dev
	$(LOCKED) -r $(TEST)
	@$(LOCKED) -r requirements-torch-cpu.txt 2> /dev/null || \
		{ set -x; $(LOCKED) -r requirements-torch.txt; }
	@touch $@

# vLLM for the processor, 2 GB, in an environment of its own: what it needs does not fit ours. Its
# torch is the one of the tests.
$(VLLM)/.vllm: requirements-vllm.txt requirements-torch-cpu.txt requirements-torch.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM_INSTALL) -r requirements-vllm.txt
	@$(VLLM_INSTALL) --require-hashes -r requirements-torch-cpu.txt 2> /dev/null || \
		{ set -x; $(VLLM_INSTALL) --require-hashes -r requirements-torch.txt; }
	@touch $@

# A client of `make test-clients`, in an environment of its own.
.venv-%/.client: requirements-%.txt requirements-torch-cpu.txt requirements-torch.txt
	$(PYTHON) -m venv --clear .venv-$*
	$(subst $(VENV),.venv-$*,$(INSTALL)) -r requirements-$*.txt
	@$(subst $(VENV),.venv-$*,$(INSTALL)) --require-hashes -r requirements-torch-cpu.txt 2> /dev/null || \
		{ set -x; $(subst $(VENV),.venv-$*,$(INSTALL)) --require-hashes -r requirements-torch.txt; }
	@touch $@

# As root where there is apt, as in a container; elsewhere a browser is its user's business.
browser:
	@for name in $(BROWSERS); do if command -v $$name > /dev/null; then exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo 'no browser is here: installing Chromium for the tests of reports'; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --yes --no-install-recommends chromium > /dev/null && exit 0; \
	fi; \
	echo 'no browser is here: tests that need one will be skipped; install Chromium to run them'

# -- which versions ---------------------------------------------------------------------------------

UV := .venv-lock/bin/uv
RESOLUTION := $(if $(OLDEST),lowest-direct,highest)
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' --upgrade --resolution $(RESOLUTION)
PROJECT := pyproject.toml --group build
ALL := --extra dev --extra cluster --extra kernels --no-emit-package torch
# Of what torch needs, what requirements-test.txt has already, Triton in another version.
HAS := triton filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy typing-extensions

lock: $(UV)
	$(COMPILE) $(PROJECT) $(ALL) --output-file requirements-test.txt
	$(COMPILE) $(PROJECT) --extra dev --constraint requirements-test.txt \
		--output-file requirements-dev.txt
	$(COMPILE) $(PROJECT) --constraint requirements-test.txt --output-file requirements.txt
	sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml | \
		$(COMPILE) - --no-config $(addprefix --no-emit-package=,$(HAS)) \
		--output-file requirements-torch.txt

$(UV):
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# The ends of the ranges are resolved anew each time, and installed where that changed.
ifneq ($(ENDS),)
$(ENDS): always | $(UV) $(RUN)/python
	@$(COMPILE) $(PROJECT) $(if $(KERNELS),$(ALL),--extra dev) --output-file $@.new
	@cmp -s $@.new $@ || cp $@.new $@
endif

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-lock .venv-guidellm .venv-aiperf $(VLLM) runs
