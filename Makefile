# `make demo` and `make test` set everything up by themselves on Debian and Ubuntu with Python 3.11 or newer.
# Where packages come from is pip's and apt's own configuration.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
TESTS := tests/chaos tests/integration tests/contract tests/unit # the long ones first, two files at a time
PIP_INSTALL = $(VENV)/bin/python -m pip install --no-input -c constraints.txt -e

# $(call apt_install,PACKAGES): with sudo when we are not root; a sentence where there is no way.
define apt_install
	as_root=""; \
	if [ "$$(id -u)" != 0 ]; then as_root=sudo; fi; \
	for tool in apt-get $$as_root; do \
		command -v "$$tool" >/dev/null || { \
			echo "There is no $$tool here: install $(1) by this system's own means, then run make again." >&2; \
			exit 1; \
		}; \
	done; \
	install="$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(1)"; \
	$$install </dev/null || { $$as_root apt-get update </dev/null && $$install </dev/null; } || { \
		echo "apt-get could not install $(1): see above, install it by hand, then run make again." >&2; \
		exit 1; \
	}
endef

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: $(VENV)/.demo broker ## set up, then run a broker, an agent and a few jobs on this machine
	$(VENV)/bin/edge-agent demo

.PHONY: test
test: $(VENV)/.dev broker prometheus systemd ## set up, then run the tests
	$(VENV)/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(TESTS)

.PHONY: engines
engines: $(VENV)/.dev ## install the engines that few use (some GB), and run the tests of every engine
	$(PIP_INSTALL) '.[cpu,llamacpp,demo,dev,transformers,mlx]'
	$(VENV)/bin/python -m pytest tests/contract

.PHONY: check
check: $(VENV)/.dev ## set up, then lint, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

.PHONY: bench
bench: $(VENV)/.dev broker ## measure, for about two hours, on a machine with nothing else to do
	for name in idle swap warm_up canary telemetry fleet first_chunk intake claim eta restart dispatch throughput memory matmul batch bare bare_batch onnx_batch calibration second_start engines peer images watch image_decode large_packet; do \
		$(VENV)/bin/python -m tests.bench.$$name; \
	done
	$(VENV)/bin/python -m tests.bench.images --model full-vision-openvino

.PHONY: chaos
chaos: $(VENV)/.dev broker ## the long tests: 1,000 kills, a million bad messages, 100,000 odd jobs, 50 loads, half an hour of load
	CHAOS_KILLS=1000 CHAOS_FAULTS=100 CHAOS_POISONS=1 POOL_JOBS=300 IDLE_AGENTS=50 FREEZE_S=95 FUZZ_CASES=1000000 FUZZ_WIRE_CASES=10000 ACCEPTED_CASES=100000 AGAINST_JOBS=200 AGAINST_ROUNDS=10 SOAK_S=1800 FLOOD_S=300 PULL_KILLS=50 LOADS=50 HOSTILE_GUIDES_ROUNDS=20 \
		$(VENV)/bin/python -m pytest -s tests/chaos tests/integration/test_pull.py tests/unit/test_engine_silence.py tests/integration/test_unwritten_log.py tests/integration/test_guided_jobs.py

.PHONY: builders
builders: $(VENV)/.dev ## build tiny models with the makers' own tools (some GB), serve them, compare with transformers
	python3 -m venv .venv-builders
	.venv-builders/bin/python -m pip install --no-input -q -r tests/builders/requirements.txt
	.venv-builders/bin/python tests/builders/originals.py build/builders/original
	for name in $$(ls build/builders/original); do \
		.venv-builders/bin/python -m onnxruntime_genai.models.builder -i build/builders/original/$$name \
			-o build/builders/onnx/$$name -p fp32 -e cpu -c build/builders/cache \
			|| rm -rf build/builders/onnx/$$name; \
		.venv-builders/bin/optimum-cli export openvino -m build/builders/original/$$name --weight-format fp32 \
			--task text-generation-with-past build/builders/openvino/$$name || rm -rf build/builders/openvino/$$name; \
	done
	$(VENV)/bin/python -m tests.builders.served build/builders

.PHONY: coverage
coverage: $(VENV)/.dev broker systemd ## report which lines the unit tests reach; child processes are not counted
	$(VENV)/bin/coverage run -m pytest tests/unit
	$(VENV)/bin/coverage report

.PHONY: mutants
mutants: $(VENV)/.dev ## change one thing in the deciding modules, 70 times each, and see whether their tests notice
	$(VENV)/bin/python tests/mutants.py

.PHONY: schemas
schemas: $(VENV)/.dev ## write the JSON Schemas anew after a change of the payloads
	$(VENV)/bin/python -m edge_agent.protocol.json_schemas edge_agent/protocol/schemas

.PHONY: clean
clean: ## remove everything make has made here
	rm -rf $(VENV) .venv-builders build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What can run the tests can run the demo too.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP_INSTALL) '.[cpu,llamacpp,demo,dev]'
	touch $(VENV)/.demo $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP_INSTALL) '.[cpu,demo]'
	touch $@

# Debian keeps a part of Python's venv in a package of its own.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not: install one," \
			"then run make PYTHON=python3.11 (or what it is called)." >&2; \
		exit 1; \
	}
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "This Python cannot make virtual environments; it needs: apt-get install python3-venv" >&2; \
		$(call apt_install,python3-venv); \
	}
	$(PYTHON) -m venv $(VENV)

# Debian puts mosquitto where a user's PATH often does not look.
.PHONY: broker
broker:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; \
	command -v mosquitto >/dev/null && command -v mosquitto_pub >/dev/null || { \
		$(call apt_install,mosquitto mosquitto-clients); \
	}

# Its programs only: nothing is started, and a machine that something else runs goes on like that.
.PHONY: systemd
systemd:
	@[ -x /lib/systemd/systemd ] && command -v systemd-analyze >/dev/null || { $(call apt_install,systemd); }

# Unpacked beside Python and not installed: Debian's package would start a service that listens on every address.
.PHONY: prometheus
prometheus: | $(VENV)/bin/pip
	@{ command -v prometheus && command -v promtool || [ -x $(VENV)/bin/promtool ]; } >/dev/null || { \
		command -v apt-get >/dev/null || { \
			echo "There is no apt-get here: install prometheus and promtool by this system's own means." >&2; \
			exit 1; \
		}; \
		as_root=""; \
		if [ "$$(id -u)" != 0 ]; then as_root=sudo; fi; \
		folder="$$(mktemp -d)"; \
		trap 'rm -rf "$$folder"' EXIT; \
		chmod 755 "$$folder"; \
		fetch() { (cd "$$folder" && apt-get download prometheus </dev/null); }; \
		fetch || { $$as_root apt-get update </dev/null && fetch; } || { \
			echo "apt-get could not download prometheus: see above, install it by hand, then run make again." >&2; \
			exit 1; \
		}; \
		dpkg-deb -x "$$folder"/prometheus_*.deb "$$folder/files"; \
		cp "$$folder"/files/usr/bin/prometheus "$$folder"/files/usr/bin/promtool $(VENV)/bin/; \
	}
