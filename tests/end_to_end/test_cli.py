"""The command line: fast help, errors in one line, trainings that are killed, several processes."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from end_to_end.running import EXPERIMENTS, TINY, scored, trained, uscl

from uscl.cli import main
from uscl.data import Volume, read_image, read_label, write_volume
from uscl.evaluation import read_rows

VCL, US = (f"--config {EXPERIMENTS / name}.yaml" for name in ("vcl", "eval_us"))
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


@pytest.mark.parametrize("line", ["", "dance"])
def test_wrong_usage_exits_with_2(line):
    with pytest.raises(SystemExit) as left:
        uscl(line)
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    {
        "segment": "required: image, points, out",
        "segment a --points 1,2,3 --out b --backbone.width 3": "backbone: expected str, found 3",
        "sweep s.yaml --out o --jobs two": "jobs: expected int, found two",
        "fit --nonsense 1": "unrecognized arguments: --nonsense 1",
        "test --config nowhere.yaml": "nowhere.yaml",
        f"fit {VCL} --model.lora.rnk 3": "model.lora: Option 'rnk' is not accepted",
        f"fit {VCL} --model.lora.rank x": "model.lora.rank: expected int, found x",
        f"fit {VCL} --model Nonsense": "model: expected the name or dotted path of a class or null, found Nonsense",
        f"fit {VCL} --model nowhere.X": "model: No module named 'nowhere'",
        f"fit {VCL} --model.optimizer.lr x": "model.optimizer.lr: expected float",
        f"fit {VCL} --seed_everything x": "seed_everything: expected bool or int, found x",
        f"test {US} --model.inference refind": "one of 'published', 'refined' or null, found refind",
    }.items(),
)
def test_what_a_parser_refuses_is_named_in_one_line(line, message, capsys):
    """Not after fifty lines of usage."""
    assert uscl(line) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert said.endswith(f"(`uscl {line.split()[0]} --help` lists the options)")


@pytest.mark.parametrize(
    ("content", "message"),
    {b"a: [\n": "not readable as YAML", b"- 1\n": "holds list; expected settings", b"\xff\xfe": "not readable"}.items(),
)
def test_a_config_that_is_none_is_named(content, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(content)
    assert uscl(f"fit {VCL} -c=c.yaml") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("uscl: error: c.yaml: ")
    assert message in said


def test_an_overwritten_run_goes_once_model_and_data_are_there(tmp_path, capsys):
    old = tmp_path / "old"
    old.mkdir()
    for name in ("run.json", "adapter.safetensors"):
        (old / name).write_text("{}")
    line = f"fit --config {EXPERIMENTS / 'lora.yaml'} --trainer.default_root_dir {old} --overwrite"
    assert uscl(f"{line} --model.tuning.rank 0") == 2
    assert "ranks must be at least 1" in capsys.readouterr().err
    assert sorted(path.name for path in old.iterdir()) == ["adapter.safetensors", "run.json"]


def test_what_is_registered_is_named_where_something_else_is_asked_for(tmp_path, capsys):
    for line, words in {
        f"simulate xray --out {tmp_path / 'x'}": "no phantom layout is called 'xray'; registered are ultrasound, amos",
        f"prepare xray --root . --out {tmp_path / 'x'}": "no data set is called 'xray'; registered are folder, amos",
        f"prepare no_such.read --root . --out {tmp_path / 'x'}": "Python finds no module 'no_such'",
        f"prepare json.read_mine --root . --out {tmp_path / 'x'}": "json has no 'read_mine'",
    }.items():
        assert uscl(line) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["truncated", "no foreground", "NaN", "other grid"])
def test_bad_training_data_are_shown_in_one_line_and_leave_no_run(study, tmp_path, capsys, kind, workers):
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
    line = trained(root, tmp_path / "runs").replace("--data.num_workers 0", f"--data.num_workers {workers}")
    assert uscl(line) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"uscl: error: {culprit}: ")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_rank_of_a_sweep_arrives_without_init_args(study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        uscl(f"{trained(study, tmp_path)} --model.tuning.rank=16 --print_config")
    printed = capsys.readouterr().out
    assert "rank: 16" in printed
    assert "alpha: null" in printed


def test_checkpoint_does_not_overrule_the_command_line(runs):
    """Lightning 2.6 lets hyperparameters in a checkpoint beat YAML and command line; ours hold none."""
    checkpoint = torch.load(runs / "lora/checkpoints/last.ckpt", weights_only=True)
    assert not checkpoint.get("hyper_parameters")


def test_a_killed_run_goes_on_where_it_was(study, tmp_path):
    """Two epochs at once, or one, a new process, and the other: the same adapter to the last bit."""
    from safetensors.torch import load_file

    lines = {name: trained(study, tmp_path / name) for name in ("whole", "first", "second")}
    assert uscl(f"{lines['whole']} --trainer.max_epochs 2") == 0
    assert uscl(lines["first"]) == 0
    checkpoint = tmp_path / "first/lora/checkpoints/last.ckpt"
    assert uscl(f"{lines['second']} --trainer.max_epochs 2 --ckpt_path {checkpoint}") == 0
    wanted, found = (load_file(tmp_path / name / "lora/adapter.safetensors") for name in ("whole", "second"))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_checkpoint_is_not_tested(study, tmp_path, capsys):
    """The adapter beside it is: a report would take the checkpoint's rows for those of the untouched backbone."""
    assert uscl(f"{scored(study, tmp_path)} --ckpt_path runs/lora/checkpoints/last.ckpt") == 2
    assert "--ckpt_path: resumes a training; what it left is given as --model.adapter" in capsys.readouterr().err
    assert not (tmp_path / "eval_us").exists()


