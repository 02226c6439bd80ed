# make demo: bakes the default project into demo/ and trains it.   make test: checks everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/cookiecutter . --no-input --output-dir demo
	$(BIN)/pip install --quiet -r demo/my_project/requirements.txt
	$(BIN)/python demo/my_project/training/train.py

test: .venv/test lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python
	$(BIN)/pip install --quiet "cookiecutter>=2.7.1,<3"
	touch $@

.venv/test: requirements-dev.txt .venv/bin/python
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@ .venv/demo

clean:
	rm -rf .venv demo
