# rayvec: `make demo` shows it work, `make test` proves it. Everything lives in .venv and runs/; `make clean` removes both.
SHELL := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := 2.13.0
SERVE  ?= 1
PORT   ?= 8000
RUNS   ?= runs/demo
# Files of tests that run at once.
SIDE_BY_SIDE ?= 2
export PYTHONPATH := platform:.
export TOKENIZERS_PARALLELISM := false
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo cpu)

.PHONY: help setup demo serve test nightly check release audit format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/ready  ## make .venv with everything pinned (skipped when nothing changed)

# torch goes first and alone: pip then takes a CPU build where it finds one, and nothing later pulls another.
$(VENV)/ready: pyproject.toml constraints.txt
	@echo "setup: making $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@env -u PYTHONPATH $(BIN)/pip install --quiet --quiet --disable-pip-version-check torch==$(TORCH)
	@DS_BUILD_OPS=0 $(BIN)/pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "setup: done"

demo: setup  ## text → encoder → vectors → index → served search, on the Python docs of this environment
	@$(BIN)/python -m jobs.demo --recipe tiny.demo $(if $(filter all,$(PACKAGES)),--set 'packages=[]') --set output=$(RUNS) --set serve.port=$(PORT) --set serving=$(if $(filter 0,$(SERVE)),false,true)

serve: setup  ## serve the demo's index again
	@$(BIN)/python -m jobs.serve --recipe tiny.serve --set index=$(RUNS)/index --set port=$(PORT)

test: setup  ## the whole suite without a GPU
	@$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder -m "not gpu and not nightly" tests platform/rayvec --doctest-modules

nightly: setup  ## slow variants; several nodes; every command of the docs; embedding and indexing killed, fifty times; long sequences of updates
	@$(BIN)/python -m pytest -m "nightly and not gpu" tests
	@RAYVEC_KILLS=50 $(BIN)/python -m pytest -s tests/cluster/test_embed_chaos.py
	@RAYVEC_KILLS=50 RAYVEC_UPDATES=20 $(BIN)/python -m pytest -s -k "random_moments or any_updates" tests/jobs/test_index_kill.py tests/pipelines/test_update.py

check: setup  ## format, lint, types, floors, images, manifests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/yamllint --strict -c .yamllint.yaml infra
	@$(BIN)/hadolint infra/docker/Dockerfile.*
	@$(BIN)/shellcheck -s bash .ci/run infra/docker/*.sh infra/kuberay/*.sh
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# dist/ gets all of it; the SBOM and the licences are those of an environment that holds the wheel and what it needs, alone.
release: setup  ## wheel, sdist, SBOM, licences, known vulnerabilities
	@rm -rf dist build/release
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt '.[release]'
	@$(BIN)/python -m build
	@$(PYTHON) -m venv build/release
	@env -u PYTHONPATH build/release/bin/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@env -u PYTHONPATH build/release/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json build/release/bin/python
	@$(BIN)/pip-licenses --python=build/release/bin/python --format=markdown --with-urls --output-file=dist/LICENCES.md
	@rm -rf build/release
	@$(MAKE) --no-print-directory audit

# Of every pin. A vulnerability fails it, unless infra/audit-ignore.txt names it with a reason. It asks a database over the
# network, and writes its report only when it has an answer; where there is none, it says so, and nothing is known.
audit:  ## known vulnerabilities of the pinned versions
	@mkdir -p dist && rm -f dist/audit.json
	@$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt --format json --output dist/audit.json \
	  $$(sed -E 's/[[:space:]]*#.*//; /^$$/d; s/^/--ignore-vuln /' infra/audit-ignore.txt) && exit 0; \
	if test -s dist/audit.json; then echo "pip-audit: vulnerabilities, see dist/audit.json; pin fixed versions, or add to infra/audit-ignore.txt why not"; exit 1; \
	else echo "pip-audit: could not ask its database (see above), so nothing is known; run make audit where it can"; fi

format: setup  ## put the code in shape
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:  ## remove .venv and runs
	rm -rf $(VENV) runs build dist platform/*.egg-info
