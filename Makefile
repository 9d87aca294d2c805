# Every command sets up what it needs: the first one takes minutes, later ones start at once.

PYTHON ?= python3
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# The stamp's name holds a checksum of all that a set-up depends on: a changed requirement sets up again, as does a
# moved folder (an editable install remembers its path); a git checkout that only changes dates does not.
READY := $(VENV)/.ready-$(shell { cat requirements.txt pyproject.toml; pwd -P; } | cksum | cut -d ' ' -f 1)
UNFINISHED := $(VENV)/.unfinished

.PHONY: help run test lab lint clean

help:
	@echo "make run      set up, then the main job: python -m minilm run"
	@echo "make test     set up, then all tests and notebooks      ARGS=\"-k rope -m 'not slow'\" chooses"
	@echo "make lab      set up, then the course in JupyterLab"
	@echo "make lint     set up, then ruff: rules and format"
	@echo "make clean    remove what tests and builds leave behind"
	@echo "The first of them takes PYTHON=python3.12 to choose the Python of $(VENV)."

run: $(READY)
	@$(PY) -m minilm run $(ARGS)

# The kernel of this environment, whatever other kernels the machine has; cells of one notebook stay in order. Kernels
# compute on one thread, as the tests do: small models gain nothing from more, and two at once would fight.
test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 tests $(if $(NOTEBOOKS),--dist loadfile --nbval --nbval-current-env notebooks) $(ARGS)

# Naming the notebook as a file would make its folder the root, and hide exercises/ from the learner.
lab: $(READY)
	@$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(ARGS)

lint: $(READY)
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

clean:
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
	@echo "Kept: your work, and $(VENV) (rm -rf $(VENV) removes it; the next command sets up again)."

# A set-up that was cut off may leave half a package that pip takes for a whole one, so it starts over from nothing.
# A finished one is only changed once pip has found all that is needed: a failed download leaves it as it was.
$(READY):
	@if [ -e $(UNFINISHED) ] || ! $(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		command -v "$(PYTHON)" >/dev/null || { \
			echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name yours: make test PYTHON=python3.12" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), minilm needs 3.11 or newer: make test PYTHON=python3.12" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
			echo "$(PYTHON) cannot create environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }; \
		echo "Setting up $(VENV), once: a few minutes, most of them the download of torch."; \
		rm -rf $(VENV)/bin $(VENV) && mkdir $(VENV) && touch $(UNFINISHED) && "$(PYTHON)" -m venv $(VENV); \
	else \
		echo "Bringing $(VENV) up to date with requirements.txt and pyproject.toml."; \
		$(PIP) install --quiet --dry-run -r requirements.txt; \
	fi
	@rm -f $(VENV)/.ready-*; touch $(UNFINISHED)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --quiet --no-build-isolation --no-deps -e .
	@rm $(UNFINISHED); touch $@
	@echo "$(VENV) is ready."
