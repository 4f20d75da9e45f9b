# make help lists the targets.
SHELL := /bin/sh
PYTHON ?= python3
COMPOSE := docker compose
RUN := $(COMPOSE) --profile migrate run --rm --quiet-pull
CHOSEN = $(if $(CLIENT),--client $(CLIENT),--all)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-docker test-faults dirt lint secrets up down logs psql migrate verify cutover rollback status report add-client rotate-password bench workload need-client

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | awk -F'\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

.venv/installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: .venv/installed ## make the virtual environment .venv

demo: setup ## the whole job on this machine without Docker: samples, PostgreSQL, migration, report
	@.venv/bin/python -m bench.demo

lint: setup ## ruff and mypy --strict
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint ## ruff, mypy and the test suite against a real PostgreSQL
	.venv/bin/python -m pytest --doctest-modules migrator tests --ignore tests/docker --ignore tests/faults

test-docker: setup ## the tests that drive the real stack; they need a Docker Engine
	.venv/bin/python -m pytest tests/docker

test-faults: setup ## kill -9 the job and the server at many moments, cut connections, fill disks
	.venv/bin/python -m pytest -rP tests/faults

dirt: setup ## measure what pgloader and this project make of dirt, into docs/DIRT.md
	.venv/bin/python -m bench.dirt

secrets: ## make a password for each role in secrets/, and the folders that the job writes
	@CLIENTS='$(CLIENTS)' sh initdb/bin/make-secrets.sh

up: ## start PostgreSQL and wait until it is healthy
	$(COMPOSE) up --detach --build --wait postgres

down: ## stop PostgreSQL; its data stays
	$(COMPOSE) --profile migrate --profile dev down

logs: ## follow the server's log
	$(COMPOSE) logs --follow postgres

psql: need-client ## open psql as a client: make psql CLIENT=client_001
	$(COMPOSE) exec postgres psql -U $(CLIENT)_user -d $(CLIENT)_db

migrate: ## migrate all clients, or one: make migrate CLIENT=client_003
	$(RUN) --build migrate migrate $(CHOSEN) $(ARGS)

verify: ## compare SQLite and PostgreSQL as both are now
	$(RUN) --build migrate verify $(CHOSEN) $(ARGS)

INTERACTIVE := $(shell test -t 0 && echo yes)
# HOST=1 runs the move on this host instead of in a container that has the Docker socket.
HOST_JOB = POSTGRES_HOST=127.0.0.1 .venv/bin/python -m migrator
MOVE = $(if $(HOST),$(HOST_JOB),$(COMPOSE) --profile $@ run --rm --build --quiet-pull $(if $(INTERACTIVE),,-T) $@)

cutover: need-client $(if $(HOST),setup) ## move a running bot to PostgreSQL: make cutover CLIENT=client_003
	$(MOVE) cutover --client $(CLIENT) $(ARGS)

rollback: $(if $(HOST),setup) ## move it back, with all that was booked since: make rollback CLIENT=client_003
	$(MOVE) rollback $(if $(CLIENT),--client $(CLIENT)) $(ARGS)

status: ## one line a client: on SQLite or PostgreSQL, last run, rows, backup, open journal
	@$(RUN) --no-deps migrate status

report: ## show the latest report
	@$(RUN) --no-deps migrate report $(CHOSEN)

add-client: need-client ## provision one more client on the running server: make add-client CLIENT=client_004
	@CLIENTS='$(CLIENT)' sh initdb/bin/make-secrets.sh
	@$(COMPOSE) exec -T --user root --env CLIENTS=$(CLIENT) --env SECRETS_DIR=/run/secrets postgres \
	  sh /docker-entrypoint-initdb.d/provision.sh
	@sh initdb/bin/remember-client.sh $(CLIENT)

rotate-password: need-client ## a new password on the server, in the secret file and in the client's .env
	@sh initdb/bin/rotate-password.sh $(CLIENT)

bench: setup ## this, pgloader, the first release's method and the limit, into docs/PERFORMANCE.md
	.venv/bin/python -m bench.bench $(ARGS)

workload: setup ## the same booking workload on SQLite and on PostgreSQL, into docs/WORKLOAD.md
	.venv/bin/python -m bench.workload

need-client:
	@test -n '$(CLIENT)' || { echo "name the client: make $(firstword $(MAKECMDGOALS)) CLIENT=client_001"; exit 2; }
