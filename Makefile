# make book: install what is needed, run every chapter, build the site.  make test: all checks.

PYTHON ?= python3
PRESET ?= laptop
BIN := .venv/bin
SMOKE := $(CURDIR)/_build/smoke
SMOKE_RUNS := $(SMOKE)/runs/smoke
SMOKE_CACHE := $(CURDIR)/_build/smoke-cache

# One thread per process, one process per core: several multi-threaded torch processes at once
# slow each other down many times over.
export OMP_NUM_THREADS := 1

.PHONY: book test lint unit smoke nbval site-checks publish bench clean

book: .venv/.installed
	$(BIN)/kdnotes build --preset $(PRESET)

# Each stage of checks needs the one before it; its seconds are printed.
test:
	@for stage in lint unit smoke nbval site-checks; do \
		began=$$(date +%s); $(MAKE) $$stage || exit; \
		echo "make test: $$stage took $$(($$(date +%s) - began)) s"; \
	done

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: .venv/.installed
	$(BIN)/python -m pytest -m "not book" -n 2 --dist loadfile

# Every chapter by papermill, and the site made of them.
smoke: .venv/.installed
	KDNOTES_CACHE=$(SMOKE_CACHE) $(BIN)/kdnotes build --preset smoke --out $(SMOKE)

# The same chapters once more: what is tagged nbval-check-output must come out as before.
nbval: .venv/.installed
	rm -rf $(SMOKE)/again
	mkdir -p $(SMOKE)/again
	cp $(SMOKE_RUNS)/*.csv $(SMOKE_RUNS)/*.json $(SMOKE_RUNS)/*.parquet $(SMOKE)/again
	KDNOTES_CACHE=$(SMOKE_CACHE) KDNOTES_OUT=$(SMOKE)/again $(BIN)/python -m pytest \
		--nbval-lax --nbval-current-env --nbval-cell-timeout 300 --nbval-kernel-startup-timeout 120 \
		-n 2 --dist loadfile -p no:cacheprovider $(SMOKE_RUNS)

site-checks: .venv/.installed
	$(BIN)/python -m pytest -m book

# For maintainers: the small files of a finished run, into results/.
publish: .venv/.installed
	$(BIN)/python -m kdnotes.book.site $(PRESET)

# The same work by kdnotes and by others, timed side by side (BENCH="--only a,c --rounds 9"). Its
# environment has the peers as well.
bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks $(BENCH)

.venv-bench/.installed: requirements.txt pyproject.toml $(wildcard benchmarks/*.txt)
	$(PYTHON) -m venv .venv-bench
	echo '*' > .venv-bench/.gitignore
	.venv-bench/bin/python -m pip install --disable-pip-version-check -q \
		-r benchmarks/requirements.txt
	.venv-bench/bin/python -m pip install --disable-pip-version-check -q --no-deps \
		-r benchmarks/requirements-alone.txt
	touch $@

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13))' \
		|| { echo "$(PYTHON) is not CPython 3.11 to 3.13: name one, as in 'make PYTHON=python3.12'"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@
