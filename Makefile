# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?=
export PYTHON TORCH_INDEX
# A cluster's modules must not reach into the environment; what was compiled once serves every process.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
ENVIRONMENT := constraints.txt pyproject.toml scripts/create-env.sh
DEMO := results/demo

.PHONY: help env demo test lint unit gpu workflow slurm slurm-cluster rehearse-paper schemas constraints clean

help: ## list the targets
	@echo "Targets:"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22
	@echo
	@echo "Variables:"
	@echo "  PYTHON=…          the interpreter to make .venv from, 3.11 or newer (now: $(PYTHON))"
	@echo "  TORCH_INDEX=…     where torch alone is installed from; on a machine without a GPU"
	@echo "                    https://download.pytorch.org/whl/cpu saves gigabytes of CUDA packages"

env: .venv/installed ## make .venv with everything that a study needs

.venv/installed: $(ENVIRONMENT)
	scripts/create-env.sh
	touch $@

.venv/installed-dev: $(ENVIRONMENT)
	scripts/create-env.sh --dev
	touch .venv/installed $@

demo: .venv/installed ## run the study `demo` on this machine's processor, up to figures and report
	$(BIN)/python -m snakemake --profile profiles/local $(DEMO)/report.html
	@echo
	@echo "The study 'demo' is done. Look at:"
	@echo "  report     $(DEMO)/report.html (open it in a browser)"
	@echo "  figures    $(DEMO)/figures/ (SVG, PDF, PNG)"
	@echo "  tables     $(DEMO)/tables/ (CSV, Markdown, LaTeX)"
	@echo "  all cells  $(DEMO)/cells.csv and cells.parquet"

test: lint unit gpu workflow slurm ## run every check and test

lint: .venv/installed-dev ## run the checks that run nothing: style, types, rules
	@echo "== ruff check"
	@$(BIN)/ruff check
	@echo "== ruff format"
	@$(BIN)/ruff format --check
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== snakefmt"
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@echo "== snakemake --lint"
	@$(BIN)/python -m snakemake --profile profiles/local --lint
	@$(BIN)/python -m snakemake --profile profiles/slurm --lint

unit: .venv/installed-dev ## run the unit tests
	@echo "== unit tests"
	@# Each process has a half, in order, and takes of the other's when it is done: what the tests of a file
	@# share is made once.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n 2 --dist worksteal

gpu: .venv/installed-dev ## run the engines on an NVIDIA GPU; skipped where there is none
	@echo "== GPU tests"
	@$(BIN)/python -m pytest tests/gpu -n 0 -q

workflow: .venv/installed-dev ## run whole workflows of a tiny study
	@echo "== workflow tests"
	@# By file: what the tests of one share is run once.
	@$(BIN)/python -m pytest tests/workflow -n 2 --dist loadfile

slurm-cluster: .venv/installed ## start a Slurm cluster on this machine to try the pipeline on; Ctrl-C stops it
	@PYTHONPATH=tests $(BIN)/python -m slurm_cluster

rehearse-paper: .venv/installed ## run the paper's whole study on such a cluster with simulated GPUs; again, it goes on
	@PYTHONPATH=tests $(BIN)/python -m slurm_cluster.rehearsal

slurm: .venv/installed-dev ## run cells and drills on a real Slurm cluster that this starts; needs root
	@echo "== Slurm tests"
	@# By file, in the order that conftest.py gives: what the tests of one share is run once.
	@$(BIN)/python -m pytest tests/slurm --ignore=tests/slurm/test_rehearsal.py -n 5 --dist loadfile --no-loadscope-reorder --durations=15
	@# Its 18 nodes want the machine to themselves.
	@$(BIN)/python -m pytest tests/slurm/test_rehearsal.py -n 0 --durations=5

schemas: .venv/installed ## write the JSON schemas in workflow/schemas anew from the models
	@$(BIN)/python -m shardwatt schemas

constraints: ## renew the pinned versions in constraints.txt, within pyproject.toml's ranges
	scripts/renew-constraints.sh

clean: ## remove caches and build folders; keeps .venv, models, data, logs and results
	rm -rf build src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmarks/out
	find src tests benchmarks workflow -name __pycache__ -type d -prune -exec rm -rf {} +
