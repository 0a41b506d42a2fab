# Every target sets up what it needs. PYTHON chooses the interpreter that makes the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONFIG ?= configs/$(or $(DATA),digits).yaml
DEMO ?= runs/demo$(addprefix -,$(DATA))
MINUTES ?= 5
OUT ?= docs/measurements
JOBS ?= 2
# Data whose trainings take one core each, so that JOBS of them run at a time; others take the whole machine.
SMALL_DATA := digits leaves8 leaves16 cifar10_16
PYTHON_OLDEST ?= python3.12
COMPARE ?= short
COMPARE_short := --budget small --num_images 512
COMPARE_full := --budget paper
BUDGET ?= small

.DEFAULT_GOAL := help
.PHONY: help setup demo compare ablation-bnr frontier test test-extras test-oldest quick lint format docs audit bench endurance gpu-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "warm_lightning needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,inception,effnet,lmdb]'
	touch $(READY)

setup: $(READY)  ## make the virtual environment with pinned dependencies (some minutes, 6 GB)

demo: setup  ## train on digits, sample and score: about 5 minutes on two CPU cores; DATA=cifar10_16 ARGS=--data.path=cifar10.zip for other data
	$(BIN)/warm fit --config $(CONFIG) --trainer.default_root_dir $(DEMO) --ckpt_path last $(ARGS)
	$(BIN)/warm test --config $(CONFIG) --trainer.default_root_dir $(DEMO) $(ARGS)
	$(BIN)/warm generate --ckpt_path $(DEMO) --seeds 0-63 --outdir $(DEMO)/images --grid $(DEMO)/samples.png
	@echo
	@echo 'The demo is in $(DEMO):'
	@echo '  samples.png             64 samples: open it with any image viewer'
	@echo '  scores.json             scores, what halves of the data and a Gaussian get, and the protocol'
	@echo '  checkpoints/last.ckpt   warm generate --ckpt_path $(DEMO) --seeds 64-127 --outdir more'
	@echo '  events.out.tfevents…    $(BIN)/tensorboard --logdir $(DEMO)'

compare: setup  ## train, sample and score every system on digits: under an hour on two CPU cores; COMPARE=full for whole chains
	$(BIN)/python -m experiments run experiments/papers/compare.yaml --data digits --jobs $(JOBS) $(or $(COMPARE_$(COMPARE)),$(error COMPARE is short or full)) $(ARGS)

ablation-bnr: setup  ## the BNR sweep: under an hour on two CPU cores, on digits or DATA=leaves8; DATA=cifar10 BUDGET=paper for the paper's
	$(BIN)/python -m experiments run experiments/papers/ablation_bnr.yaml --data $(or $(DATA),digits) --budget $(BUDGET) $(if $(or $(filter $(SMALL_DATA),$(or $(DATA),digits)),$(filter command,$(origin JOBS))),--jobs $(JOBS)) $(ARGS)

frontier: setup  ## every diffusion that treats frequencies differently, on leaves8 or DATA=leaves16; ARGS=--plan says what it costs, about 2 hours on two CPU cores with leaves8; goes on where it stopped
	$(BIN)/python -m experiments run experiments/papers/frontier.yaml --data $(or $(DATA),leaves8) --budget $(BUDGET) --jobs $(JOBS) $(ARGS)

test: setup  ## run all tests that need no GPU, JOBS at a time (9 to 13 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not gpu' $(ARGS)

$(VENV)/.extras: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[extras,browser]'
	touch $@

test-extras: $(VENV)/.extras  ## run the tests of what needs heavy extras: trackers, diffusers, deepinv, the Hub, Gradio (with Chromium) and others
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/extras $(ARGS)

$(VENV)/oldest/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON_OLDEST) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[dev,inception,effnet,lmdb]'
	touch $@

test-oldest: $(VENV)/oldest/.ready  ## run all tests with Python 3.12 and the oldest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(VENV)/oldest/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not gpu' $(ARGS)

quick: setup  ## run the tests of mathematics, units and imports, without training (under a minute on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m quick $(ARGS)

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## the site into site/; a broken link or an unresolved reference is an error
	$(BIN)/zensical build --clean --strict
	@echo 'open site/index.html; for the search: $(BIN)/python -m http.server --directory site'

# An environment of its own: the audit reads constraints.txt and needs none of what is in it.
$(VENV)/audit/.ready: constraints.txt
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --constraint constraints.txt pip-audit
	touch $@

audit: $(VENV)/audit/.ready  ## look up known vulnerabilities of the pinned dependencies (needs the network)
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bench: setup  ## measure speed and memory on this machine into bench.json (some minutes)
	$(BIN)/python -m experiments.benchmarks.bench --out bench.json

endurance: setup  ## end commands at random moments and let them go on, TRIALS times; the table goes to runs/endurance (an hour); ARGS=--overlays for the training of every overlay
	$(BIN)/python -m experiments.benchmarks.endurance --trials $(or $(TRIALS),100) $(ARGS)

gpu-check:  ## on a machine with one GPU, no network needed: GPU tests, then MINUTES of configs/cifar10.yaml on DATA
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m experiments.benchmarks.gpu_check --minutes $(MINUTES) --data $(or $(DATA),data) --out $(OUT)

clean:  ## remove the virtual environment and caches, but no results
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache build
