# Everything a checkout needs, on a machine that has Python >= 3.11, pip and make.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
INPUTS := pyproject.toml constraints.txt client/pyproject.toml

# Two threads suit one clip; tests run many small things, where more threads only wait for each other. Compiled modules are
# kept, whatever the shell says: each command that a test starts would compile ours again.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
MINI_ROAD := mini-vae mini-image-encoder mini-image-to-video mini-image-to-video-long mini-image-to-video-pan \
	mini-image mini-video mini-video-small mini-video-left mini-video-pans mini-video-zooms \
	mini-video-zoom-in mini-video-zoom-in-on mini-video-words mini-text-to-video mini-frame-interpolation \
	mini-frame-interpolation-long mini-multi-view-low mini-multi-view-first mini-multi-view-slow \
	mini-multi-view-shapes mini-multi-view-shapes-on mini-decoder-orbits mini-multi-view
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup browser demo docs check format test test-slow test-full train-mini clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-dev ## create .venv with everything development needs
demo: $(VENV)/.ready-demo ## install what sampling and serving need and turn docs/assets/still.jpg into out/demo.mp4
	@mkdir -p out
	$(BIN)/stillmotion generate docs/assets/still.jpg -o out/demo.mp4 --seed 7 --overwrite
	@echo
	@echo "Next:"
	@echo "  $(BIN)/stillmotion serve                                     the playground, at http://127.0.0.1:8000/"
	@echo "  $(BIN)/stillmotion generate photo.jpg -o clip.mp4            a picture of yours"
	@echo "  $(BIN)/stillmotion generate --prompt 'the camera pans left'  text to video"
	@echo "  $(BIN)/stillmotion --help                                    all else"

browser: ## install Chromium for the browser tests from Debian's packages (as root); they are skipped without one
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends chromium; }

docs: $(VENV)/.ready-dev ## build the documentation site into out/site, links checked; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: $(VENV)/.ready-dev ## lint, formatting, strict types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev ## rewrite the code in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.ready-dev ## the tests to run while working: whatever of the promises is quick to check
	$(TEST_ENV) $(BIN)/python -m pytest -q $(SPREAD)

test-slow: $(VENV)/.ready-dev ## what else guards a merge: CI runs it after `make test`
	$(TEST_ENV) $(BIN)/python -m pytest -q $(SPREAD) -m "slow and not full"

test-full: $(VENV)/.ready-dev ## every test, also the long ones
	$(TEST_ENV) $(BIN)/python -m pytest -q $(SPREAD) -m "full or not full"

train-mini: $(VENV)/.ready-dev ## train every mini checkpoint, in the paper's order, into runs/ (hours on two cores; resumes)
	$(PIP) install -c constraints.txt -e ".[multiview]"
	test -f data/starter/manifest.json || $(BIN)/stillmotion data starter --out data/starter
	test -f data/photographs/manifest.json || $(BIN)/stillmotion data photographs --out data/photographs
	test -f data/multi-view/manifest.json || $(BIN)/stillmotion data multi-view --out data/multi-view
	test -f data/bbb.mp4 || $(BIN)/stillmotion data film --out data/bbb.mp4
	test -f data/film/manifest.json || $(BIN)/stillmotion curate run data/bbb.mp4 --out data/film --min-length 0.5 --max-lost 0.1
	@set -e; for recipe in $(MINI_ROAD); do \
		test -d runs/$$recipe/checkpoint && continue; \
		resume=$$(test -f runs/$$recipe/state.pt && echo --resume || true); \
		case $$recipe in mini-multi-view* | mini-decoder-orbits) data=data/multi-view;; mini-frame-interpolation-long) data=data/film;; \
			mini-image-to-video-pan) data=data/photographs;; \
			*) data=data/starter;; esac; \
		$(BIN)/stillmotion train $$recipe --data $$data --out runs $$resume; \
	done

clean: ## remove what make made, but not data/ and runs/
	rm -rf $(VENV) out build dist *.egg-info client/src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, at its pinned version: asked for together with the rest, pip may take a build for GPUs.
$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==2.13.0
	@touch $@

$(VENV)/.ready-demo: $(VENV)/.torch $(INPUTS)
	$(PIP) install -c constraints.txt -e client -e ".[engine,serve]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.torch $(INPUTS)
	$(PIP) install -c constraints.txt -e client -e ".[serve,curate,batch,s3,openvino,tensorrt-rtx,docs,dev]"
	@touch $(VENV)/.ready-demo $@
