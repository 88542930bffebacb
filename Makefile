# `make` alone shows what there is. Needs Python >= 3.11 and make; everything else goes into .venv.
# `make test PYTHON=python3.13` uses that interpreter: a .venv of another Python version is replaced.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_TEST := $(VENV)/.installed-test
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Test processes that run side by side; most of them wait most of the time. Those that measure run one by one, afterwards.
AT_ONCE ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))

# All tests but those that kill processes under load, and the long ones; they run side by side.
FAST_TESTS = -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder -m "not chaos"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# If PYTHON is given, and .venv is of another version, make .venv and its stamps anew: phony targets always run.
ifneq ($(origin PYTHON),file)
version_of = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(call version_of,$(PYTHON)),$(call version_of,$(BIN)/python))
.PHONY: $(BIN)/python $(STAMP) $(STAMP_TEST)
endif
endif

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: $(STAMP) ## install what is missing, start everything, wait until it answers
	@$(BIN)/mesh up

.PHONY: down
down: ## stop everything; leave no process and no socket behind
	@if [ -x $(BIN)/mesh ]; then $(BIN)/mesh down; else echo "nothing is installed, so nothing runs"; fi

.PHONY: test
test: $(STAMP_TEST) wrk faketime edge check ## install what tests need; run all checks and tests
	@status=0; \
	$(BIN)/python -m pytest $(FAST_TESTS) || status=1; \
	$(BIN)/python -m pytest -m chaos || status=1; \
	exit $$status

.PHONY: fast
fast: $(STAMP_TEST) wrk faketime edge ## the tests without the checks and without those of `make chaos`
	@$(BIN)/python -m pytest $(FAST_TESTS)

# The fast tests on a newer Python, in a virtual environment of its own: python3.13 or 3.12 on PATH, or of pyenv. Deployments and
# tests of several hosts do not depend on it.
NEWEST = $(shell for minor in 13 12; do \
    for each in $$(command -v python3.$$minor) $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.$$minor.*/bin/python 2>/dev/null); do \
        "$$each" -c 'import ensurepip, venv' 2>/dev/null && echo "$$each" && exit; \
    done; done)
.PHONY: newest
newest: wrk faketime ## the fast tests on Python 3.13 or 3.12, where one is installed
	@if [ -z "$(NEWEST)" ]; then \
	    echo "neither Python 3.13 nor 3.12 is here; the tests on a newer Python are skipped"; \
	else \
	    echo "testing with $(NEWEST)"; \
	    $(NEWEST) -m venv --clear build/venv-newest; \
	    build/venv-newest/bin/python -m pip --disable-pip-version-check --quiet install 'pip>=25.1'; \
	    build/venv-newest/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[images]' --group test; \
	    build/venv-newest/bin/python -m pytest $(FAST_TESTS) --ignore tests/deploy --ignore tests/hosts; \
	fi

.PHONY: cover
cover: $(STAMP_TEST) wrk faketime ## line and branch coverage of `make fast`, with the processes that tests start
	@$(PIP) install --group cover
	@$(BIN)/coverage erase
	@status=0; \
	$(BIN)/coverage run -m pytest $(FAST_TESTS) || status=1; \
	$(BIN)/coverage combine --quiet; \
	$(BIN)/coverage report; \
	exit $$status

.PHONY: check
check: $(STAMP_TEST) ## formatting, lint, types, playbooks, and the floors of the architecture
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/ansible-lint -q

# Aborts at a link that leads nowhere, and at a page that the navigation lacks. The colours of its messages are not needed.
.PHONY: docs
docs: $(STAMP_TEST) ## the documentation site, in site/; fails at any broken link
	@$(PIP) install --group docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict --clean
	@echo "site/index.html"

.PHONY: chaos
chaos: $(STAMP_TEST) wrk faketime hosts ## the long tests: processes that are killed under load, and deployments of every kind
	@status=0; \
	MESH_CHAOS=long $(BIN)/python -m pytest -m "chaos or long" --ignore tests/deploy --ignore tests/hosts || status=1; \
	MESH_CHAOS=long $(BIN)/python -m pytest tests/deploy tests/hosts || status=1; \
	exit $$status

.PHONY: hostile
hostile: $(STAMP_TEST) ## peers that flood, read nothing and close, 200 tries against each process; takes a quarter of an hour
	@$(BIN)/python -m tests.chaos.hostile --tries 200

.PHONY: churn
churn: $(STAMP_TEST) ## 20,000 short-lived clients: what hub and worker hold afterwards
	@$(BIN)/python -m tests.chaos.churn --clients 20000
# JEPSEN=5m SEED=7 FAULTS=kill,freeze choose how long, which chances, and what goes wrong.
JEPSEN ?= 30m
.PHONY: jepsen
jepsen: $(STAMP_TEST) hosts faketime ## faults of every kind against a whole mesh, judged from its history (JEPSEN=30m)
	@$(BIN)/python -m tests.jepsen --duration $(JEPSEN) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS))

