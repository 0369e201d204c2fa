# The commands of the README. Each sets up everything it needs in .venv: python3, GCC or Clang
# and make are enough.
PYTHON ?= python3
VENV := .venv
comma := ,
RUN := $(VENV)/bin/
SOURCES := $(shell find cpp cuda bindings cmake -type f) CMakeLists.txt pyproject.toml constraints.txt

.PHONY: demo test docs clean

## Draws a small data set, trains on it, evaluates, and writes runs/demo/report.html (minutes on a CPU).
demo: $(VENV)/.trains
	$(RUN)fastrcnn-engine demo

## Everything the package promises, checked: a process on each core, files with the most tests first. Threads that
## wait for others of their process leave the core to the other processes.
test: $(VENV)/.installed
	OMP_WAIT_POLICY=passive $(RUN)python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

## The documentation as a site, build/site/index.html; a warning is an error.
docs: $(VENV)/.installed
	$(RUN)python -m mkdocs build --strict

# Editable: changes in Python count at once, changes in C++ rebuild here.
define install
	test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --upgrade pip
	$(RUN)python -m pip install --quiet --constraint constraints.txt --editable '.[$(1)]'
endef

# What training takes; the tests take more.
$(VENV)/.trains: $(SOURCES)
	$(call install,train)
	touch $@

$(VENV)/.installed: $(SOURCES)
	$(call install,train$(comma)test)
	touch $(VENV)/.trains $@

clean:
	rm -rf $(VENV) build runs/demo
