# The front door. `make` alone prints this help; every target installs what it needs on its first call.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv up down status logs url doctor demo notebooks notebooks-check test test-browser lint bench clean

PY := .venv/bin/python
LAB := $(PY) -m workspace_lib.tools.lab
# What a person's shell may hold and a virtual environment must not see.
unexport PYTHONPATH
unexport PYTHONHOME

DEVICE ?= auto
ENGINE ?= auto

help: ## this list
	@echo 'make TARGET, where TARGET is one of'
	@awk 'BEGIN { FS = ":[^#]*## " } /^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Settings: DEVICE=auto|cpu|gpu, ENGINE=auto|local|docker, JUPYTER_PORT=8888, PYTHON=/path/to/python'

venv: ## make .venv and install everything (6.6 GB, once)
	@scripts/make_venv.sh

up: venv ## start JupyterLab and print its URL
	@$(LAB) up --device '$(DEVICE)' --engine '$(ENGINE)'

down: ## stop JupyterLab and its kernels
	@[ -x $(PY) ] && $(LAB) down || { [ ! -x $(PY) ] && echo 'Nothing is installed here, so nothing runs.'; }

status: ## is it running, where, since when, which kernels
	@[ -x $(PY) ] || { echo 'Not installed yet. Begin with: make up'; exit 0; }; $(LAB) status || [ $$? -eq 3 ]

logs: ## the end of JupyterLab's log (FOLLOW=1 keeps printing)
	@[ -x $(PY) ] || { echo 'Not installed yet. Begin with: make up'; exit 0; }; $(LAB) logs $(if $(FOLLOW),--follow)

url: ## print the URL with its token again
	@[ -x $(PY) ] || { echo 'Not installed yet. Begin with: make up'; exit 1; }; $(LAB) url

doctor: ## why the lab does not start here, and what mends it (LANE= FIX=1 JSON=1 EXPLAIN='message or file')
	@scripts/doctor.sh --device '$(DEVICE)' --engine '$(ENGINE)' $(if $(LANE),--lane '$(LANE)') $(if $(FIX),--fix) \
	  $(if $(JSON),--json) $(if $(EXPLAIN),--explain "$$EXPLAIN")

demo: venv ## the whole way from config to report, in three minutes
	@$(PY) -m workspace_lib.tools.demo

notebooks: venv ## run notebooks/*.py and write the .ipynb files anew
	@$(PY) -m workspace_lib.tools.notebooks

notebooks-check: venv ## run the notebooks, compare with what is committed
	@$(PY) -m workspace_lib.tools.notebooks --check

# One thread for each of torch's pools: with two cores and worker processes, more only get in each other's way.
test: venv ## run the tests (ARGS='-k registry' for a part of them)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -q $(ARGS)

test-browser: venv ## open the lab in a headless Chromium and run the tour
	@$(PY) -m pytest -q -m browser tests/browser $(ARGS)

lint: venv ## ruff and mypy
	@status=0; $(PY) -m ruff check . || status=1; $(PY) -m mypy || status=1; exit $$status

bench: venv ## run the benchmarks that need no GPU
	@for script in benchmarks/*.py; do \
	  case $$script in *gpu*) continue;; esac; \
	  [ -f "$$script" ] || { echo 'No benchmarks yet.'; exit 0; }; \
	  echo "== $$script"; $(PY) "$$script" || exit 1; \
	done

clean: ## remove .venv, caches and the lab's state (asks first)
	@read -r -p 'Remove .venv, .lab, build and tool caches? Data, checkpoints and notebooks stay. [y/N] ' answer; \
	[ "$$answer" = y ] || { echo 'Nothing removed.'; exit 0; }; \
	[ ! -x $(PY) ] || $(LAB) down || true; \
	rm -rf .venv .lab build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache; \
	find . -name __pycache__ -type d -not -path './third_party/*' -prune -exec rm -rf {} +; echo 'Clean.'
