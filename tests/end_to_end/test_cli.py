"""The command line as a user meets it: fast help, clear errors, nothing written when something is wrong."""

import json
import resource
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data.test_volume import WORDS, broken

from uscl.backbone import build_sam_med3d
from uscl.cli import main
from uscl.data import Volume, read_image, read_label, write_volume
from uscl.evaluation import read_rows

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
COMMANDS = ("fit", "validate", "test", "predict", "segment", "simulate")


def test_help_answers_within_two_seconds_of_cpu_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "uscl", "--help"], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert all(command in done.stdout for command in COMMANDS)
    assert "not a medical device" in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [[], ["dance"], ["segment"], ["simulate", "xray", "--out", "x"], ["fit", "--nonsense", "1"]]
)
def test_wrong_usage_exits_with_2(args):
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 2


@pytest.fixture
def scan(tmp_path) -> Path:
    array = np.random.default_rng(0).normal(100, 30, (40, 50, 30)).astype(np.float32)
    direction = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    return write_volume(tmp_path / "in" / "scan.nii.gz", Volume(array, (1.1, 0.8, 2.0), (-20.0, 5.0, 300.0), direction))


def segment(*args) -> int:
    return main(["segment", *map(str, args), "--backbone", "tiny", "--weights", "null"])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_segment_writes_a_mask_on_the_grid_of_the_image(scan, tmp_path, caplog):
    out = tmp_path / "out" / "mask.nii.gz"
    picture = tmp_path / "out" / "mask.png"
    assert segment(scan, "--points", "20,25,15,1;2,2,2,0", "--out", out, "--picture", picture) == 0
    image, mask = sitk.ReadImage(str(scan)), sitk.ReadImage(str(out))
    assert mask.GetSize() == image.GetSize()
    assert mask.GetSpacing() == image.GetSpacing()
    assert mask.GetOrigin() == image.GetOrigin()
    np.testing.assert_allclose(mask.GetDirection(), image.GetDirection(), atol=1e-6)  # NIfTI keeps a quaternion
    assert picture.stat().st_size > 5000
    assert "RANDOM WEIGHTS" in caplog.text
    assert "not a medical device" in caplog.text


def test_physical_and_voxel_points_mean_the_same(scan, tmp_path):
    point = sitk.ReadImage(str(scan)).TransformIndexToPhysicalPoint((20, 25, 15))
    physical = ",".join(f"{value:.4f}" for value in point)
    assert segment(scan, "--points", "20,25,15", "--out", tmp_path / "a.nii.gz") == 0
    assert segment(scan, "--points", physical, "--space", "physical", "--out", tmp_path / "b.nii.gz") == 0
    assert np.array_equal(read_label(tmp_path / "a.nii.gz").array, read_label(tmp_path / "b.nii.gz").array)


def test_segment_averages_over_shifts_and_filters_and_looks_twice(scan, tmp_path, capsys):
    for shifts in (1, 2):
        out = tmp_path / f"{shifts}.nii.gz"
        assert segment(scan, "--points", "20,25,15", "--out", out, "--shifts", shifts) == 0
    assert (
        segment(scan, "--points", "20,25,15", "--out", tmp_path / "f.nii.gz", "--shifts", 1, "--guided_filter", "false")
        == 0
    )
    assert (
        segment(
            scan,
            "--points",
            "20,25,15",
            "--out",
            tmp_path / "t.nii.gz",
            "--shifts",
            1,
            "--guided_filter",
            "false",
            "--first_twice",
            "true",
        )
        == 0
    )
    masks = [read_label(tmp_path / f"{name}.nii.gz").array for name in (1, 2, "f", "t")]
    assert not any(np.array_equal(one, other) for one, other in combinations(masks, 2))
    with pytest.raises(SystemExit) as left:
        segment(scan, "--points", "20,25,15", "--out", tmp_path / "3.nii.gz", "--shifts", 3)
    assert left.value.code == 2
    assert "shifts" in capsys.readouterr().err
    assert not (tmp_path / "3.nii.gz").exists()


