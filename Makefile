# The front door. `make` alone prints this help; `make up` and `make test` install what they need on their first call.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv up down restart status logs url shell exec doctor gpu-check report build rebuild wheels train study tensorboard prepare demo notebooks notebooks-check test test-browser pictures test-container test-compat lint bench bench-gpu profile clean

PY := .venv/bin/python
# One front door for three lanes. A host with Docker needs no .venv.
FRONT := scripts/front.sh
WISH = --device '$(DEVICE)' --engine '$(ENGINE)'
RUN = $(FRONT) run $(WISH) --
# Where nothing is here yet, it first brings up what `make up` would choose.
SET_UP_AND_RUN = $(FRONT) set-up-and-run $(WISH) --
# What a person's shell may hold and a virtual environment must not see.
unexport PYTHONPATH
unexport PYTHONHOME

# What a person says in words of their own reaches a recipe through the environment, to the letter: make would take $ for
# a variable, the shell a quote for its own.
WORDS := CMD CONFIG ARGS JOB EXPLAIN GPUS NNODES NODE_RANK MASTER
$(foreach name,$(WORDS),$(if $(filter-out undefined,$(origin $(name))),$(eval override export $(name) := $$(value $(name)))))

DEVICE ?= auto
ENGINE ?= auto

help: ## this list
	@echo 'make TARGET, where TARGET is one of'
	@awk 'BEGIN { FS = ":[^#]*## " } /^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Settings: DEVICE=auto|cpu|gpu, ENGINE=auto|local|docker, JUPYTER_PORT=8888, PYTHON=/path/to/python'

venv: ## make .venv and install everything (6.6 GB, once)
	@scripts/make_venv.sh

up: ## start JupyterLab and print its URL: GPU container, CPU container or .venv (FORCE=1: even if that ends jobs)
	@$(FRONT) up $(WISH)

down: ## stop JupyterLab and its kernels; data, volumes and images stay
	@$(FRONT) down $(WISH)

restart: ## down, then up in the same lane
	@$(FRONT) restart $(WISH)

status: ## what runs, where, since when; jobs, and how to go on with those cut off
	@$(FRONT) status $(WISH)

logs: ## the end of JupyterLab's log, or a job's: JOB=name (FOLLOW=1 keeps printing)
	@$(FRONT) logs $(WISH) "--job=$$JOB" $(if $(FOLLOW),--follow)

url: ## print the URL with its token again
	@$(FRONT) url $(WISH)

shell: ## a shell where the lab runs
	@$(RUN) bash

exec: ## a command where the lab runs: make exec CMD='workspace config lenet/lenet5_mnist5k.py'
	@$(RUN) bash -c "$$CMD"

train: ## train: CONFIG=lenet/lenet5_mnist5k.py ARGS='--seed 1' (DETACH=1: a job; GPUS=8; NNODES=2 NODE_RANK=0 MASTER=host:29500)
	@$(FRONT) train $(WISH) "--config=$$CONFIG" "--args=$$ARGS" $(if $(DETACH),--detach) \
	  "--gpus=$$GPUS" "--nnodes=$$NNODES" "--node-rank=$$NODE_RANK" "--meet-at=$$MASTER"

build: ## build the lab's image (OFFLINE=1: from docker/wheels; CA_CERT=file: a company's certificate)
	@$(FRONT) build $(WISH)

rebuild: ## build it from scratch, but for the compiled mmcv
	@$(FRONT) rebuild $(WISH)

wheels: ## fetch into docker/wheels all that a build needs, for one without a network
	@$(FRONT) wheels $(WISH)

gpu-check: ## does PyTorch compute on the GPU? Fails where one was asked for and is not there
	@$(FRONT) gpu-check $(WISH)

report: ## versions of driver, CUDA, cuDNN, torch, every package, image, commit: work_dirs/report.json
	@$(FRONT) report $(WISH)

