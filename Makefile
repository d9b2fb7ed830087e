# make demo   train the built-in digits model on a reward, sample it, judge it, report it
# make test   the default tests (no GPU, no network, no downloads)
# Each works as the first command in a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := runs/demo
SCHEMA := launch/recipes/recipe.schema.json

export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
export HF_HUB_DISABLE_TELEMETRY := 1
# ninja and the compiler wrappers lie beside the venv's python
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo test test-slow test-gpu faults soak fuzz lint format docs bench bench-digits bench-queries bench-rewards bench-lora-scale bench-sft_pg \
	bench-value_baseline bench-planning bench-host_memory bench-watching bench-host_waits bench-peers bench-gpu bench-gpu-peers record-check rooms clean

setup: $(READY) $(SCHEMA)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("memdiff needs Python >= 3.11, got " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# what an editor completes and checks the recipes by
$(SCHEMA): $(READY) $(wildcard memdiff/*/*config.py memdiff/memory/knobs.py memdiff/recipe/*.py)
	$(BIN)/python -m memdiff schema > $@

demo: $(READY)
	launch/demo.sh $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow and not gpu' -n 2 --dist loadfile tests

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow and not gpu' tests

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu tests/gpu

# real runs, killed, stopped, frozen and starved, two at a time; ONLY=early,orphans chooses; `make soak` takes longer
faults: $(READY)
	$(BIN)/python -m tests.faults $(if $(ONLY),--only $(ONLY))

soak: $(READY)
	$(BIN)/python -m tests.faults --soak

# damaged and hostile files through every command: docs/hostile_input.md; SEED and COUNT choose other mutants
SEED ?= 0
COUNT ?= 100
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --count $(COUNT)
	$(BIN)/python -m tests.fuzz.recipes --seed $(SEED) --processes 12
	$(BIN)/python -m tests.fuzz.pages

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the documentation, into build/site: open build/site/index.html
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

bench: $(READY)
	for suite in cpu chain world plan; do $(BIN)/python -m benchmarks run $$suite || exit 1; done
	$(MAKE) bench-digits bench-queries

bench-digits bench-queries bench-rewards bench-sft_pg bench-value_baseline bench-planning bench-host_memory bench-watching bench-host_waits: bench-%: $(READY)
	$(BIN)/python -m benchmarks.studies.$*

bench-lora-scale: $(READY)
	$(if $(RUN),,$(error bench-lora-scale needs a run with an adapter: make bench-lora-scale RUN=runs/NAME))
	$(BIN)/python -m benchmarks.studies.lora_scale $(RUN)

bench-peers: $(READY)
	PYTHON=$(PYTHON) sh benchmarks/peers/make_env.sh
	$(BIN)/python -m benchmarks run peers --repeats 3

# the card's own minutes: --minutes N; without a card: --dry-run
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks run gpu

# what TRL's rows of bench-gpu need, before the card's minutes begin (about 4 GB)
bench-gpu-peers: $(READY)
	PYTHON=$(PYTHON) sh benchmarks/peers/make_env.sh
	.cache/peers-venv/bin/python -m benchmarks.peers.make_pipeline .cache/peers-pipeline-sd15 --shape sd15

record-check: $(READY)
	$(BIN)/python -m benchmarks.recorder check

rooms: $(READY)
	$(BIN)/python -m tests.house.rooms

clean:
	rm -rf .cache .pytest_cache .ruff_cache build dist