def test_an_empty_mask_is_told(scan, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(
        "uscl.prompting.segmenter.GuidedFilter.__call__", lambda self, logits, _: logits.clamp(max=-1.0)
    )
    assert segment(scan, "--points", "20,25,15", "--out", tmp_path / "a.nii.gz") == 0
    assert "The mask is EMPTY: add clicks, or try --guided_filter false" in caplog.text
    assert not read_label(tmp_path / "a.nii.gz").array.any()


@pytest.mark.parametrize("kind", WORDS)
def test_bad_images(kind, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    path = broken(kind, folder)
    before = files(tmp_path)
    assert segment(path, "--points", "2,2,2,1", "--out", tmp_path / "out" / "mask.nii.gz") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert [line for line in error if line.startswith("uscl: error: ")] == error[-1:]
    assert str(path) in error[-1]
    assert WORDS[kind] in error[-1]
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("40,0,0,1", "lies outside the volume of (40, 50, 30)"),
        ("0,0,0,0", "no foreground point"),
        ("a,b,c", "expected i,j,k"),
    ],
)
def test_bad_points(scan, tmp_path, capsys, points, words):
    before = files(tmp_path)
    assert segment(scan, "--points", points, "--out", tmp_path / "mask.nii.gz") == 2
    assert words in capsys.readouterr().err
    assert files(tmp_path) == before


def test_bad_weights_and_outputs(scan, tmp_path, capsys):
    torch.save(build_sam_med3d("tiny").state_dict(), tmp_path / "tiny.pth")
    before = files(tmp_path)
    common = [str(scan), "--points", "20,25,15,1"]
    wrong = {
        "no such checkpoint file": ["--out", "m.nii.gz", "--weights", "nothing.pth", "--backbone", "tiny"],
        "fits the variant 'tiny'": ["--out", "m.nii.gz", "--weights", str(tmp_path / "tiny.pth"), "--backbone", "mini"],
        "no such adapter file": ["--out", "m.nii.gz", "--adapter", "nothing.safetensors"],
        "expected a name ending in": ["--out", "m.png"],
        "exists already": ["--out", str(scan)],
        "no SAM-Med3D variant 'huge'": ["--out", "m.nii.gz", "--backbone", "huge"],
        "no weights are embedded for the backbone tiny": ["--out", "m.nii.gz", "--backbone", "tiny"],
    }
    for words, options in wrong.items():
        assert main(["segment", *common, *options]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in error
    assert files(tmp_path) == before
    assert read_image(scan).shape == (40, 50, 30)


def experiment(name: str, study: Path, *more: str) -> list[str]:
    verb = {"lora": "fit", "eval_us": "test"}[name]
    settings = [
        verb,
        "--config",
        str(EXPERIMENTS / f"{name}.yaml"),
        "--model.backbone",
        "tiny",
        "--model.weights",
        "null",
        "--data.root",
        str(study),
        "--data.preprocessing.patch_size",
        "64",
        "--data.preprocessing.spacing",
        "[3, 3, 3]",
        "--data.study",
        json.dumps({"patients": 3, "sweeps_per_patient": 2, "frames": 12, "size": 64}),
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    if verb == "fit":
        settings += [
            "--trainer.max_epochs",
            "1",
            "--trainer.check_val_every_n_epoch",
            "1",
            "--trainer.limit_val_batches",
            "1",
            "--data.sampling.minimum_foreground",
            "20",
            "--data.patches_per_epoch",
            "4",
            "--data.batch_size",
            "2",
            "--data.sampling.size",
            "32",
            "--data.sampling.objects",
            "2",
            "--model.evaluation.val_clicks",
            "[1]",
        ]
    return [*settings, *more]


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("kind", ["truncated", "no foreground", "NaN", "other grid"])
def test_bad_training_data_is_told_in_one_line_and_leaves_no_run(study, tmp_path, capsys, kind, workers):
    root = tmp_path / "data"
    shutil.copytree(study, root)
    image = sorted((root / "imagesTr").glob("train*"))[0]
    label = root / "labelsTr" / image.name
    culprit = image
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:-500])
    elif kind == "no foreground":
        volume, culprit = read_label(label), label
        write_volume(label, volume.with_array(np.zeros_like(volume.array)), overwrite=True)
    elif kind == "NaN":
        volume = read_image(image)
        array = volume.array.astype(np.float32)
        array[0, 0, 0] = np.nan
        write_volume(image, volume.with_array(array), overwrite=True)
    elif kind == "other grid":
        volume, culprit = read_label(label), label
        write_volume(label, Volume(volume.array, (9.0, 9.0, 9.0)), overwrite=True)
    assert main(experiment("lora", root, "--data.num_workers", workers)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"uscl: error: {culprit}: ")
    assert not Path("runs").exists() or not files(Path("runs"))


def test_rank_of_a_sweep_arrives_without_init_args(study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*experiment("lora", study), "--model.tuning.rank=16", "--print_config"])
    printed = capsys.readouterr().out
    assert "rank: 16" in printed
    assert "alpha: null" in printed


