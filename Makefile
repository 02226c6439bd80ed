# make demo: bakes the default project into demo/ and trains it.   make test: checks everything.
# make torture: kills and resumes runs of every variant, for about twenty minutes.
# make bench: measures baked projects against other programs, for about an hour.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test torture bench lint clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/cookiecutter . --no-input --output-dir demo
	$(BIN)/pip install --quiet -r demo/my_project/requirements.txt
	$(BIN)/python demo/my_project/training/train.py

test: .venv/test lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

torture: .venv/test
	$(BIN)/python tests/faults/torture.py

bench: .venv/test
	$(BIN)/python benchmarks/bench.py --output benchmarks/RESULTS.md

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pip comes last into the folder, so where it failed for want of python3-venv it is made again.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/pip
	$(BIN)/pip install --quiet "cookiecutter>=2.7.1,<3"
	touch $@

.venv/test: requirements-dev.txt .venv/bin/pip
	@$(BIN)/python -c 'import sys; sys.exit("The tests need Python 3.11 or newer: make clean test PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@ .venv/demo

clean:
	rm -rf .venv demo
