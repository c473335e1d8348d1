# make demo       install, then the whole chain on this machine: about 15 minutes after installation
# make demo-full  the same with the budget that makes a good small model
# make test       install, then the default suite and every check
# make test-slow  the slow suite
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# The wheel of llama-cpp-python is built once and kept beside pip's own cache. Without AMX: llama.cpp's kernels for it crash on
# Q4 models (ggml-org/llama.cpp issue 20824).
WHEELS ?= $(shell $(PYTHON) -m pip cache dir)/sysscan-models/no-amx
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
LLAMA := $(shell sed -n 's/^llama_cpp_python==//p' constraints.txt)
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN := $(CURDIR)/$(VENV)/bin/sysscan-models
export OMP_WAIT_POLICY = passive
export PIP_QUIET ?= 1

.PHONY: demo demo-full test test-slow check lint types contracts docs install install-dev clean

demo: install
	$(RUN) run --recipe demo --set models_dir='"$(DEMO)/models"'

demo-full: install
	$(RUN) run --recipe demo-full --set models_dir='"$(DEMO)-full/models"'

test: install-dev check
	$(VENV)/bin/python -m pytest

test-slow: install-dev
	$(VENV)/bin/python -m pytest -m slow

check: lint types contracts docs

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install-dev
	$(VENV)/bin/mypy

contracts: install-dev
	$(VENV)/bin/lint-imports

docs: install-dev
	$(VENV)/bin/cog --check README.md plugins/README.md

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.base: constraints.txt
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install "pip>=25.1"
	@echo "installing torch $(TORCH)"
	@$(PIP) install torch==$(TORCH)
	@mkdir -p $(WHEELS)
	@ls $(WHEELS)/llama_cpp_python-$(LLAMA)-*.whl >/dev/null 2>&1 || { \
	  echo "building llama-cpp-python $(LLAMA) once, about 5 minutes on 2 cores; it is kept in $(WHEELS)"; \
	  CMAKE_ARGS="-DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'" \
	  $(PIP) wheel --no-cache-dir --no-deps --wheel-dir $(WHEELS) llama-cpp-python==$(LLAMA); }
	@$(PIP) install --no-deps --no-index --find-links $(WHEELS) llama-cpp-python==$(LLAMA)
	@touch $@

$(VENV)/.installed: $(VENV)/.base pyproject.toml
	@echo "installing sysscan-models and what it needs"
	@$(PIP) install --constraint constraints.txt --find-links $(WHEELS) -e ".[train,gguf,demo]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.base pyproject.toml
	@echo "installing sysscan-models, what it needs, and the tools of its tests"
	@$(PIP) install --constraint constraints.txt --find-links $(WHEELS) -e ".[train,gguf,demo,testing]" --group dev
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)-full .mypy_cache .ruff_cache .pytest_cache
