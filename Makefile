# `make demo` and `make test` install what they need into .venv first; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin

# Due again when a dependency changes, or when a module comes or goes: the strict editable install,
# which type checkers need to follow the mapped folders, links each module on its own.
STAMP := .venv/installed-$(shell \
	(cat pyproject.toml constraints.txt; find llmkit export quant modelfiles -name '*.py' | sort) \
	| cksum | cut -d ' ' -f 1)

.PHONY: demo test install

demo: $(STAMP)
	$(BIN)/llmkit demo --out runs/demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
# From .venv, so that `llmkit` is the installed package with all four folders, not the one folder here.
	cd .venv && bin/mypy --config-file ../pyproject.toml -p llmkit
	cd .venv && bin/lint-imports --config ../pyproject.toml
	$(BIN)/pytest

install: $(STAMP)

$(STAMP):
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps --config-settings editable_mode=strict -e .
	rm -f .venv/installed-*
	touch $@
