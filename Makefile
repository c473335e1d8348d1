# make demo       install, then the whole chain on this machine: about 15 minutes after installation
# make demo-full  the same with the budget that makes a good small model
# make test       install, then the default suite and every check
# make test-host  the tests of the integration beside the versions that Sys-Scan-Graph itself requires
# make test-slow  the slow suite
# make test-tpu   training on torch_xla, on 4 virtual devices of this machine's processor (7 GB to install, once)
PYTHON ?= python3
VENV ?= .venv
HOST_VENV ?= .venv-host
TPU_VENV ?= .venv-tpu
DEMO ?= demo
# The wheel of llama-cpp-python is built once and kept beside pip's own cache. Without AMX: llama.cpp's kernels for it crash on
# Q4 models (ggml-org/llama.cpp issue 20824).
WHEELS ?= $(shell $(PYTHON) -m pip cache dir)/sysscan-models/no-amx
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
LLAMA := $(shell sed -n 's/^llama_cpp_python==//p' constraints.txt)
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# torch_xla needs a torch of its own: these packages, too, are kept outside, by the hash of their pins.
TPU_PACKAGES ?= $(shell $(PYTHON) -m pip cache dir)/sysscan-models/tpu-$(firstword $(shell sha256sum constraints-tpu.txt))
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
HOST_PIP := $(HOST_VENV)/bin/python -m pip --disable-pip-version-check
RUN := $(CURDIR)/$(VENV)/bin/sysscan-models
export OMP_WAIT_POLICY = passive
export PIP_QUIET ?= 1

.PHONY: demo demo-full test test-slow test-host test-tpu check lint types contracts docs install install-dev llama-wheel clean

demo: install
	$(RUN) run --recipe demo --set models_dir='"$(DEMO)/models"'
	$(RUN) analyze sysscan_models/samples/report.json --package $(DEMO)/models/package --out $(DEMO)/models/analysis.html --top 2

demo-full: install
	$(RUN) run --recipe demo-full --set models_dir='"$(DEMO)-full/models"'

test: install-dev check
	$(VENV)/bin/python -m pytest

test-slow: install-dev
	$(VENV)/bin/python -m pytest -m slow

test-host: $(HOST_VENV)/.installed
	$(HOST_VENV)/bin/python -m pytest -m "not training" tests/integration

test-tpu: $(TPU_VENV)/.installed
	$(TPU_VENV)/bin/python -m pytest -m "slow or not slow" tests/tpu

check: lint types contracts docs

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install-dev
	$(VENV)/bin/mypy

contracts: install-dev
	$(VENV)/bin/lint-imports

docs: install-dev
	$(VENV)/bin/cog --check README.md plugins/README.md integration/README.md docs/devices.md docs/redaction.md

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.base: constraints.txt
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install "pip>=25.1"
	@echo "installing torch $(TORCH)"
	@$(PIP) install torch==$(TORCH)
	@$(MAKE) --no-print-directory llama-wheel BUILD_PIP="$(PIP)"
	@$(PIP) install --no-deps --no-index --find-links $(WHEELS) llama-cpp-python==$(LLAMA)
	@touch $@

llama-wheel:
	@mkdir -p $(WHEELS)
	@ls $(WHEELS)/llama_cpp_python-$(LLAMA)-*.whl >/dev/null 2>&1 || { \
	  echo "building llama-cpp-python $(LLAMA) once, about 5 minutes on 2 cores; it is kept in $(WHEELS)"; \
	  CMAKE_ARGS="-DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'" \
	  $(BUILD_PIP) wheel --no-cache-dir --no-deps --wheel-dir $(WHEELS) llama-cpp-python==$(LLAMA); }

$(HOST_VENV)/.installed: constraints-host.txt pyproject.toml
	@echo "making a virtual environment in $(HOST_VENV), with the versions that Sys-Scan-Graph requires"
	@$(PYTHON) -m venv $(HOST_VENV)
	@$(HOST_PIP) install "pip>=25.1"
	@$(MAKE) --no-print-directory llama-wheel BUILD_PIP="$(HOST_PIP)"
	@$(HOST_PIP) install --no-deps --no-index --find-links $(WHEELS) llama-cpp-python==$(LLAMA)
	@$(HOST_PIP) install --constraint constraints-host.txt --find-links $(WHEELS) -e ".[langgraph,openai,demo,testing]" --group integration-tests typer
	@touch $@

$(TPU_PACKAGES)/.installed: constraints-tpu.txt
	@echo "installing torch and torch_xla into $(TPU_PACKAGES), once"
	@$(PYTHON) -m venv $(TPU_PACKAGES)
	@$(TPU_PACKAGES)/bin/python -m pip --disable-pip-version-check install "pip>=25.1"
	@$(TPU_PACKAGES)/bin/python -m pip --disable-pip-version-check install --requirement constraints-tpu.txt
	@touch $@

# The packages are shared by all clones; the project's own metadata (its entry points) is this clone's.
$(TPU_VENV)/.installed: $(TPU_PACKAGES)/.installed pyproject.toml
	@$(PYTHON) -m venv $(TPU_VENV)
	@echo "import site; site.addsitedir('$$($(TPU_PACKAGES)/bin/python $(SITE))')" > $$($(TPU_VENV)/bin/python $(SITE))/tpu-packages.pth
	@$(TPU_VENV)/bin/python -m pip --disable-pip-version-check install --no-deps --editable .
	@touch $@

$(VENV)/.installed: $(VENV)/.base pyproject.toml
	@echo "installing sysscan-models and what it needs"
	@$(PIP) install --constraint constraints.txt --find-links $(WHEELS) -e ".[train,gguf,langgraph,demo]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.base pyproject.toml
	@echo "installing sysscan-models, what it needs, and the tools of its tests"
	@$(PIP) install --constraint constraints.txt --find-links $(WHEELS) -e ".[train,gguf,langgraph,openai,demo,testing]" --group dev
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(HOST_VENV) $(TPU_VENV) $(DEMO) $(DEMO)-full .mypy_cache .ruff_cache .pytest_cache
