# make quickstart   set up, train Decision Mamba and Decision Transformer, print which one is better
# make test         set up, lint, type-check, test
# make test-pythons install dmray for each Python from 3.11 to 3.13 that is here, and run the tests without Ray
# make fuzz         give odd inputs to everything that reads files, options or answers, for ten minutes
# make chaos        all tests on Ray: kills and freezes, three random orders; also what make test leaves out
# make soak         200 short trials on Ray under random faults for an hour
# make bullet       install the packages of the bullet-* tasks (docs/bullet.md)
# make lint         check style and types, and ask once a day for known vulnerabilities (requirements/audit.py)
# make images-pin   write the digests of the images that docker/ names (needs docker or crane, and network)
# make mlflow       open MLflow on the runs of this checkout
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test suite test-pythons fuzz chaos soak setup bullet mlflow lint format images-pin clean

quickstart: setup
	$(BIN)/python -m dmray.sweep sweeps/quickstart.yaml --resume

test: setup
	$(MAKE) --jobs 2 lint suite

suite: setup
	$(BIN)/python -m tests.compile_loops
	$(BIN)/python -m pytest --numprocesses 4 --dist loadgroup --no-loadscope-reorder

test-pythons:
	$(PYTHON) requirements/test_pythons.py

fuzz: setup
	$(BIN)/python -m tests.fuzz --minutes 10

chaos: setup
	DMRAY_CHAOS=3 $(BIN)/python -m pytest -m "ray or chaos"

soak: setup
	$(BIN)/python -m tests.on_ray.soak

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python requirements/audit.py

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

images-pin: setup
	$(BIN)/python docker/pin_images.py

bullet: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements/bullet.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements/bullet-nodeps.txt

mlflow: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --port 5000

# Set-up is repeated when one of these two files has changed. torch is installed first, so that pip takes a CPU
# build if the package index has one.
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-3.* runs
