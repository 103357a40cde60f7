# Two commands do everything on a machine with Python 3.10+ and make: `make quickstart` and `make test`.
# PYTHON= chooses the interpreter, VENV= the place of the virtual environment, JOBS= the test processes.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin

# Pinned by hash for Linux x86-64; elsewhere, or with `make setup LOCK=`, the ranges of setup.py decide.
LOCK := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),requirements/linux-x86_64.txt)

STAMP := $(VENV)/set-up
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would compile torch anew, for seconds.
UV := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python
# pb1-detectron2 holds no C++ sources, so that step of its build is left out; its setup.py imports torch.
DETECTRON2_OPTIONS := --no-build-isolation-package pb1-detectron2 \
	--config-settings-package "pb1-detectron2:--global-option=build_py" \
	--config-settings-package "pb1-detectron2:--build-option=--skip-build"
HAS_DETECTRON2 := $(BIN)/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("detectron2") is None)'
# The entries of the pinned file whose names match (~) or do not match (!~) a pattern: $(call pick,~,uv|wheel)
pick = awk '/^[a-z]/ { take = $$1 $(1) /^($(2))==/ } take' $(LOCK)

# `make carry`: what a machine with torch, torchvision, OpenCV and the like lacks, for one without network (docs/gpu.md).
# detectron2's wheel is named after the Python that builds it, though all of it is Python: it has a step of its own.
CARRY ?= build/site
CARRY_PYTHON ?= 3.12
CARRIED := antlr4-python3-runtime|cloudpickle|fvcore|hotcoco|hydra-core|iopath|msgspec|omegaconf|portalocker|pycocotools|tabulate|termcolor|yacs

.PHONY: help setup oldest quickstart test lint docs lock carry clean

help:
	@echo "make quickstart   real handwriting: pretrain a small ResNeXt, fine-tune the detector, evaluate, draw"
	@echo "make test         ruff, mypy and every test"
	@echo "make setup        only the virtual environment $(VENV); the others do this first"
	@echo "make oldest       an environment of the oldest versions that setup.py allows: make oldest VENV=/tmp/oldest"
	@echo "make lint         ruff and mypy"
	@echo "make docs         one site of the pages and the API reference: build/docs/README.html"
	@echo "make lock         pin the ranges of setup.py and requirements/*.in anew (FLAGS=--upgrade for newer versions)"
	@echo "make carry        a folder of packages for a GPU machine without network, CARRY=build/site (docs/gpu.md)"
	@echo "make clean        remove $(VENV) and caches"

setup: $(STAMP)

$(STAMP): setup.py $(wildcard requirements/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10: name a newer one, make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(LOCK),)
	$(call pick,~,uv|setuptools|wheel) > $(VENV)/build.txt
	$(call pick,!~,pb1-detectron2) > $(VENV)/libraries.txt
	$(call pick,~,pb1-detectron2) > $(VENV)/detectron2.txt
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r $(VENV)/build.txt
	$(UV) --no-deps --require-hashes --no-build-isolation -r $(VENV)/libraries.txt
	$(HAS_DETECTRON2) || $(UV) --no-deps --require-hashes $(DETECTRON2_OPTIONS) -r $(VENV)/detectron2.txt
	$(UV) --no-deps --no-build-isolation -e .
else
	$(BIN)/python -m pip install -q -r requirements/build.in
	$(UV) --no-build-isolation -e '.[dev]'
	$(HAS_DETECTRON2) || $(UV) $(DETECTRON2_OPTIONS) -r requirements/detectron2.in
endif
	$(BIN)/python -m resnext_det
	@touch $@

# In an environment of its own; Python 3.10, since newer ones lack wheels of the oldest versions.
oldest:
	@test ! -e $(STAMP) || { echo "error: $(VENV) is that of make setup: name another one, VENV=FOLDER" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements/build.in
	$(UV) --no-build-isolation-package resnext-det --resolution lowest-direct -e '.[dev]'
	$(HAS_DETECTRON2) || $(UV) $(DETECTRON2_OPTIONS) -r requirements/detectron2.in
	$(BIN)/python -m resnext_det

quickstart: setup
	$(BIN)/python tools/quickstart.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	rm -rf build/api build/docs
	$(BIN)/python -m sphinx.ext.apidoc -q -T -o build/api resnext_det
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs
	@echo build/docs/README.html

test: lint
	@command -v $${CHROMIUM:-chromium} chromium-browser google-chrome google-chrome-stable >/dev/null || \
		echo "no Chromium: the tests of the report's page will be skipped (apt-get install chromium, or set CHROMIUM)"
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lock: setup
	$(BIN)/uv pip compile -q --python $(BIN)/python --universal --python-version 3.10 --generate-hashes $(FLAGS) \
		--no-build-isolation-package pb1-detectron2 --no-annotate --custom-compile-command "make lock" \
		--extra dev setup.py requirements/build.in requirements/detectron2.in -o requirements/linux-x86_64.txt

carry: setup
	rm -rf $(CARRY) && mkdir -p $(CARRY)
	$(call pick,~,$(CARRIED)) > $(CARRY).txt
	$(call pick,~,pb1-detectron2) > $(CARRY)-detectron2.txt
	$(UV) --target $(CARRY) --python-version $(CARRY_PYTHON) --python-platform x86_64-manylinux_2_28 --no-deps \
		--require-hashes -r $(CARRY).txt
	$(UV) --target $(CARRY) --no-deps --require-hashes $(DETECTRON2_OPTIONS) -r $(CARRY)-detectron2.txt
	find $(CARRY) -name __pycache__ -type d -prune -exec rm -rf {} +
	@du -sh $(CARRY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
