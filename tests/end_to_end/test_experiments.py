"""Every YAML under experiments/ through the command line, on small data and the tiny backbone."""

import dataclasses
import json
from dataclasses import replace
from functools import cache

import pytest
import yaml
from end_to_end.running import (
    EXPERIMENTS,
    ONE_OBJECT,
    SMALL_HEAD,
    SMALL_VALIDATION,
    TINY,
    VERBS,
    scored,
    small,
    uscl,
)

from uscl.backbone import VARIANTS, build_sam_med3d, save_weights
from uscl.cli.lightning_cli import resolve
from uscl.evaluation import read_rows

PRETRAIN = sorted(EXPERIMENTS.glob("pretrain*.yaml"))
SCANS = {"eval_amos": "amos", "eval_totalsegmentator": "totalsegmentator", "eval_brats": "brats"}
DISTILL = EXPERIMENTS / "distill.yaml"
TOP = sorted(EXPERIMENTS.glob("*.yaml"))
OVERLAYS = {
    "comparators": EXPERIMENTS / "eval_us.yaml",
    "data": EXPERIMENTS / "lora.yaml",
    "inference": EXPERIMENTS / "predict_us.yaml",
    "protocols": EXPERIMENTS / "eval_us.yaml",
    "scale": EXPERIMENTS / "lora.yaml",
}
STAGE_0 = f"""
    {TINY.replace("--data.num_workers 0", "--data.workers 0")} --data.seed 0 --data.torsos 1 --data.heads 1
    --data.patches_per_epoch 4 --data.val_patches 2 --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1
"""


def settings(file) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in file.read_text().splitlines())


def test_every_experiment_is_run_here():
    known = {*VERBS, *SCANS, *(file.stem for file in PRETRAIN), DISTILL.stem}
    assert {file.stem for file in TOP} == known, "a new experiment needs its run in this file"
    folders = {path.name for path in EXPERIMENTS.iterdir() if path.is_dir()}
    assert folders == {*OVERLAYS, "ablation", "paper", "reproduce", "sweeps", "tables"}


@pytest.mark.parametrize("file", TOP, ids=lambda file: file.stem)
def test_an_experiment_holds_what_differs_from_the_defaults_alone(file):
    assert settings(file) <= 25


def verb(file) -> str:
    return {"predict_us": "predict"}.get(file.stem, "test" if file.stem.startswith("eval") else "fit")


@cache
def resolved(file):
    return resolve([verb(file), "--config", str(file)])


@pytest.mark.parametrize(
    ("folder", "overlay"),
    [(folder, overlay.stem) for folder in OVERLAYS for overlay in sorted((EXPERIMENTS / folder).glob("*.yaml"))],
)
def test_overlays_change_what_they_say_and_nothing_else(folder, overlay):
    base, file = OVERLAYS[folder], EXPERIMENTS / folder / f"{overlay}.yaml"
    before = resolved(base)
    after = resolve([verb(base), "--config", str(base), "--config", str(file)])

    def laid(found, wanted, where=""):
        """Every setting of the overlay is there."""
        for key, value in wanted.items():
            if isinstance(value, dict) and isinstance(found[key], dict):
                laid(found[key], value, f"{where}.{key}")
            elif key == "class_path":
                assert found[key].endswith(f".{value}")
            elif isinstance(found[key], dict):
                assert found[key]["class_path"].endswith(f".{value}")
            else:
                assert found[key] == value, f"{where}.{key}"

    laid(after, yaml.safe_load(file.read_text()))
    assert after["trainer"] == before["trainer"]
    assert after["seed_everything"] == before["seed_everything"]


def test_a_file_inside_a_config_is_one_more_way_to_compose(tmp_path):
    (tmp_path / "data.yaml").write_text("class_path: PhantomDataModule\ninit_args: {batch_size: 7}\n")
    text = (EXPERIMENTS / "vcl.yaml").read_text().split("data:")[0] + "data: data.yaml\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert resolve(["fit", "--config", str(tmp_path / "mine.yaml")])["data"]["init_args"]["batch_size"] == 7


@pytest.mark.parametrize("kind", ["ultrasound", "amos", "totalsegmentator", "brats"])
def test_what_is_simulated_by_default_is_what_the_experiments_read(kind, tmp_path, monkeypatch):
    """`uscl simulate KIND` into the folder of an experiment must not make the experiment refuse it."""
    made = []
    monkeypatch.setattr(
        "uscl.cli.commands.simulate.simulate_study", lambda layout, out, study, workers: made.append(study)
    )
    assert uscl(f"simulate {kind} --out {tmp_path}") == 0
    file = EXPERIMENTS / f"eval_{'us' if kind == 'ultrasound' else kind}.yaml"
    options = (yaml.safe_load(file.read_text())["data"].get("init_args") or {}).get("study", {})
    assert made == [replace(type(made[0])(), **options)]