def test_wandb_offline_leaves_config_and_metrics(study, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    options = {"offline": True, "save_dir": str(tmp_path), "project": "uscl"}
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": options}
    assert uscl(trained(study, tmp_path), "--trainer.logger", json.dumps(logger)) == 0
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert (tmp_path / "lora" / "config.yaml").is_file()


def run_program(line: str, timeout: int) -> None:
    import shlex

    command = [sys.executable, "-m", "uscl", *shlex.split(line)]
    subprocess.run(command, check=True, capture_output=True, timeout=timeout)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(study, tmp_path):
    rows = []
    for processes in (1, 2):
        folder = tmp_path / f"on{processes}"
        line = f'{scored(study, folder)} --trainer.devices {processes} --model.evaluation.clicks "[1, 2]"'
        run_program(line + " --trainer.strategy ddp" * (processes == 2), timeout=240)
        found = read_rows(folder / "eval_us" / "rows.csv")
        rows.append([(r.case, r.class_name, r.clicks, r.dice, r.nsd, r.hd95) for r in found])
    assert rows[0] == rows[1]
    assert not (tmp_path / "on2" / "eval_us-2").exists(), "both processes write to one folder"


@pytest.mark.slow
def test_stage_0_on_two_processes(anatomies, tmp_path):
    """Nobody waits for a gradient that never comes, and the average is taken beside the processes."""
    small = TINY.replace("--data.num_workers 0", "--data.workers 0 --data.torsos 1 --data.heads 1 --data.objects 2")
    line = f"""
        fit --config {EXPERIMENTS / "pretrain.yaml"} {small} --data.root {anatomies} --data.patches_per_epoch 12
        --data.batch_size 2 --data.val_patches 2 --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1
        --trainer.devices 2 --trainer.strategy ddp --trainer.default_root_dir {tmp_path / "run"}
    """
    run_program(line, timeout=400)
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("--model.weights nothing.safetensors", "nothing.safetensors: no such checkpoint file"),
        ("--data.objects 0", "objects, batch_size, uses and val_patches must be at least 1"),
    ],
)
def test_what_a_module_refuses_while_it_is_built_is_shown_in_one_line(tmp_path, capsys, wrong, words):
    line = f"fit --config {EXPERIMENTS / 'pretrain.yaml'} --trainer.accelerator cpu"
    assert uscl(f"{line} --trainer.default_root_dir {tmp_path / 'run'} {wrong}") == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("uscl: error:"))
    assert words in line
    assert not (tmp_path / "run").exists()


def test_experiments_come_with_the_package(tmp_path, monkeypatch, caplog, capsys):
    """From a folder that has none; a file of the user's own goes first."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        uscl("fit --config experiments/vcl.yaml --print_config")
    assert left.value.code == 0
    assert "experiments/vcl.yaml: not in this folder; taking " in caplog.text
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "vcl.yaml").write_text((EXPERIMENTS / "vcl.yaml").read_text() + "seed_everything: 77\n")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        uscl("fit --config=experiments/vcl.yaml --print_config")
    assert "seed_everything: 77" in capsys.readouterr().out
    assert uscl("sweep experiments/sweeps/lora_rank.yaml --out out --dry_run") == 0
    assert uscl("sweep experiments/sweeps/nothing.yaml --out out --dry_run") == 2
