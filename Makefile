# Everything a newcomer or CI runs. Each target installs what is missing first, and says so before it does.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo cluster test test-zfs model chaos chaos-cases bench lint format lock clean prepare

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: prepare ## A shard of three at work: write, kill the primary, lose nothing, rebuild it (STORAGE=zfs: on ZFS)
	@.venv/bin/python -m demo $(if $(STORAGE),--storage $(STORAGE)) $(ARGS)

cluster: prepare ## The same shard, left running in the foreground to play with
	@.venv/bin/python -m demo.cluster $(if $(STORAGE),--storage $(STORAGE)) $(ARGS)

test: STORAGE = zfs
test: prepare ## Every test, on every PostgreSQL found (ARGS="-k name" for some)
	@.venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

test-zfs: ## The tests of storage with a real OpenZFS, in a virtual machine (root, Debian; the first time it builds it)
	@demo/prepare.sh vm
	@.venv/bin/python -m vm $(ARGS)

model: prepare ## The rules against every world, and every broken rule against the model; twenty minutes
	@.venv/bin/python -m tests.model $(ARGS)

chaos: prepare ## A shard under faults, and a checker of all it acknowledged (root; ROUNDS=3 SEED=n FAULTS=a,b)
	@.venv/bin/python -m tests.chaos $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(ARGS)

chaos-cases: prepare ## The named cases: one kind of trouble at a time, with what must come of it (root; ten minutes)
	@MANATEE_CHAOS=cases .venv/bin/python -m pytest tests/chaos $(ARGS)

bench: STORAGE = zfs
bench: prepare ## Measure, and write docs/performance.md; 45 quiet minutes (ONLY="outage cost" ROUNDS=5 CHECK=1)
	@.venv/bin/python -m bench $(addprefix --only ,$(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CHECK),--check) $(ARGS)

lint: prepare ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: prepare ## Let ruff put the code into shape
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock: prepare ## Pin anew what is installed: write requirements.lock from pyproject.toml (downloads uv)
	@demo/lock.sh

clean: ## Remove what was installed here and what the tools left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis manatee.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

prepare:
	@demo/prepare.sh $(STORAGE)