@pytest.mark.slow
@pytest.mark.parametrize("config", PRETRAIN, ids=lambda file: file.stem)
def test_pretraining_leaves_weights_that_the_other_stages_take(config, study, anatomies, tmp_path):
    run = tmp_path / "pretrain"
    assert (
        uscl(
            f"fit --config {config} {STAGE_0} --data.batch_size 2 --data.root {anatomies} "
            f"--trainer.default_root_dir {run}"
        )
        == 0
    )
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/loss", "train/dice", "val/dice_1", "val/dice"))
    assert "train/semantic" in header
    line = scored(study, tmp_path).replace("--model.weights null", f"--model.weights {run / 'weights.safetensors'}")
    assert uscl(f"{line} {ONE_OBJECT}") == 0
    assert {row.weights[:26] for row in read_rows(tmp_path / "eval_us/rows.csv")} == {"weights.safetensors sha256"}


def test_a_distilled_student_is_a_backbone_like_any_other(study, anatomies, tmp_path):
    changes = {"depth": 2, "global_attention_blocks": [], "attention_free_blocks": 1, "residual_after_norm": True}
    fast = json.dumps({**dataclasses.asdict(VARIANTS["tiny"]), **changes})
    save_weights(build_sam_med3d("tiny"), tmp_path / "teacher.safetensors")
    run = tmp_path / "distill"
    line = f"fit --config {DISTILL} {STAGE_0} --data.root {anatomies} --trainer.default_root_dir {run} "
    line += f"--model.teacher tiny --model.teacher_weights {tmp_path / 'teacher.safetensors'}"
    assert uscl(line, "--model.backbone", fast) == 0
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/mse", "val/mse"))
    line = scored(study, tmp_path, EXPERIMENTS / "comparators" / "fastsam3d.yaml")
    line = line.replace("--model.weights null", f"--model.weights {run / 'weights.safetensors'}")
    assert uscl(f"{line} {ONE_OBJECT}", "--model.backbone", fast) == 0
    assert {row.method for row in read_rows(tmp_path / "eval_us/rows.csv")} == {"FastSAM3D"}


@pytest.mark.parametrize("name", SCANS)
def test_scans_in_the_layout_of_their_data_set(name, scans, tmp_path):
    """The same small study through the offline experiment and, as if it were the download, through the overlay."""
    rows, one = [], "whole tumour" if name == "eval_brats" else "liver"
    classes = "" if name == "eval_brats" else '--data.classes "[liver, spleen]"'
    offline = f"--data.study.patients 4 --data.study.coarsen 3 {classes}"
    # Few objects: scoring the scattered masks of random weights takes its time.
    download = f'--config {EXPERIMENTS / "data" / SCANS[name]}.yaml --data.classes "[{one}]"'
    for kind, more in {"offline": offline, "download": download}.items():
        line = f"test --config {EXPERIMENTS / name}.yaml {more} {TINY} --data.root {scans[SCANS[name]]}"
        assert uscl(f'{line} --model.evaluation.clicks "[1]" --trainer.default_root_dir {tmp_path / kind}') == 0
        rows.append(read_rows(tmp_path / kind / "rows.csv"))
    keys = [[(row.data_set, row.case, row.class_name, row.dice) for row in some] for some in rows]
    assert [key for key in keys[0] if key[2] == one] == keys[1] != []
    expected = {"whole tumour", "tumour core", "enhancing tumour"} if name == "eval_brats" else {"liver", "spleen"}
    assert {row.class_name for row in rows[0]} == expected


@pytest.mark.parametrize("name", ["vcl", "lora"])
def test_paper_trainings_run_with_a_smaller_backbone(name, study, tmp_path):
    extra = (
        SMALL_HEAD
        if name == "vcl"
        else f'--model.clicks.count 3 {SMALL_VALIDATION} --model.evaluation.val_clicks "[1]"'
    )
    assert uscl(f"{small(EXPERIMENTS / 'paper' / f'{name}.yaml', study, tmp_path)} {extra}") == 0


def test_the_study_in_small_trains_as_the_paper_does(study, tmp_path):
    vcl, lora = (EXPERIMENTS / "ablation" / f"{name}.yaml" for name in ("vcl", "lora"))
    assert uscl(f"{small(vcl, study, tmp_path)} {SMALL_HEAD}") == 0
    line = f'{small(lora, study, tmp_path)} {SMALL_VALIDATION} --model.evaluation.val_clicks "[1, 2]" --test_with "[]"'
    assert uscl(f"{line} --model.vcl_adapter {tmp_path / 'vcl/adapter.safetensors'}") == 0
    assert (tmp_path / "lora/adapter.safetensors").is_file()
