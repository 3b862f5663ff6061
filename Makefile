# Turbo-VAED. `make` lists the targets; `make poc` and `make test` set up all that they need.
CUSTOMER ?= demo
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
LITERT := .venv-litert
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Kept byte code starts a process in half the time, and a run or a test starts hundreds.
unexport PYTHONDONTWRITEBYTECODE

# make itself ends with 2 whatever a command ended with, which would read as a user's mistake.
SAY_CODE = case $$code in 1) kind="refused";; 2) kind="a user's mistake";; 3) kind="a fault";; \
	*) kind="stopped";; esac; echo "turbo-vaed exited with $$code ($$kind)" >&2

.PHONY: help setup litert browser poc test test-fast test-nightly lint docs golden mutants drills teacher bench team team-down team-clean \
	team-test clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) data/demo/.fetched ## make the environment in .venv and fetch the demo videos

$(STAMP): pyproject.toml constraints.txt scripts/make_environment.sh
	@PYTHON="$(PYTHON)" sh scripts/make_environment.sh $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

litert: $(LITERT)/.set-up ## make the environment of LiteRT's converter in .venv-litert (1.8 GB)

$(LITERT)/.set-up: constraints-litert.txt | $(STAMP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LITERT)
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(LITERT)/bin/python --constraint constraints-litert.txt litert-torch torch
	@touch $@

data/demo/.fetched: scripts/fetch_demo_videos.py | $(STAMP)
	$(BIN)/python scripts/fetch_demo_videos.py data/demo
	@touch $@

browser: ## install headless Chromium for the report's tests (Debian, Ubuntu)
	@sh scripts/install_browser.sh

poc: setup ## run the PoC of CUSTOMER (demo): from videos to a judged package and its report
	@$(BIN)/turbo-vaed poc $(CUSTOMER) || { code=$$?; $(SAY_CODE); exit $$code; }

test: setup litert browser lint docs ## run every check
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP) ## the checks of a minute and a half: no Ray, servers, browsers or exporters
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not nightly"

test-nightly: setup ## what takes minutes and finds what a faster test of `make test` finds too
	$(BIN)/python -m pytest -m nightly

lint: $(STAMP) ## style, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(STAMP) ## build the site of docs/ into site/; a link that leads nowhere fails
	$(BIN)/mkdocs build --strict

golden: setup ## write the golden files of reports again, and show what changed in them
	$(BIN)/python -m tests.report.golden
	$(BIN)/python -m tests.report.costs.golden

mutants: setup ## change the gate's and the budget's code and see what no test notices; OF='*.costs.*' for a part
	$(BIN)/uv pip install --quiet --python $(BIN)/python mutmut==3.8.1
	$(BIN)/mutmut run $(if $(OF),'$(OF)'); $(BIN)/mutmut results

drills: setup ## break things on purpose and see what a run makes of it; writes docs/drills.md
	$(BIN)/python -m scripts.drills

teacher: setup ## train the small teacher of the demo again (an hour on one core)
	$(BIN)/python scripts/train_teacher.py

team: setup ## start a team's servers on this machine, write team.env, and run two customers through
	@$(BIN)/python -m scripts.team up
	@$(BIN)/python -m scripts.team run

team-down: $(STAMP) ## stop the team's servers; the data stay
	@$(BIN)/python -m scripts.team down

team-clean: $(STAMP) ## stop the team's servers and remove their data
	@$(BIN)/python -m scripts.team clean

team-test: setup ## start a stack of its own, run customers on it, and check what each server has of them
	$(BIN)/python -m pytest -m nightly tests/team

bench: setup ## time set-up, PoC and its re-run in a fresh clone; writes bench/results
	$(BIN)/python bench/first_light.py

clean: ## remove what runs made, ledger and registry with it (not .venv, not the videos)
	@if [ -e state/team/supervisord.pid ]; then echo "the team's servers run; first: make team-down" >&2; exit 1; fi
	rm -rf work state site customers dvc.lock