def test_checkpoint_does_not_overrule_the_command_line(study, tmp_path):
    """Lightning 2.6 lets hyperparameters in a checkpoint beat YAML and command line; ours hold none."""
    assert main(experiment("lora", study, "--trainer.default_root_dir", str(tmp_path / "a"))) == 0
    checkpoint = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    assert not checkpoint.get("hyper_parameters")


def test_a_killed_run_goes_on_where_it_was(study, tmp_path):
    """Two epochs at once, or one, a new process, and the other: the same adapter to the last bit."""
    from safetensors.torch import load_file

    run = experiment("lora", study)
    at = run.index("--trainer.max_epochs") + 1
    whole = [*run[:at], "2", *run[at + 1 :], "--trainer.default_root_dir", str(tmp_path / "whole")]
    assert main(whole) == 0
    assert main([*run, "--trainer.default_root_dir", str(tmp_path / "first")]) == 0
    second = [*run[:at], "2", *run[at + 1 :], "--trainer.default_root_dir", str(tmp_path / "second")]
    assert main([*second, "--ckpt_path", str(tmp_path / "first/checkpoints/last.ckpt")]) == 0
    wanted, found = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "second"))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_checkpoint_is_not_tested(study, tmp_path, capsys):
    """The adapter beside it is: a report would take the checkpoint's rows for those of the untouched backbone."""
    test = experiment("eval_us", study, "--trainer.default_root_dir", str(tmp_path / "a"))
    assert main([*test, "--ckpt_path", "runs/lora/checkpoints/last.ckpt"]) == 2
    assert "--ckpt_path: resumes a training; what it left is given as --model.adapter" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_wandb_offline_leaves_config_and_metrics(study, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"offline": True, "save_dir": str(tmp_path), "project": "uscl"},
    }
    run = str(tmp_path / "run")
    assert (
        main(experiment("lora", study, "--trainer.logger", json.dumps(logger), "--trainer.default_root_dir", run)) == 0
    )
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_two_processes_give_the_rows_of_one(study, tmp_path):
    rows = []
    for processes in ("1", "2"):
        folder = str(tmp_path / f"on{processes}")
        strategy = ["--trainer.strategy", "ddp"] if processes == "2" else []
        command = experiment(
            "eval_us",
            study,
            "--trainer.devices",
            processes,
            *strategy,
            "--trainer.default_root_dir",
            folder,
            "--model.evaluation.clicks",
            "[1, 2]",
        )
        subprocess.run([sys.executable, "-m", "uscl", *command], check=True, capture_output=True, timeout=240)
        found = read_rows(Path(folder) / "rows.csv")
        rows.append([(r.case, r.class_name, r.clicks, r.dice, r.nsd, r.hd95) for r in found])
    assert rows[0] == rows[1]
    assert not (tmp_path / "on2-2").exists(), "both processes write to one folder"


def test_stage_0_on_two_processes(tmp_path):
    """Nobody waits for a gradient that never comes, and the average is taken beside the processes."""
    command = [
        sys.executable,
        "-m",
        "uscl",
        "fit",
        "--config",
        str(EXPERIMENTS / "pretrain.yaml"),
        "--model.backbone",
        "tiny",
        "--data.root",
        str(tmp_path / "anatomies"),
        "--data.torsos",
        "1",
        "--data.heads",
        "1",
        "--data.workers",
        "0",
        "--data.preprocessing.patch_size",
        "64",
        "--data.preprocessing.spacing",
        "[3, 3, 3]",
        "--data.sampling.objects",
        "2",
        "--data.patches_per_epoch",
        "12",
        "--data.batch_size",
        "2",
        "--data.val_patches",
        "2",
        "--trainer.max_epochs",
        "1",
        "--trainer.check_val_every_n_epoch",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.default_root_dir",
        str(tmp_path / "run"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--model.weights", "nothing.safetensors"], "nothing.safetensors: no such checkpoint file"),
        (["--data.sampling.objects", "0"], "objects, batch_size, uses and val_patches must be at least 1"),
    ],
)
def test_what_a_module_says_while_it_is_built_is_told_in_one_line(tmp_path, capsys, wrong, words):
    command = ["fit", "--config", str(EXPERIMENTS / "pretrain.yaml"), "--trainer.accelerator", "cpu"]
    assert main([*command, "--trainer.default_root_dir", str(tmp_path / "run"), *wrong]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("uscl: error:"))
    assert words in line
    assert not (tmp_path / "run").exists()
