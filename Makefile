# `make demo` and `make test` install what they need into .venv first; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt

# llama-cpp-python compiles llama.cpp. Only its library is used here, not the tools around it:
# half the work. pip's build takes ninja, which uses all cores, and ccache where it is there.
export CMAKE_ARGS := $(CMAKE_ARGS) -DLLAVA_BUILD=OFF \
	"-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/llama-cpp.cmake"
export SKBUILD_NINJA_MAKE_FALLBACK := false
export SKBUILD_CMAKE_VERBOSE := false

# A file's tests run in one of two processes, so that its models are trained once.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Due again when a dependency changes, or when a module comes or goes: the strict editable install,
# which type checkers need to follow the mapped folders, links each module on its own.
STATE := $(shell \
	(cat pyproject.toml constraints.txt; find llmkit export quant modelfiles -name '*.py' | sort) \
	| cksum | cut -d ' ' -f 1)
INSTALLED := .venv/installed-$(STATE)
INSTALLED_DEV := .venv/installed-dev-$(STATE)

# $(call shown,TITLE,COMMAND): says what a step is, and prints a dot where it is silent for long.
define shown
@printf '\n== %s\n' '$(1)'
@(while sleep 5; do printf .; done) & dots=$$!; trap "kill $$dots" EXIT; $(2)
endef

.PHONY: demo test test-fast test-backends lint typecheck install

demo: $(INSTALLED)
	$(BIN)/llmkit demo --out runs/demo

test: lint typecheck
	$(PYTEST) --durations=20

# Good and damaged files on the installed llama.cpp, and on builds with OpenBLAS and Vulkan that are
# made once. Debian's packages: tests/tools/build_backends.sh.
SETS ?= 3
test-backends: $(INSTALLED_DEV)
	tests/tools/build_backends.sh .backends openblas vulkan
	for backend in installed openblas vulkan; do \
		export GGML_VK_VISIBLE_DEVICES=0 PYTHONPATH=.backends/$$backend; \
		$(BIN)/python tests/tools/check_backends.py --sets $(SETS) --files .backends/files && \
		$(BIN)/python tests/tools/check_damages.py || exit 1; \
	done

test-fast: $(INSTALLED_DEV)
	$(PYTEST) -m 'not slow'

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .venv && bin/lint-imports --config ../pyproject.toml

# From .venv, so that `llmkit` is the installed package with all four folders, not the one folder here.
typecheck: $(INSTALLED_DEV)
	cd .venv && bin/mypy --config-file ../pyproject.toml -p llmkit

install: $(INSTALLED)

$(INSTALLED):
	@printf '== 1/4 A virtual environment in .venv (10 seconds)\n'
	@$(PYTHON) -m venv .venv
	$(call shown,2/4 Build llama.cpp (2 to 5 minutes; kept by pip for the next time), \
		$(PIP) -v --no-deps llama-cpp-python)
	$(call shown,3/4 PyTorch and the other packages (1 to 2 minutes), $(PIP) -e .)
	$(call shown,4/4 llmkit (10 seconds), $(PIP) --no-deps --config-settings editable_mode=strict -e .)
	@rm -f .venv/installed-*
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(call shown,Packages for tests and types (1 minute), $(PIP) -e '.[dev]')
	$(call shown,llmkit (10 seconds), $(PIP) --no-deps --config-settings editable_mode=strict -e .)
	@touch $@
