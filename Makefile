# Every target works in a fresh clone; the first run installs the requirements into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
# A worker that dies ends the tests: pytest-xdist 3.8 waits for ever at the end after it replaced one (--dist loadfile).
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo test test-quick lint docs bench clean

demo: $(VENV)/ready
	$(BIN)/kerasdet train retinanet_r18_fpn_shapes --set OUT_DIR=$(RUN)
	$(BIN)/kerasdet eval $(RUN) --json $(RUN)/metrics.json
	rm -rf $(RUN)/saved_model
	$(BIN)/kerasdet export $(RUN) $(RUN)/saved_model
	$(BIN)/kerasdet predict $(RUN) data/shapes/eval/images/00000[1-8].jpg --draw $(RUN)/pictures

test: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL)

test-quick: $(VENV)/ready
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Builds the documentation into site/; a warning is an error. `mkdocs serve` shows it while you write.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/ready
	$(BIN)/python benchmarks/train_step.py

clean:
	rm -rf $(VENV) runs data build site *.egg-info

# --no-deps, because requirements.txt lists all packages, and some depend on tensorflow instead of tensorflow-cpu.
$(VENV)/ready: requirements.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-deps -r requirements.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@