study: ## mmclassification's source, editable, into third_party/, to step into with the debugger
	@$(RUN) scripts/study.sh

tensorboard: ## TensorBoard of work_dirs/ on http://127.0.0.1:6006 (TENSORBOARD_PORT=)
	@$(FRONT) tensorboard $(WISH)

prepare: ## a shell that may write into the data set
	@$(FRONT) prepare $(WISH)

doctor: ## why the lab does not start here, and what mends it (LANE= FIX=1 JSON=1 EXPLAIN='message or file')
	@scripts/doctor.sh --device '$(DEVICE)' --engine '$(ENGINE)' $(if $(LANE),--lane '$(LANE)') $(if $(FIX),--fix) \
	  $(if $(JSON),--json) $(if $(EXPLAIN),--explain "$$EXPLAIN")

demo: ## the whole way from config to report, in three minutes
	@$(SET_UP_AND_RUN) python -m workspace_lib.tools.demo

notebooks: venv ## run notebooks/*.py and write the .ipynb files anew
	@$(PY) -m workspace_lib.tools.notebooks

notebooks-check: venv ## run the notebooks, two at a time, compare with what is committed
	@$(PY) -m workspace_lib.tools.notebooks --check --jobs 2

# One thread for each of torch's pools: with two cores and worker processes, more only get in each other's way.
test: ## run the tests (ARGS='-k registry' for a part of them)
	@$(SET_UP_AND_RUN) env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python -m pytest -q $(ARGS)

test-browser: venv ## run every notebook in a headless Chromium, and move the widgets
	@$(PY) -m pytest -q -m browser tests/browser $(ARGS)

pictures: venv ## the README's pictures of the lab, photographed anew in a headless Chromium
	@scripts/make_pictures.sh

test-container: venv ## build the image on a stand-in base and prove the stack (Debian or Ubuntu, root; 20 min)
	@tests/container/run $(ARGS)

ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=$(CURDIR)
PEER := $(ONE_THREAD) .venv-peer/bin/python
test-compat: venv ## every recipe of mmclassification 0.25 in our loops, and its models beside ours (20 min; ARGS='--only resnet/')
	@tests/compat/make_peer.sh
	@status=0; $(PEER) tests/compat/sweep.py $(ARGS) || status=1; \
	$(PEER) -m pytest -q -m slow tests/compat || status=1; exit $$status

lint: venv ## ruff, mypy; hadolint, shellcheck, yamllint, the Compose schema
	@status=0; $(PY) -m ruff check . || status=1; $(PY) -m mypy || status=1; scripts/lint_stack.sh || status=1; exit $$status

bench: venv ## speed beside the peers, without a GPU: 12 minutes (ARGS='--images DIR', ARGS=--quick); benchmarks/results/
	@benchmarks/make_peers.sh
	@$(ONE_THREAD) $(PY) benchmarks/run.py $(ARGS)

bench-gpu: ## speed on a GPU, under 10 minutes (ARGS='--images DIR --cifar10 DIR'; without a GPU ARGS='--device cpu --toy')
	@$(SET_UP_AND_RUN) python benchmarks/bench_gpu.py $(ARGS)

profile: ## where a step's time goes: CONFIG=lenet/lenet5_mnist5k.py ARGS='--steps 50'; a page and a trace
	@$(SET_UP_AND_RUN) workspace profile "$$CONFIG" $(ARGS)

clean: ## remove .venv, caches and the lab's state (asks first)
	@read -r -p 'Remove .venv, .venv-peer, .venv-bench, .lab, build and tool caches? Data, checkpoints and notebooks stay. [y/N] ' answer; \
	[ "$$answer" = y ] || { echo 'Nothing removed.'; exit 0; }; \
	$(FRONT) down $(WISH) || true; \
	rm -rf .venv .venv-peer .venv-bench .lab build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache; \
	find . -name __pycache__ -type d -not -path './third_party/*' -prune -exec rm -rf {} +; echo 'Clean.'
