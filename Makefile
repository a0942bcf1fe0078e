# The table of contents: `make help`.
SHELL := /bin/sh
.DEFAULT_GOAL := help
MODEL ?= iris
PORT ?= 8000
TARGET ?= auto
ARGS ?=
NAS := .venv/bin/nas
FROM ?=
EVERY ?=
SECONDS ?= 30
CHECKOV := .venv/bin/uv tool run --quiet --from checkov==3.3.30 checkov --config-file .checkov.yaml

##@ Search, serve, score

iris: .venv/ready ## search an Iris model and promote the best (TARGET=auto|local|microk8s|cluster EVERY=6h)
	@$(NAS) run values/iris.yaml --target $(TARGET) $(if $(EVERY),--every $(EVERY)) $(ARGS)

mnist: .venv/ready ## search an MNIST model and promote the best (TARGET=… EVERY=…)
	@$(NAS) run values/mnist.yaml --target $(TARGET) $(if $(EVERY),--every $(EVERY)) $(ARGS)

serve: .venv/ready ## serve the promoted model over HTTP (MODEL=iris PORT=8000 TARGET=…)
	@$(NAS) serve --model $(MODEL) --port $(PORT) --target $(TARGET) $(ARGS)

batch: .venv/ready ## score a test set, or files, with the promoted model (MODEL=mnist, or ARGS=FILE.csv TARGET=…)
	@$(NAS) batch --model $(MODEL) --target $(TARGET) $(ARGS)

models: .venv/ready ## list the models in the store (MODEL=iris TARGET=…)
	@$(NAS) models list --model $(MODEL) --target $(TARGET) $(ARGS)

report: .venv/ready ## write the report of the latest search (MODEL=iris TARGET=…)
	@$(NAS) report --model $(MODEL) --target $(TARGET) $(ARGS)

data: .venv/ready ## fetch MNIST, or take it from a folder (FROM=DIR)
	@$(NAS) data mnist $(if $(FROM),--from $(FROM))

cluster-setup: .venv/ready ## prepare a cluster for searches (TARGET=microk8s|cluster)
	@$(NAS) cluster setup --target $(TARGET) $(ARGS)

images: .venv/ready ## build all images (docker, podman or buildah)
	@$(NAS) images build --all $(ARGS)

##@ Develop

test: .venv/ready-dev ## run all tests that need no cluster
	@.venv/bin/pytest -n 2 $(ARGS)

test-cluster: .venv/ready-dev ## run the tests that need a Kubernetes: one they start (root), or NAS_TEST_KUBECONFIG=FILE
	@.venv/bin/pytest tests/cluster --capture=no --durations=10 $(ARGS)

cluster-up: .venv/ready-dev ## start that Kubernetes by hand, with the images in it (root)
	@.venv/bin/python tests/cluster/node.py up
	@.venv/bin/python tests/cluster/images.py

cluster-down: ## stop it
	@.venv/bin/python tests/cluster/node.py down

test-fuzz: .venv/ready-dev ## look for requests that break the server's decoders or its description (SECONDS=30)
	@.venv/bin/python tests/fuzz/decoders.py $(SECONDS) .nas/fuzz
	@.venv/bin/python tests/fuzz/openapi.py 10

lint: .venv/ready-dev ## run ruff, mypy, yamllint, shellcheck, helm lint and checkov
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy scripts/nas images/modelkit
	@for folder in tabular-trainer mnist-trainer server batch; do MYPYPATH=images/$$folder .venv/bin/mypy images/$$folder/*.py || exit 1; done
	@.venv/bin/yamllint --strict .
	@.venv/bin/shellcheck scripts/setup.sh .ci/run tests/cluster/microk8s
	@.venv/bin/mypy scripts/chart_values.py
	@.venv/bin/python scripts/chart_values.py --check
	@for preset in iris mnist mnist-best fashion-mnist tutorial/mnist "iris microk8s" "iris production" "mnist gpu" all-options; do \
	  $(NAS) helm lint --strict --quiet charts/nas $$(printf -- ' --values values/%s.yaml' $$preset) || exit 1; done
	@mkdir -p .nas; for preset in iris "iris production"; do \
	  $(NAS) helm template iris-nas charts/nas --namespace nas --set batch.enabled=true \
	    $$(printf -- ' --values values/%s.yaml' $$preset) >.nas/rendered.yaml && \
	  $(CHECKOV) --file .nas/rendered.yaml || exit 1; done

values: .venv/ready ## write values.yaml, its schema and docs/values.md from the chart's schema.yaml files
	@.venv/bin/python scripts/chart_values.py

package: .venv/ready ## package the chart into .nas/nas-VERSION.tgz
	@mkdir -p .nas && $(NAS) helm package charts/nas --destination .nas

bench-search: .venv/ready-dev ## accuracy and time of both searches over 5 seeds
	@.venv/bin/python bench/search.py $(ARGS)

bench-batch: .venv/ready-dev ## batch scoring beside tutorial-style jobs, kill -9 and memory (10 min)
	@.venv/bin/uv pip install --quiet --python .venv/bin/python -r bench/requirements.txt
	@.venv/bin/python bench/batch.py $(ARGS)

bench-training: .venv/ready-dev ## the trainers beside a plain tutorial one, and what searches come to
	@.venv/bin/uv pip install --quiet --python .venv/bin/python -r bench/requirements.txt
	@$(NAS) data mnist
	@.venv/bin/python bench/training.py $(ARGS)

bench-serving: .venv/ready-dev ## requests and rows a second beside the plain tutorial's server and a peer's
	@.venv/bin/python bench/serving.py $(ARGS)

lock: .venv/ready ## resolve pyproject.toml's dependencies anew into requirements*.txt
	@set -e; cd "$(CURDIR)"; compile() { .venv/bin/uv pip compile pyproject.toml --quiet --upgrade --universal \
	  --python-version 3.11 --generate-hashes --no-header "$$@"; }; \
	compile -o requirements.txt; compile --extra dev -c requirements.txt -o requirements-dev.txt

clean: ## remove all that make set up: .venv, .nas with its models, runs and data, MNIST in images/*/data, uv's cache if it was new
	@if [ -f .venv/made-uv-cache ]; then rm -rf "$$(.venv/bin/uv cache dir)"; fi
	rm -rf .venv .nas .pytest_cache .mypy_cache .ruff_cache images/*/data/mnist
	@find . -name __pycache__ -prune -exec rm -rf {} +

##@ Help

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/ready: requirements.txt pyproject.toml scripts/setup.sh
	@scripts/setup.sh
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt images/*/requirements.txt
	@scripts/setup.sh dev
	@touch $@

.PHONY: iris mnist serve batch models data cluster-setup images test test-cluster cluster-up cluster-down lint values package bench-search lock clean help report bench-training
