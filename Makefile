# From a fresh clone to the rendered book. `make help` lists what there is.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PROFILE ?= lab
PORT ?= 8000
MODEL ?=
DEVICE ?=
# Notebooks at a time, unless -j says so: one for each core, four at most; on a GPU one.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
CORES_USED := $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4)))
JOBS ?= $(if $(filter paper,$(PROFILE)),1,$(CORES_USED))
PARALLEL = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))
BUILD := build/$(PROFILE)

.PHONY: help
help:
	@echo 'make book [PROFILE=lab]  run the notebooks, build the site, print its path'
	@echo 'make serve               show the built site at http://localhost:$(PORT)/'
	@echo 'make test                everything that proves it: lint, types, notebooks, site, tests'
	@echo 'make unit                the unit and golden tests alone'
	@echo 'make lint                ruff and mypy'
	@echo 'make zoo [MODEL=clip] [DEVICE=cpu]  train the miniature networks again (all, or one)'
	@echo 'make lab-data            render the miniature benchmark under data/lab again'
	@echo 'make coverage            how often the intervals hold the truth, simulated on the recorded counts'
	@echo 'make attend              the diffusion model with and without its attention'"'"'s own loss (hours)'
	@echo 'make bench               CLIPer, PnP-OVSS against plain transcriptions; ms an image, of every method'
	@echo 'make env                 the Python environment alone'
	@echo 'make lock                resolve requirements.in into requirements.lock again'
	@echo 'make clean               remove what was built (distclean: the environment too)'
	@echo
	@echo 'Profiles: lab (default; laptop), smoke (a handful of images), paper (real checkpoints, GPU).'
	@echo 'As many notebooks run at a time as there are cores, four at most; JOBS=1 changes that.'

# --- Environment ---------------------------------------------------------------------------------
# The active conda environment if it is named ovss, else .venv. The stamp is written last, so that
# a half-made environment is made again.
ifeq ($(CONDA_DEFAULT_ENV),ovss)
  # Quoted for the shell: a path may hold blanks and more.
  BIN := '$(subst ','"'"',$(CONDA_PREFIX))/bin'
  export PATH := $(CONDA_PREFIX)/bin:$(PATH)
  export JUPYTER_PATH := $(CONDA_PREFIX)/share/jupyter
  STAMP := build/conda-env
  $(STAMP): pyproject.toml
	@mkdir -p build
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
else
  # Relative, so that the checkout may lie anywhere.
  BIN := .venv/bin
  export PATH := $(CURDIR)/.venv/bin:$(PATH)
  export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter
  STAMP := .venv/.ovss
  $(STAMP): .venv/.complete pyproject.toml
	@.venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
  .venv/.complete: requirements.lock tools/make_env.sh
	@bash tools/make_env.sh .venv
	@touch $@
endif

PY := $(BIN)/python

# Nothing of the user's home reaches a notebook: no kernels, start-up files, styles or packages.
export PYTHONNOUSERSITE := 1
export PYTHONHASHSEED := 0
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_CONFIG_DIR := $(CURDIR)/build/home/jupyter-config
export JUPYTER_DATA_DIR := $(CURDIR)/build/home/jupyter-data
export IPYTHONDIR := $(CURDIR)/build/home/ipython
export MPLCONFIGDIR := $(CURDIR)/build/home/matplotlib

.PHONY: env
env: $(STAMP)

.PHONY: lock
lock:
	@bash tools/make_lock.sh

# --- Notebooks -----------------------------------------------------------------------------------
# What the lab measured is committed under data/results; other profiles than lab and paper write
# beside their build.
# The longest start first, so that none is left to run alone at the end.
LONGEST := 2-pnp-ovss/tables-pnp 1-cliper/tables 1-cliper/ablations 2-pnp-ovss/failures \
    1-cliper/fine-grained-compensation 2-pnp-ovss/reward-search 2-pnp-ovss/gradcam-and-dropout
