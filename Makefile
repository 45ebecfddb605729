# Every target sets up what it needs by itself: a virtual environment with pinned dependencies, and the package.
#
#   make demo     the whole loop on real models: capture, replay, measure, diff (writes demo/)
#   make test     ruff, mypy, the tests, and the tests of the built wheel with the sources out of reach
#   make bench    the benchmarks, each printing its figure
#   make capture-matrix   capture 64 models in every phase and every causal-LM type of transformers, check each, write
#                 docs/models.md (half an hour on 2 cores; goes on where it stopped). ONLY=REGEX, SLICE=I/N: a part;
#                 AGAIN=failed, stale or all: measure again; JOBS=N: processes
#   make nightly  the same from what changed, and an error where a goal is missed
#   make validate the accuracy scoreboard against the tables in FORETRACE_GROUNDTRUTH, into docs/accuracy.md
#   make proto    regenerate the protobuf code

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -p no:benchmark -n 2 -q
WHEEL_WORK := $(CURDIR)/.wheel

.PHONY: demo test lint types unit wheel bench validate fit-profiles capture-matrix nightly proto golden clean

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh demo

test: lint types unit wheel

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Foretrace needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[capture,onnx,dev]'
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(PYTEST) tests

# The wheel is installed into an environment that sees the pinned dependencies but not the checkout, and tests run from
# a copy of tests/ elsewhere. Only those that a wheel can break: every module imported, every file of data read (the
# hardware library, kernel profiles, the catalogue, protobuf forms), the command line. The rest ran from the sources.
WHEEL_TESTS := tests/house tests/face tests/hardware/test_library.py tests/ir/test_store.py tests/ir/test_files.py \
	tests/replay/test_physics_profiles.py tests/replay/parallel/test_command.py tests/traces/test_chakra.py \
	tests/traces/test_store.py

wheel: $(READY)
	rm -rf $(WHEEL_WORK) && mkdir -p $(WHEEL_WORK)/run
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL_WORK) .
	$(PYTHON) -m venv $(WHEEL_WORK)/venv
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(WHEEL_WORK)/dependencies
	cp $(WHEEL_WORK)/dependencies "$$($(WHEEL_WORK)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(WHEEL_WORK)/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(WHEEL_WORK)/*.whl
	cp -r tests pyproject.toml $(WHEEL_WORK)/run
	cd $(WHEEL_WORK)/run && ../venv/bin/python -m pytest -p no:benchmark -n 2 -q -m "not slow and not checkout" $(WHEEL_TESTS)
	rm -rf $(WHEEL_WORK)

bench: $(READY)
	$(BIN)/python -m pytest -q -s -p no:xdist benchmarks

MATRIX = $(BIN)/python benchmarks/capture_matrix.py $(if $(ONLY),--only '$(ONLY)') $(if $(SLICE),--slice $(SLICE)) \
	$(if $(JOBS),--jobs $(JOBS))

validate: $(READY)
	$(BIN)/python benchmarks/accuracy.py

fit-profiles: $(READY)
	$(BIN)/python benchmarks/fit_profiles.py
	$(BIN)/python benchmarks/fit_training.py

capture-matrix: $(READY)
	$(MATRIX) $(if $(AGAIN),--again $(AGAIN))

nightly: $(READY)
	$(MATRIX) --again $(or $(AGAIN),stale) --check

golden: $(READY)
	FORETRACE_REGENERATE=1 $(PYTEST) -n 0 tests

proto:
	rm -rf .protoc && $(PYTHON) -m venv .protoc
	.protoc/bin/python -m pip install --quiet 'grpcio-tools==1.59.*' 'setuptools<81'
	.protoc/bin/python -m grpc_tools.protoc -I src --python_out=src src/foretrace/ir/graph.proto
	rm -rf .protoc

clean:
	rm -rf $(VENV) .wheel demo .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info src/*.egg-info
