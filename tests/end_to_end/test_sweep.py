"""`uscl sweep`: the very files that `wandb sweep` takes, run without a server."""

import copy
import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

from uscl.cli import main
from uscl.commands.sweep import cell_command, cell_name, read_sweep_file
from uscl.errors import InputError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted((EXPERIMENTS / "sweeps").glob("*.yaml"))


def small_sweep(study: Path, path: Path, ranks: list[int]) -> Path:
    """Stage 2 for a step with the tiny backbone, at some ranks."""
    options = {
        "model.backbone": "tiny", "model.weights": "null", "model.clicks.count": 1, "model.val_clicks": "[1]",
        "data.root": str(study), "data.preprocessing.patch_size": 64, "data.preprocessing.spacing": "[3, 3, 3]",
        "data.num_workers": 0, "data.patches_per_epoch": 2, "data.sampling.minimum_foreground": 20,
        "data.study": json.dumps({"patients": 3, "sweeps_per_patient": 2, "frames": 12, "size": 64}),
        "trainer.max_epochs": 1, "trainer.limit_val_batches": 1, "trainer.num_sanity_val_steps": 0,
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false",
    }  # fmt: skip
    fixed = [f"--{name}={value}" for name, value in options.items()]
    command = ["${env}", "uscl", "fit", "--config", str(EXPERIMENTS / "lora.yaml"), *fixed, "${args}"]
    content = {"program": "uscl", "command": command, "method": "grid", "parameters": {}}
    content["metric"] = {"name": "val/dice", "goal": "maximize"}
    content["parameters"]["model.tuning.rank"] = {"values": ranks}
    path.write_text(yaml.safe_dump(content))
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_cells_are_run_once_and_failures_are_told(study, tmp_path, capsys):
    out = tmp_path / "out"
    file = small_sweep(study, tmp_path / "sweep.yaml", [2, 0])
    assert main(["sweep", str(file), "--out", str(out)]) == 2
    assert "1 of 2 cells failed" in capsys.readouterr().err
    first = {row["model.tuning.rank"]: row for row in rows(out)}
    assert (first["2"]["status"], first["0"]["status"]) == ("finished", "failed")
    assert 0 <= float(first["2"]["val/dice"]) <= 1
    assert "LoRA's ranks must be at least 1" in first["0"]["problem"]
    run = out / first["2"]["cell"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["tuning"]["init_args"]["rank"] == 2
    assert config["trainer"]["default_root_dir"] == str(run)
    before = (run / "metrics.csv").stat().st_mtime_ns
    # Mended and made longer: the finished cell stays as it is.
    assert main(["sweep", str(small_sweep(study, file, [2, 1])), "--out", str(out), "--jobs", "2"]) == 0
    second = {row["model.tuning.rank"]: row for row in rows(out)}
    assert set(second) == {"1", "2"}
    assert (run / "metrics.csv").stat().st_mtime_ns == before
    assert second["2"]["val/dice"] == first["2"]["val/dice"]
    assert float(second["2"]["seconds"]) == 0 < float(second["1"]["seconds"])
    # Another command would mix cells that cannot be compared.
    content = yaml.safe_load(file.read_text())
    content["command"].insert(-1, "--trainer.max_epochs=2")
    file.write_text(yaml.safe_dump(content))
    assert main(["sweep", str(file), "--out", str(out)]) == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_sweep_files_mean_the_same_to_wandb_and_to_our_command_line(file, tmp_path, monkeypatch, capsys):
    """W&B's own macro expansion gives the arguments that we give, and our parser takes them."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.chdir(EXPERIMENTS.parent)
    asked = read_sweep_file(file)
    assert len({cell_name(cell) for cell in asked.cells}) == len(asked.cells) >= 6
    assert asked.metric == "val/dice"
    assert asked.maximise
    seen = set()
    for cell in (asked.cells[0], asked.cells[len(asked.cells) // 2], asked.cells[-1]):
        theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in cell.items()}})["args"]
        ours = cell_command(asked.command, cell, tmp_path)
        expanded = create_sweep_command(copy.copy(list(asked.command)))
        assert expanded[:3] == ["${env}", "uscl", "fit"]
        assert ours == [sys.executable, "-m", "uscl", *asked.command[2:-1], *theirs,
                        f"--trainer.default_root_dir={tmp_path}", "--overwrite"]  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*ours[3:], "--print_config"])
        assert not ended.value.code
        config = yaml.safe_load(capsys.readouterr().out)
        seen.add(yaml.safe_dump([config["model"]["init_args"]["tuning"], config["seed_everything"]]))
    assert len(seen) == 3


def test_random_cells_are_the_same_every_time_and_can_be_continued(tmp_path):
    file = tmp_path / "random.yaml"
    content = {
        "command": ["uscl", "fit", "${args}"], "method": "random", "run_cap": 4,
        "parameters": {"model.tuning.rank": {"min": 1, "max": 64}, "lr": {"min": 0.0001, "max": 0.1,
                       "distribution": "log_uniform_values"}, "x": {"values": ["a", "b"]}, "y": {"value": 3}},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    few = read_sweep_file(file).cells
    file.write_text(yaml.safe_dump(content | {"run_cap": 40}))
    many = read_sweep_file(file).cells
    assert many[:4] == few
    assert all(1 <= cell["model.tuning.rank"] <= 64 and 1e-4 <= cell["lr"] <= 0.1 and cell["y"] == 3 for cell in many)
    assert {cell["x"] for cell in many} == {"a", "b"}
    assert sum(cell["lr"] < 10**-2.5 for cell in many) > 10, "evenly in the logarithm"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "bayes"}, "without a server there are grid and random"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs W&B's server"),
        ({"parameters": {}}, "expected the keys"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, "a grid takes value or values"),
        ({"method": "random"}, "needs run_cap"),
        ({"method": "random", "run_cap": 1, "parameters": {"a": {"min": 2, "max": 1}}}, "cannot draw"),
        ({"command": ["uscl", "fit"]}, r"lacks \$\{args\}"),
    ],
)
def test_files_that_cannot_be_run_here(tmp_path, changed, message):
    content = {"command": ["uscl", "fit", "${args}"], "method": "grid", "parameters": {"a": {"values": [1]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | changed))
    with pytest.raises(InputError, match=message):
        read_sweep_file(tmp_path / "s.yaml")


def test_commands_of_something_else_are_not_run(tmp_path):
    with pytest.raises(InputError, match="expected uscl"):
        cell_command(("rm", "${args}"), {"a": 1}, tmp_path)
    with pytest.raises(InputError, match="macro"):
        cell_command(("uscl", "${args_no_hyphens}", "${args}"), {"a": 1}, tmp_path)