ALL_SOURCES := $(sort $(wildcard notebooks/*/*.md))
FIRST := $(filter $(ALL_SOURCES),$(LONGEST:%=notebooks/%.md))
SOURCES := $(FIRST) $(filter-out $(FIRST),$(ALL_SOURCES))
EXECUTED := $(SOURCES:notebooks/%.md=$(BUILD)/notebooks/%.ipynb)
PARAMETERS := notebooks/profiles/$(PROFILE).yml
PACKAGE := $(shell find ovss -name '*.py')
DATA := $(wildcard data/lab/zoo/*/* data/lab/ImageSets/*/* data/published/* data/vocabularies/*)
ifeq ($(filter $(PROFILE),lab paper),)
  export OVSS_RESULTS := $(CURDIR)/$(BUILD)/results
endif
RESULTS := "$${OVSS_RESULTS:-data/results}/$(PROFILE)"
ifneq ($(PROFILE),paper)
  export HF_HUB_OFFLINE := 1
endif

# Notebooks that only read what the others have measured: they run last, and again when a number
# under the results folder has changed.
READERS := $(filter notebooks/5-together/% notebooks/appendix/%,$(SOURCES))
READERS_EXECUTED := $(READERS:notebooks/%.md=$(BUILD)/notebooks/%.ipynb)
WRITERS_EXECUTED := $(filter-out $(READERS_EXECUTED),$(EXECUTED))

$(BUILD)/profile: $(PARAMETERS) | $(STAMP)
	@mkdir -p $(@D) build/home
	@$(PY) tools/check_profile.py $<
	@touch $@

$(BUILD)/notebooks/%.ipynb: notebooks/%.md $(BUILD)/profile $(PACKAGE) $(DATA) requirements.lock \
    tools/run_notebook.py | $(STAMP)
	@mkdir -p $(@D)
	@$(PY) tools/run_notebook.py $< $@ --profile $(PARAMETERS)

$(READERS_EXECUTED): $(BUILD)/numbers.sha256
$(BUILD)/numbers.sha256: $(WRITERS_EXECUTED) tools/results_digest.py | $(STAMP)
	@$(PY) tools/results_digest.py $(RESULTS) $@

.PHONY: notebooks
notebooks: $(EXECUTED)

# --- Site ----------------------------------------------------------------------------------------
# Built whole each time: Sphinx forgets the warnings of the pages it does not read again.
SITE := $(BUILD)/site/_build/html

.PHONY: site book serve
site: $(STAMP)
	@$(MAKE) --no-print-directory $(PARALLEL) notebooks
	@$(PY) tools/build_site.py $(PROFILE)

book: site
ifeq ($(PROFILE),lab)
	@$(PY) tools/readme_table.py --write
endif
	@echo "The book: $$PWD/$(SITE)/index.html"

serve: | $(STAMP)
	@test -f $(SITE)/index.html || { echo 'No site yet: run `make book` first.' >&2; exit 1; }
	@echo 'http://localhost:$(PORT)/ (Ctrl-C stops)'
	@$(PY) -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

# --- Checks --------------------------------------------------------------------------------------
.PHONY: lint unit test
lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# As many tests at a time as notebooks; a file's tests stay together and share what they load.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(CORES_USED) --dist loadfile

unit: $(STAMP)
	@$(PYTEST) -m 'not site'

# The tests come last, so that the last line of the output is pytest's.
test: lint
	@$(MAKE) --no-print-directory PROFILE=smoke site
	@OVSS_SITE=build/smoke/site/_build/html $(PYTEST)

# --- The lab -------------------------------------------------------------------------------------
.PHONY: zoo lab-data bench coverage attend
zoo: $(STAMP)
	@$(PY) -m ovss.lab.zoo $(MODEL) $(if $(DEVICE),--device $(DEVICE))

lab-data: $(STAMP)
	@$(PY) -m ovss.lab.write

bench: $(STAMP)
	@$(PY) tools/bench $(if $(DEVICE),--device $(DEVICE))

coverage: $(STAMP)
	@$(PY) tools/coverage.py --profile $(PROFILE)

attend: $(STAMP)
	@$(PY) tools/attend.py $(if $(DEVICE),--device $(DEVICE))

# --- Cleaning ------------------------------------------------------------------------------------
.PHONY: clean distclean
clean:
	rm -rf build .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find ovss tests tools -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv ovss.egg-info