# An hour, or MESH_SOAK=15m.
MESH_SOAK ?= 1h
.PHONY: soak
soak: $(STAMP_TEST) ## mixed load for an hour; fails when a process, a folder or the log grows (MESH_SOAK=1h)
	@$(BIN)/python -m tests.soak --duration $(MESH_SOAK)

# Seconds for each target. Where atheris cannot be installed, the command says so and ends well.
FUZZ ?= 60
.PHONY: fuzz
fuzz: $(STAMP_TEST) ## inputs by chance, guided by coverage, for everything that reads (FUZZ=60 seconds a target)
	@$(PIP) install --group fuzz || true
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ)

.PHONY: bench
bench: $(STAMP) ## install the peers, measure everything, write docs/benchmarks
	@$(PIP) install 'pip>=25.1'
	@PYTHON=$(BIN)/python sh benchmarks/install.sh
	@$(BIN)/python -m benchmarks

.PHONY: format
format: $(STAMP_TEST) ## format the source and mend what lint can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: clean
clean: down ## stop everything; remove .venv, caches, logs and run
	@rm -rf $(VENV) run logs dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# wrk makes the HTTP load of the chaos tests and benchmarks. Where it cannot be installed, the tests that need it say so.
.PHONY: wrk
wrk:
	@if command -v wrk >/dev/null; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing wrk"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq wrk; } >/dev/null \
	        || echo "wrk could not be installed; the tests that need it are skipped"; \
	else \
	    echo "wrk is missing (apt install wrk); the tests that need it are skipped"; \
	fi

# What stands around a gateway in its tests: an ACME authority, proxies, a client of HTTP/2. Where they cannot be installed, those
# tests are skipped. Nothing of Debian's is started.
.PHONY: edge
edge:
	@if command -v pebble >/dev/null && command -v nginx /usr/sbin/nginx >/dev/null && command -v caddy >/dev/null \
	    && command -v haproxy /usr/sbin/haproxy >/dev/null && command -v curl >/dev/null; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing pebble, nginx, caddy, haproxy and curl"; \
	    policy=/usr/sbin/policy-rc.d; \
	    if [ ! -e $$policy ]; then \
	        trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
	        printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; \
	    fi; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	        pebble nginx-light caddy haproxy curl; } >/dev/null \
	        || echo "pebble, nginx, caddy or haproxy could not be installed; the tests that need them are skipped"; \
	else \
	    echo "pebble, nginx, caddy, haproxy or curl is missing (apt install); the tests that need them are skipped"; \
	fi

# The documentation page is tested in it. Where it cannot be installed, those tests are skipped.
.PHONY: chromium
chromium:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	        || echo "chromium could not be installed; the tests that need it are skipped"; \
	else \
	    echo "chromium is missing (apt install chromium); the tests that need it are skipped"; \
	fi

# Turns the clock of the store alone. Where it cannot be installed, clocks are not turned, and the run says so.
.PHONY: faketime
faketime:
	@if command -v faketime >/dev/null; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing faketime"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq faketime; } >/dev/null \
	        || echo "faketime could not be installed; clocks are not turned"; \
	else \
	    echo "faketime is missing (apt install faketime); clocks are not turned"; \
	fi

# Tests of several hosts make them as network namespaces, each with an sshd, and some with systemd; only as root. On this machine
# nothing of Debian's is started.
.PHONY: hosts
hosts: wrk
	@if command -v sshd /usr/sbin/sshd >/dev/null && command -v ip >/dev/null && command -v ps >/dev/null \
	    && command -v sudo >/dev/null && [ -x /usr/lib/systemd/systemd ] && command -v faketime >/dev/null; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing what tests of several hosts need"; \
	    policy=/usr/sbin/policy-rc.d; \
	    if [ ! -e $$policy ]; then \
	        trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
	        printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; \
	    fi; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	        openssh-server openssh-client iproute2 procps sudo systemd faketime; } >/dev/null; \
	else \
	    wanted="openssh-server iproute2 procps sudo systemd faketime"; \
	    echo "one of $$wanted is missing, and only root can install it: apt install $$wanted"; \
	fi

$(BIN)/python:
	@$(PYTHON) -c pass || { echo "$(PYTHON) cannot be run: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "the venv module of $(PYTHON) is missing: apt install python3-venv"; exit 1; }
	@if [ -x $(BIN)/mesh ]; then $(BIN)/mesh down || true; fi
	@echo "making $(VENV)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)

# Each stamp is newer than pyproject.toml when what that names is installed; __init__.py has the version.
$(STAMP): pyproject.toml mesh/__init__.py | $(BIN)/python
	@echo "installing mesh into $(VENV)"
	@$(PIP) install --editable '.[images,reload]'
	@touch $@

# pip learnt about dependency groups in 25.1; that of Debian 12 and 13 is older.
$(STAMP_TEST): pyproject.toml $(STAMP)
	@echo "installing what tests and checks need"
	@$(PIP) install 'pip>=25.1'
	@$(PIP) install --group test --group check
	@touch $@
