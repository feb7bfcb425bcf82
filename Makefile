# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo-output
# One more than there are cores: some tests wait.
JOBS := $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")
BIN := $(VENV)/bin
OSP := $(BIN)/osp-opt

# Kept, or each of the hundreds of processes that tests start would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-lowest durability bench lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Not compiled: most of it is never imported. What is, one process compiles, not all at once.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-c constraints.txt -e '.[dev]'
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/python -c "import osp_opt.cli.diagnosis"
	touch $@

demo: install
	@echo "demo: a video by the bundled model, then a third of the steps and a cache for it are"
	@echo "searched, and both are compared: about four minutes on two cores, all in $(DEMO)/"
	$(OSP) sample --plain --num-prompts 1 --workdir $(DEMO) --out $(DEMO)/baseline
	$(OSP) search-steps --steps 33 --budget 8 --verify-prompts 5 --workdir $(DEMO)
	$(OSP) search-cache --ratio 1.3 --budget 16 --verify-prompts 4 --workdir $(DEMO)
	$(OSP) sample --workdir $(DEMO)
	$(OSP) sample --plain --workdir $(DEMO) --out $(DEMO)/baseline
	$(OSP) evaluate -q --reference $(DEMO)/baseline --workdir $(DEMO)
	$(BIN)/python -m tools.picture $(DEMO)/baseline $(DEMO)/samples $(DEMO)/side-by-side.webp
	$(BIN)/python -m tools.demo $(DEMO)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Types are checked beside the tests, and told of after them.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@said=$$(mktemp); $(BIN)/mypy > $$said 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types; typed=$$?; echo mypy:; cat $$said; rm $$said; test $$tests$$typed = 00

# The same with the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest:
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) -m tools.lowest > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(VENV)-lowest/constraints.txt -e '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Every command killed at 20 random moments, run again, and compared with a run let alone; and 1,000
# damaged files given to whole commands.
durability: install
	OSP_OPT_KILLS=20 $(BIN)/python -m pytest tests/durability tests/system
	OSP_OPT_MUTANTS=1000 $(BIN)/python -m pytest tests/hostile

# Against the field, into benchmarks/results; BENCH=--quick checks that everything runs.
bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) $(VENV)-lowest $(DEMO) benchmarks/work build dist *.egg-info
