# make sweep answers the question in ablations/full.yaml; make test needs nothing but Python.
# Every target sets up what it needs; running it again is quick.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help .venv sweep smoke test test-long test-slurm test-vllm test-browser chaos kills simulate perf-env lint format clean

help:
	@echo "make .venv         set up the environment"
	@echo "make sweep         set up, run ablations/full.yaml, write $(OUT)/full/report"
	@echo "make smoke         the same path on a small scale, in minutes"
	@echo "make test          tests that need nothing but Python, with coverage"
	@echo "make test-long     the long ones among them: kills, several processes, searches"
	@echo "make test-slurm    the Slurm executor on a real Slurm, started for the tests"
	@echo "make test-vllm     sampling with vLLM, run for real on the CPU"
	@echo "make test-browser  the report in a real Chromium"
	@echo "make chaos         sweeps on that Slurm whose processes die at random, five seeds"
	@echo "make simulate      do the report's intervals keep their word? the table of docs/statistics.md"
	@echo "make kills         twenty trainings killed at random moments that go on bit for bit"
	@echo "make perf-env      the peers that benchmarks/perf compares with, in .venv-perf"
	@echo "make lint          formatting, lint, types"
	@echo "make format        apply the formatting"
	@echo "make clean         remove caches and build output (keeps $(OUT) and $(VENV))"

.venv: $(VENV)/.installed

# One call for all, so that the resolver sees the constraint on torch from the start.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt -e '.[dev]'
	@touch $@

sweep: .venv
	$(BIN)/python -m harness.sweep ablations/full.yaml --out $(OUT)

smoke: .venv
	$(BIN)/python -m harness.sweep ablations/smoke.yaml --out $(OUT)

test: .venv
	$(BIN)/python -m pytest tests --ignore=tests/browser --ignore=tests/slurm --ignore=tests/vllm \
		-m "not long" -n 2 --dist worksteal --cov --cov-report=term --cov-report=xml

test-long: .venv
	$(BIN)/python -m pytest tests --ignore=tests/browser --ignore=tests/slurm --ignore=tests/vllm \
		-m long -n 2 --dist worksteal

test-browser: .venv
	@command -v chromium >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
		else \
			echo "make test-browser needs Chromium: install the package 'chromium' (Debian: sudo apt-get install chromium)" >&2; \
			exit 1; \
		fi; }
	$(BIN)/python -m pytest tests/browser

# The suite skips where there is no Slurm; this target fails.
test-slurm: .venv
	$(BIN)/python tests/slurm/cluster.py
	$(BIN)/python -m pytest tests/slurm

# Where pip finds no torch for CPUs by itself: TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torch.compile would spend longer on vLLM's sampler than the tests do on everything else.
test-vllm: .venv-vllm/.installed
	TORCH_COMPILE_DISABLE=1 .venv-vllm/bin/python -m pytest tests/vllm
	TORCH_COMPILE_DISABLE=1 .venv-vllm/bin/python -m pytest tests/slurm/test_paper.py -k with_vllm

.venv-vllm/.installed: tests/vllm/requirements.txt tests/vllm/torchvision_on_cpu.py pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r tests/vllm/requirements.txt -e .
	cp tests/vllm/torchvision_on_cpu.py .venv-vllm/lib/python3*/site-packages/
	echo "import torchvision_on_cpu" > $$(echo .venv-vllm/lib/python3*/site-packages)/torchvision_on_cpu.pth
	@touch $@

# test-slurm has one seed.
chaos: .venv
	$(BIN)/python tests/slurm/cluster.py
	CHAOS_SEEDS=1,2,3,4,5 $(BIN)/python -m pytest tests/slurm/test_chaos.py -s

simulate: .venv
	$(BIN)/python -m reports.simulate

# test-long has four of them.
kills: .venv
	KILLS=20 $(BIN)/python -m pytest tests/observe/test_kills.py -s --timeout 3600

perf-env: .venv-perf/.installed

.venv-perf/.installed: benchmarks/perf/requirements.txt
	$(PYTHON) -m venv .venv-perf
	.venv-perf/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/perf/requirements.txt
	@touch $@

lint: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* coverage.xml build dist *.egg-info
	find . -path ./$(VENV) -prune -o -path ./$(OUT) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
