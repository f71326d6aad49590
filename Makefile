# make demo   set up .venv, prune the bundled robust model on the bundled data, print the report
# make test   set up what is missing, run the tests
# make fuzz   10,000 damaged files of each kind that is read (about 40 minutes); make fuzz N=1000
# make lint   set up what is missing, check style (ruff) and types (mypy)
# make report-test  look at pages of `pwoa report --html` in headless Chromium (CHROMIUM=/path names one)
# make oldest     in an environment of its own with the lowest version of each dependency, run the tests (6 GB)
# make audit      look the installed dependencies up in the database of known vulnerabilities (needs the network)
# make docs       in a light environment of its own (.venv-docs, without torch), build the site of docs/ into site/
# make docs-test  set up what is missing, run the examples of README and docs that take minutes (about 10)
# make wheel-test in an empty environment, install the wheel with all it needs; outside the checkout, doctor and a prune (6 GB)
# make licences   set up what is missing, write docs/licences.md
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check
.DEFAULT_GOAL := demo
N = 10000
PYTEST = -m pytest -q -n auto --maxprocesses=4 --dist=worksteal
.PHONY: audit demo docs docs-test fuzz licences lint oldest report-test test test-setup wheel-test

.venv/bin/pwoa: pyproject.toml
	@echo "setting up .venv: torch and its libraries are several GB, 1 to 3 minutes"
	$(PYTHON) -m venv .venv
	$(PIP) install --progress-bar=on -e .
	@touch $@

.venv/.test: .venv/bin/pwoa
	$(PIP) install -q -e '.[test]'
	@touch $@

demo: .venv/bin/pwoa
	.venv/bin/pwoa prune examples/mnist_lenet_linf0.3.pt --sparsity 0.9 --effort quick --data examples/data

test-setup: .venv/.test

test: test-setup
	.venv/bin/python $(PYTEST)

fuzz: test-setup
	PWOA_FUZZ=$(N) .venv/bin/python -m pytest -q -s tests/test_fuzz.py tests/files/test_zips.py

report-test: test-setup
	.venv/bin/python -m pytest -q tests/reports/in_browser.py

lint: test-setup
	.venv/bin/ruff check .
	.venv/bin/mypy

oldest:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" && \
	$(PYTHON) .ci/bounds.py > "$$folder/bounds.txt" && \
	"$$folder/bin/python" -m pip install -q -c "$$folder/bounds.txt" -e '.[test]' && \
	"$$folder/bin/python" $(PYTEST)

.venv-docs/.ready: pyproject.toml .ci/extra.py
	$(PYTHON) -m venv .venv-docs
	$(PYTHON) .ci/extra.py docs > .venv-docs/extra.txt
	.venv-docs/bin/python -m pip install -q --disable-pip-version-check -r .venv-docs/extra.txt
	@touch $@

docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict -d site  # -q would hide warnings, and not fail on them

docs-test: test-setup
	PWOA_DOCS=1 .venv/bin/python $(PYTEST) tests/test_docs.py

wheel-test:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder/env" && mkdir "$$folder/source" && \
	cp -r pwoa_cli pyproject.toml MANIFEST.in README.md LICENSE "$$folder/source" && \
	"$$folder/env/bin/python" -m pip wheel -q --no-deps -w "$$folder" "$$folder/source" && \
	"$$folder/env/bin/python" -m pip install -q "$$folder"/*.whl && \
	cp -r examples/mnist_lenet_linf0.3.pt examples/data "$$folder" && cd "$$folder" && rm -r source && \
	export OMP_NUM_THREADS=1 && env/bin/pwoa doctor && \
	env/bin/pwoa prune mnist_lenet_linf0.3.pt --sparsity 0.9 --epochs 0.1 --data data --samples 100

audit: .venv/bin/pwoa
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" && \
	"$$folder/bin/python" -m pip install -q pip-audit && \
	$(PIP) freeze --exclude-editable > "$$folder/installed.txt" && \
	"$$folder/bin/pip-audit" --strict --no-deps --disable-pip -r "$$folder/installed.txt"

licences: test-setup
	.venv/bin/python .ci/licences.py > docs/licences.md
