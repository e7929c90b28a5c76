# `make demo` and `make test` need nothing but Python 3.11+ and a package registry. See `make help`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
MINI := runs/mini-study
ABLATION := runs/ablation
TABLES := runs/tables
# One folder for the demo's data, so that it neither needs nor touches yours.
DEMO_DATA := --data.root $(DEMO)/data --data.study.patients 6 --data.study.sweeps_per_patient 2 \
  --trainer.enable_model_summary false --overwrite

.PHONY: help install demo pretrain pretrain-fine reproduce-mini ablation tables test test-slow test-all test-minimum lint clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

install: .venv/installed ## create .venv with everything the other targets need

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "uscl needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed ## simulate sweeps, run both stages, test, predict; replaces the runs in runs/demo (four minutes on two cores)
	$(BIN)/uscl fit --config experiments/vcl.yaml $(DEMO_DATA) --trainer.default_root_dir $(DEMO)/vcl --trainer.max_epochs 2
	$(BIN)/uscl fit --config experiments/lora.yaml $(DEMO_DATA) --trainer.default_root_dir $(DEMO)/lora \
	  --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.limit_val_batches 4 \
	  --data.patches_per_epoch 240 --model.vcl_adapter $(DEMO)/vcl/adapter.safetensors
	$(BIN)/uscl test --config experiments/eval_us.yaml $(DEMO_DATA) --trainer.default_root_dir $(DEMO)/test \
	  --model.adapter $(DEMO)/lora/adapter.safetensors
	$(BIN)/uscl predict --config experiments/predict_us.yaml $(DEMO_DATA) --trainer.default_root_dir $(DEMO)/predict \
	  --model.adapter $(DEMO)/lora/adapter.safetensors
	@echo "Results table: $(DEMO)/test/table.md   pictures: $(DEMO)/test/pictures   sweeps: $(DEMO)/data/contact_sheet.png"
	@echo "Masks on each image's own grid: $(DEMO)/predict/masks"

pretrain: .venv/installed ## train the embedded backbone again (an hour on two cores); interrupted, it goes on
	latest=$$(ls -td runs/pretrain runs/pretrain-[0-9]* 2>/dev/null | head -1); checkpoint=$$latest/checkpoints/last.ckpt; \
	if [ ! -f "$$checkpoint" ] || grep -q '"status": "finished"' $$latest/run.json; then checkpoint=; fi; \
	$(BIN)/uscl fit --config experiments/pretrain.yaml $${checkpoint:+--ckpt_path $$checkpoint}

pretrain-fine: .venv/installed ## train mini_fine again (25 minutes on an H100; on two cores days); replaces its runs
	$(BIN)/uscl fit --config experiments/pretrain_fine.yaml --overwrite
	$(BIN)/uscl fit --config experiments/pretrain_fine_longer.yaml --overwrite
	$(BIN)/uscl fit --config experiments/pretrain_fine_last.yaml --overwrite

# The studies: each step is a sweep, which skips the cells that have finished. JOBS="--slurm.minutes 240 --jobs 8" runs
# their cells on SLURM.
JOBS ?= --jobs 2
SWEEP = $(BIN)/uscl sweep experiments/$(1).yaml --out $(2) $(JOBS)

reproduce-mini: .venv/installed ## stages 1 and 2 from the embedded mini_fine on sweeps; two and a half hours on two cores; interrupted, it goes on
	$(BIN)/uscl simulate ultrasound --out $(MINI)/data --patients 40 --workers 2
	$(call SWEEP,reproduce/vcl,$(MINI)/vcl)
	$(call SWEEP,reproduce/lora,$(MINI)/lora)
	$(call SWEEP,reproduce/untouched,$(MINI)/untouched)
	$(BIN)/python benchmarks/compare.py --out $(MINI)/table.md \
	  "LoRA from random weights=$(MINI)/lora/config-random/tests/eval_us/rows.csv" \
	  "mini_fine, untouched=$(MINI)/untouched/seed_everything-0/rows.csv" \
	  "mini_fine, VCL and LoRA=$(MINI)/lora/config-tuned/tests/eval_us/rows.csv"

ablation: .venv/installed ## Tables 3, 4 and 5 in small, three seeds; two hours on two cores; interrupted, it goes on
	$(BIN)/uscl simulate ultrasound --out $(ABLATION)/data --patients 20 --workers 2
	$(call SWEEP,ablation/untouched,$(ABLATION)/untouched)
	$(call SWEEP,ablation/stage1,$(ABLATION)/stage1)
	$(call SWEEP,ablation/both,$(ABLATION)/both)
	$(call SWEEP,ablation/methods,$(ABLATION)/methods)
	$(call SWEEP,ablation/parts,$(ABLATION)/parts)
	$(call SWEEP,ablation/ranks_seeds,$(ABLATION)/ranks_seeds)
	$(call SWEEP,ablation/ranks,$(ABLATION)/ranks)
	$(BIN)/uscl report $(ABLATION) --out $(ABLATION)/report

tables: .venv/installed ## Tables 1 and 2 in small, every method of the paper; half an hour on two cores; interrupted, it goes on
	$(BIN)/uscl simulate ultrasound --out $(ABLATION)/data --patients 20 --workers 2
	$(call SWEEP,tables/vcl,$(TABLES)/vcl)
	$(call SWEEP,tables/lora,$(TABLES)/lora)
	$(call SWEEP,tables/distill,$(TABLES)/distill)
	$(call SWEEP,tables/untouched,$(TABLES)/untouched)
	$(call SWEEP,tables/fastsam3d,$(TABLES)/fastsam3d)
	$(call SWEEP,tables/comparators,$(TABLES)/comparators) --skip-missing-weights
	$(BIN)/uscl report $(TABLES) --out $(TABLES)/report --tables 1,2

test: .venv/installed ## lint, types and all tests but the slow ones (under 5 minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/installed ## the tests that take long: several processes, resuming bit for bit, full size
	$(BIN)/python -m pytest -n 2 -m slow

test-all: test test-slow ## every test

test-minimum: ## all tests with the lower bounds of pyproject.toml, in an environment of its own
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --constraint tests/constraints-minimum.txt --editable '.[dev]'
	.venv-minimum/bin/python -m pytest -o filterwarnings=default

lint: .venv/installed ## fix what can be fixed, check the rest
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean: ## remove .venv and caches; data and runs stay
	rm -rf .venv .venv-minimum .mypy_cache .pytest_cache .ruff_cache
