# `make demo` and `make test` need nothing but Python 3.11+ and a package registry. See `make help`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
MINI := runs/mini-study
# One folder for the demo's data, so that it neither needs nor touches yours.
DATA := --data.root $(DEMO)/data --data.study.patients 6 --data.study.sweeps_per_patient 2
FAST := --trainer.enable_model_summary false

.PHONY: help install demo pretrain pretrain-fine reproduce-mini study-tuned study-random study-untouched ablation tables test test-minimum lint clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

install: .venv/installed ## create .venv with everything the other targets need

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "uscl needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed ## simulate sweeps, run both stages, test, predict; replaces runs/demo (under 10 minutes on two cores)
	@if [ -d $(DEMO) ]; then echo "replacing the demo of an earlier run in $(DEMO)"; rm -rf $(DEMO); fi
	$(BIN)/uscl fit --config experiments/vcl.yaml $(DATA) $(FAST) \
	  --trainer.default_root_dir $(DEMO)/vcl --trainer.max_epochs 2
	$(BIN)/uscl fit --config experiments/lora.yaml $(DATA) $(FAST) \
	  --trainer.default_root_dir $(DEMO)/lora --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 \
	  --trainer.limit_val_batches 4 --data.patches_per_epoch 240 \
	  --model.vcl_adapter $(DEMO)/vcl/adapter.safetensors
	$(BIN)/uscl test --config experiments/eval_us.yaml $(DATA) \
	  --trainer.default_root_dir $(DEMO)/test --model.adapter $(DEMO)/lora/adapter.safetensors
	$(BIN)/uscl predict --config experiments/predict_us.yaml $(DATA) \
	  --trainer.default_root_dir $(DEMO)/predict --model.adapter $(DEMO)/lora/adapter.safetensors
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

# A run that has finished is not run again.
once = grep -qs '"status": "finished"' $(1)/run.json ||
STUDY := --data.root $(MINI)/data --data.study.patients 40 --data.study.sweeps_per_patient 2 $(FAST) --overwrite
STUDY_TEST := $(BIN)/uscl test --config experiments/eval_us.yaml $(STUDY)

reproduce-mini: .venv/installed ## stages 1 and 2 from the embedded mini_fine on sweeps; two and a half hours on two cores; interrupted, it goes on
	$(BIN)/uscl simulate ultrasound --out $(MINI)/data --patients 40 --workers 2
	OMP_NUM_THREADS=$$((($$(getconf _NPROCESSORS_ONLN) + 1) / 2)) $(MAKE) --jobs 2 study-tuned study-random study-untouched
	$(BIN)/python benchmarks/compare.py "LoRA from random weights=$(MINI)/test-random/rows.csv" \
	  "mini_fine, untouched=$(MINI)/test-untouched/rows.csv" "mini_fine, VCL and LoRA=$(MINI)/test/rows.csv" --out $(MINI)/table.md

study-tuned:
	$(call once,$(MINI)/vcl) $(BIN)/uscl fit --config experiments/vcl.yaml $(STUDY) --trainer.default_root_dir $(MINI)/vcl
	$(call once,$(MINI)/lora) $(BIN)/uscl fit --config experiments/lora.yaml $(STUDY) --trainer.default_root_dir $(MINI)/lora \
	  --model.vcl_adapter $(MINI)/vcl/adapter.safetensors
	$(call once,$(MINI)/test) $(STUDY_TEST) --trainer.default_root_dir $(MINI)/test --model.adapter $(MINI)/lora/adapter.safetensors

study-random:
	$(call once,$(MINI)/lora-random) $(BIN)/uscl fit --config experiments/lora.yaml $(STUDY) --model.weights null \
	  --trainer.default_root_dir $(MINI)/lora-random
	$(call once,$(MINI)/test-random) $(STUDY_TEST) --trainer.default_root_dir $(MINI)/test-random --model.weights null \
	  --model.adapter $(MINI)/lora-random/adapter.safetensors

study-untouched:
	$(call once,$(MINI)/test-untouched) $(STUDY_TEST) --trainer.default_root_dir $(MINI)/test-untouched

ABLATION := runs/ablation
SMALL := --config experiments/ablation/testing.yaml
JOBS ?= 2

ablation: .venv/installed ## Tables 3, 4 and 5 in small, three seeds; two hours on two cores; interrupted, it goes on
	$(BIN)/uscl simulate ultrasound --out $(ABLATION)/data --patients 20 --workers 2
	for name in eval_us eval_amos eval_totalsegmentator eval_brats; do \
	  grep -qs '"status": "finished"' $(ABLATION)/untouched/$$name/run.json || \
	  $(BIN)/uscl test --config experiments/$$name.yaml $(SMALL) \
	    $$(test $$name = eval_us && echo --config experiments/ablation/testing_us.yaml) \
	    --trainer.default_root_dir $(ABLATION)/untouched/$$name --overwrite || exit; \
	done
	for name in stage1 both methods parts ranks_seeds ranks; do \
	  $(BIN)/uscl sweep experiments/ablation/$$name.yaml --out $(ABLATION)/$$name --jobs $(JOBS) || exit; \
	done
	$(BIN)/uscl report $(ABLATION) --out $(ABLATION)/report

TABLES := runs/tables
EVALUATIONS := eval_us eval_amos eval_totalsegmentator eval_brats

tables: .venv/installed ## Tables 1 and 2 in small, every method of the paper; half an hour on two cores; interrupted, it goes on
	$(BIN)/uscl simulate ultrasound --out $(ABLATION)/data --patients 20 --workers 2
	$(call once,$(TABLES)/vcl) $(BIN)/uscl fit --config experiments/ablation/vcl.yaml --overwrite \
	  --trainer.default_root_dir $(TABLES)/vcl --model.lora.rank 32
	$(call once,$(TABLES)/lora) $(BIN)/uscl fit --config experiments/ablation/lora.yaml --overwrite \
	  --trainer.default_root_dir $(TABLES)/lora --model.tuning.rank 32 \
	  --model.vcl_adapter $(TABLES)/vcl/adapter.safetensors \
	  --test_with "[experiments/eval_us.yaml --config experiments/ablation/testing_us.yaml, experiments/eval_amos.yaml, \
	    experiments/eval_totalsegmentator.yaml, experiments/eval_brats.yaml]"
	$(call once,$(TABLES)/distill) $(BIN)/uscl fit --config experiments/distill.yaml --overwrite \
	  --trainer.default_root_dir $(TABLES)/distill
	for name in $(EVALUATIONS); do for method in untouched fastsam3d sam mobilesam tinysam sam_med2d; do \
	  out=$(TABLES)/$$method/$$name; grep -qs '"status": "finished"' $$out/run.json && continue; \
	  set -- --config experiments/$$name.yaml; \
	  test $$name != eval_us || set -- "$$@" --config experiments/ablation/testing_us.yaml; \
	  if test $$method = untouched; then set -- "$$@" --model.backbone mini; \
	  else set -- "$$@" --config experiments/comparators/$$method.yaml; fi; \
	  test $$method != fastsam3d || set -- "$$@" --model.weights $(TABLES)/distill/weights.safetensors; \
	  $(BIN)/uscl test "$$@" --trainer.default_root_dir $$out --overwrite || \
	    grep -qs '"status": "weights not found' $$out/run.json || exit; \
	done; done
	$(BIN)/uscl report $(TABLES) --out $(TABLES)/report --tables 1,2

test: .venv/installed ## lint, types and all tests (12 to 22 minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

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
