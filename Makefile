# Every target sets up the virtual environment of the checkout by itself.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SEED ?= 0
# With worksteal, a process that is done takes tests from the end of the other's list; most files stay together.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal
INSTALLED := $(VENV)/.installed
# Tests start hundreds of processes: modules are compiled once, also where an image asks for no files of that.
unexport PYTHONDONTWRITEBYTECODE

# Debian keeps what `python3 -m venv` needs in a package of its own.
GET_VENV := { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing python3-venv" && \
  apt-get update -qq && apt-get install -y -qq python3-venv; } || \
  { echo "error: $(PYTHON) cannot make a virtual environment; as root: apt-get install python3-venv"; exit 1; }

CLUSTER_PACKAGES := slurm-wlm munge iproute2 debootstrap zsh fish

.PHONY: demo test test-all test-cluster test-browser bench check docs clean

demo: $(INSTALLED)
	$(RUN) launch/demo.py seed=$(SEED)

# Every promise at its smallest size.
test: $(INSTALLED)
	$(PYTEST) -m "not grid and not cluster and not browser"
	$(MAKE) check

# The large grids, which `make test` leaves out; with PART=2/32, a thirty-second of them.
test-all: $(INSTALLED)
	$(PYTEST) -m grid $(PART:%=--part %)

# What needs root and Debian: a SLURM of two nodes, hosts in network namespaces, a root to install in, shells. One at a time;
# with PART=2/32, a thirty-second of them.
test-cluster: $(INSTALLED)
	@dpkg -s $(CLUSTER_PACKAGES) >/dev/null 2>&1 || { echo "installing $(CLUSTER_PACKAGES)" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CLUSTER_PACKAGES); }
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m cluster $(PART:%=--part %)

# The report and the site in headless Chromium, which only Debian's package gives: no page asks for anything, all fit.
test-browser: $(INSTALLED)
	@command -v chromium >/dev/null || { echo "installing chromium" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m browser

# The project beside the same work written out plainly; benchmarks/README.md.
bench: $(INSTALLED)
	$(RUN) benchmarks/bench.py

# The pages as a site, for a server or to be opened from the disk; a link that leads nowhere is an error.
docs: $(INSTALLED)
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --write-all -c docs . build/site
	@echo "build/site/index.html"

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(GET_VENV)
	@$(PYTHON) -m venv $(VENV)
	@echo "installing the dependencies into $(VENV) (several GB with PyTorch; once)"
	$(RUN) -m pip install --disable-pip-version-check --quiet --progress-bar on -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
