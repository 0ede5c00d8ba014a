# `make` alone says what there is. Everything happens in .venv and build/, which `make clean` removes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Where it is set, as images of containers like to, each of the many processes of a run would compile all anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help run demo test coverage mutants tampering worst-days load frozen histories cold-start streams siege kills due bench lint lint-python lint-protos lint-clients check-generated released-protos oldest-protoc grpcurl generate lock clean

# Twice as many test processes as there are cores: half of the time they wait, for servers, clients and databases.
JOBS ?= $(shell echo $$(( 2 * $$(getconf _NPROCESSORS_ONLN) )))

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/run ## Serve from ./tumbler-data (made at the first time), and say what to type next
	@exec scripts/run

demo: .venv/run ## Watch a key's life on a server of its own: create, verify, rotate, revoke
	@.venv/bin/python scripts/demo.py

test: .venv/test ## Run all tests, on SQLite and on a real PostgreSQL that needs no installing
	@.venv/bin/pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# The files that cover the most for the least time, of all in unit/ and rpc/: half of what all of them cover, and more,
# is covered by a few. Where the demand is missed, add the tests of what is new.
COVERING := $(patsubst %,tests/unit/test_%.py,audit cache copies counting doctor engine finder first_use gathering \
  health hotpath lanes lineage loop opaque_tokens parting pepper policing presence rehasher roster rules secret serving \
  shedding spreading unsent usage webhook_limits) $(patsubst %,tests/rpc/test_%.py,admission altered any_project \
  batch_verify claims event_detail get grpcio_testing hostile_text limits list_events rotate update verify_away \
  verify_fresh watch watching)
NOT_COVERING := postgresql or black_holes or test_what_was_changed_by_hand_is_found
# The rooms that must be covered: the domain, and the calls to it.
SERVER := */tumbler_server
COVERED := $(SERVER)/secrets/*,$(SERVER)/keys/*,$(SERVER)/verify/*,$(SERVER)/audit/*,$(SERVER)/scheduler/alarms.py,$(SERVER)/rpc/*

coverage: .venv/test ## Demand 95 % branch coverage of the domain and rpc/ from some tests that run in one process, on SQLite
	@.venv/bin/pytest -n $(JOBS) --dist worksteal --quiet --cov --cov-report= -k 'not ($(NOT_COVERING))' $(COVERING)
	@.venv/bin/coverage report --include='$(COVERED)' --fail-under=95

mutants: .venv/test ## Break the code in ways that matter, and see that a test notices each
	@.venv/bin/python tests/mutants/run.py

tampering: .venv/test ## Change a database by hand in 1,000 ways; the audit must find all that docs/security.md says it finds
	@.venv/bin/python -m tests.tampering $(TAMPERING_ARGS)

worst-days: .venv/test ## Let servers die, clocks leap and backups be put back in 10,000 orders, against a model (hours)
	@.venv/bin/python -m tests.property.test_worst_days_machine $(WORST_DAYS_ARGS)

load: .venv/test ## 32 callers for 30 s on each database; nothing may fail or be lost
	@.venv/bin/python -m tests.load.load --seconds 30 --callers 32

frozen: .venv/test ## Freeze clients of all languages, delay and duplicate their connections, 200 times each, while keys are revoked (2 h)
	@.venv/bin/python -m tests.clients.conformance.frozen $(FROZEN_ARGS)

histories: .venv/test ## Revoke 10,000 keys under concurrent calls, with and without faults; no stale answer may pass
	@.venv/bin/python -m tests.histories

cold-start: .venv/test ## Let 10,000 keys meet a server that has seen none of them, with the pepper and without
	@.venv/bin/python -m tests.histories.cold_start

streams: .venv/test ## Hold 2,000 Watch streams, and cancel 10,000, while keys are verified
	@.venv/bin/python -m tests.histories.streams

siege: .venv/test ## Attack a server in some fifty ways while honest callers use it; SIEGE_ARGS=--list says how
	@.venv/bin/python -m tests.siege $(SIEGE_ARGS)

kills: .venv/test ## Kill servers, workers and schedulers under writers, and while rotations are due; KILLS_ARGS=--short tries it
	@.venv/bin/python -m tests.kills $(KILLS_ARGS)

due: .venv/test ## Let 100,000 rotations be due at once while keys are verified
	@.venv/bin/python -m tests.rotations.due

bench: .venv/test ## Measure what calls cost, and write docs/performance.md; BENCH_ARGS=--quick tries it out
	@.venv/bin/python -m benchmarks.run $(BENCH_ARGS)

lint: lint-python lint-protos lint-clients ## Check style and types of all languages, and the protobuf definitions

lint-python: .venv/lint
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy

lint-protos: .venv/lint
	@.venv/bin/buf lint
	@.venv/bin/buf format --diff --exit-code
	@.venv/bin/buf breaking --against protos/released.binpb

# Each says so where its toolchain is absent.
lint-clients: .venv/test
	@PYTHON=.venv/bin/python scripts/lint-typescript
	@scripts/lint-go
	@scripts/lint-java

generate: .venv/lint ## Make the stubs anew from protos/
	@PYTHON=$$(scripts/python) scripts/generate

check-generated: generate ## Fail if the committed stubs are not what protos/ makes
	@git diff --exit-code --stat -- clients
	@test -z "$$(git status --porcelain -- clients)"

released-protos: .venv/lint ## Take protos/ as released: later changes must not break what is there now
	@.venv/bin/buf build --exclude-source-info --output protos/released.binpb

oldest-protoc: ## Compile protos/ with the oldest protoc that docs/clients.md promises (needs Maven)
	@PYTHON=$$(scripts/python) scripts/oldest-protoc

grpcurl: .venv/run ## Call a served instance with grpcurl (from $$GRPCURL or PATH), through reflection
	@scripts/grpcurl-check

lock: .venv/lint ## Choose the newest versions of everything we use, and write constraints.txt
	@.venv/bin/pip install --quiet uv
	@printf '%s\n' './clients/python[cli]' ./server | .venv/bin/uv pip compile --quiet --universal --python-version 3.10 \
	  --no-header --no-annotate --upgrade - --group pyproject.toml:test --group pyproject.toml:lint \
	  --no-emit-package tumbler-client --no-emit-package tumbler-server --output-file constraints.txt

clean: ## Remove everything that was made here, but for your keys in ./tumbler-data
	@rm -rf .venv build .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The virtual environment, as far as each target needs it.

.venv/base: scripts/python
	@echo "Making a virtual environment in .venv …" >&2
	@$$(scripts/python) -m venv --clear .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

.venv/run: .venv/base clients/python/pyproject.toml server/pyproject.toml constraints.txt
	@echo "Installing the server and the client …" >&2
	@.venv/bin/pip install --quiet --constraint constraints.txt --editable 'clients/python[cli]' --editable server
	@touch $@

.venv/test: .venv/run pyproject.toml
	@echo "Installing what the tests need …" >&2
	@.venv/bin/pip install --quiet --constraint constraints.txt --group test
	@touch $@

.venv/lint: .venv/test
	@echo "Installing what the checks need …" >&2
	@.venv/bin/pip install --quiet --constraint constraints.txt --group lint
	@touch $@
