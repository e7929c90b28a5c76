"""`uscl sweep`: the very files that `wandb sweep` takes, run without a server."""

import copy
import csv
import io
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from uscl.cli import main
from uscl.cli.commands.sweep_file import cell_command, cell_name, read_sweep_file
from uscl.errors import InputError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FILES = [
    file
    for folder in ("sweeps", "ablation")
    for file in sorted((EXPERIMENTS / folder).glob("*.yaml"))
    if "parameters:" in file.read_text()
]


def small_sweep(study: Path, path: Path, ranks: list[int]) -> Path:
    """Stage 2 for a step with the tiny backbone, at some ranks."""
    options = {
        "model.backbone": "tiny",
        "model.weights": "null",
        "model.evaluation.val_clicks": "[1]",
        "data.batch_size": 2,
        "data.sampling.size": 32,
        "data.sampling.objects": 2,
        "trainer.check_val_every_n_epoch": 1,
        "data.root": str(study),
        "data.preprocessing.patch_size": 64,
        "data.preprocessing.spacing": "[3, 3, 3]",
        "data.num_workers": 0,
        "data.patches_per_epoch": 2,
        "data.sampling.minimum_foreground": 20,
        "data.study": json.dumps({"patients": 3, "sweeps_per_patient": 2, "frames": 12, "size": 64}),
        "trainer.max_epochs": 1,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
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
    assert second["2"]["seconds"] == first["2"]["seconds"]
    assert float(second["1"]["seconds"]) > 0.1
    assert first["0"]["seconds"] == "nan", "it never began"
    # Another command would mix cells that cannot be compared.
    content = yaml.safe_load(file.read_text())
    content["command"].insert(-1, "--trainer.max_epochs=2")
    file.write_text(yaml.safe_dump(content))
    assert main(["sweep", str(file), "--out", str(out)]) == 2
    assert "another command" in capsys.readouterr().err


def test_cells_that_run_together_share_cores_and_gpus(monkeypatch):
    import threading

    from uscl.cli.commands import sweep as command

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(command.os, "cpu_count", lambda: 8)
    together, seen = threading.Barrier(4, timeout=20), []

    def cell(place, wait) -> bool:
        together.wait()
        seen.append((place["CUDA_VISIBLE_DEVICES"], place["OMP_NUM_THREADS"]))
        return True

    assert sorted(command._run_here({str(number): cell for number in range(8)}, 4)) == list("01234567")
    assert sorted(seen) == [("2", "2")] * 4 + [("5", "2")] * 4
    seen.clear()
    assert list(command._run_here({"a": lambda place, wait: not seen.append(place)}, 1)) == ["a"]
    assert seen == [{}], "one at a time has everything"


def test_what_runs_elsewhere_is_passed_over_and_waited_for_last():
    """Two calls that wait for each other's cells would be no faster than one."""
    from uscl.cli.commands.sweep import _run_here

    tried = []

    def cell(name, place, wait) -> bool:
        tried.append((name, wait))
        return name != "busy" or wait

    assert list(_run_here({name: partial(cell, name) for name in ("busy", "a", "b")}, 1)) == ["a", "b", "busy"]
    assert tried == [("busy", False), ("a", False), ("b", False), ("busy", True)]


def test_after_ctrl_c_no_further_cell_begins():
    from uscl.cli.commands.sweep import _run_here

    begun = []

    def cell(name, place, wait) -> bool:
        begun.append(name)
        time.sleep(0.2)
        return True

    def interrupted() -> None:
        for _ in _run_here({name: partial(cell, name) for name in range(20)}, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) <= 2


def test_a_cell_that_runs_elsewhere_is_waited_for(tmp_path):
    """Even if the call that started it was killed: the program itself holds the lock."""
    from uscl.cli.commands.sweep import run_cell

    (tmp_path / "logs").mkdir()
    cell = """
import json, sys, time
from pathlib import Path
run = Path(sys.argv[1])
run.mkdir(exist_ok=True)
with open(run / "times", "a") as stream:
    stream.write("x")
print("said", flush=True)
time.sleep(3)
(run / "run.json").write_text(json.dumps({"status": "finished"}))
"""
    command = [sys.executable, "-c", cell, str(tmp_path / "a")]
    caller = "from pathlib import Path; from uscl.cli.commands.sweep import run_cell; "
    caller += f"run_cell(Path({str(tmp_path)!r}), 'a', {command!r})"
    with subprocess.Popen([sys.executable, "-c", caller]) as first:
        until = time.monotonic() + 60
        while not (tmp_path / "a" / "times").is_file() and time.monotonic() < until:
            time.sleep(0.05)
        first.kill()
    assert not run_cell(tmp_path, "a", command, wait=False)
    assert run_cell(tmp_path, "a", command)
    assert json.loads((tmp_path / "a" / "run.json").read_text()) == {"status": "finished"}
    assert (tmp_path / "a" / "times").read_text() == "x"
    assert (tmp_path / "logs" / "a.log").read_text() == "said\n"


def test_a_cell_that_was_killed_before_it_had_a_record_is_run(tmp_path):
    """W&B has written into its folder already, which --overwrite would not take for a run's."""
    from uscl.cli.commands.sweep import run_cell

    (tmp_path / "logs").mkdir()
    (tmp_path / "a" / "wandb").mkdir(parents=True)
    run_cell(tmp_path, "a", [sys.executable, "-c", f"import os; os.mkdir({str(tmp_path / 'a')!r})"])
    assert list((tmp_path / "a").iterdir()) == []
    # What has a record is left to --overwrite.
    (tmp_path / "a" / "run.json").write_text('{"status": "running"}')
    (tmp_path / "a" / "notes.txt").touch()
    run_cell(tmp_path, "a", [sys.executable, "-c", ""])
    assert (tmp_path / "a" / "notes.txt").is_file()


def test_calls_that_begin_at_the_same_time_share_a_folder(tmp_path):
    import threading

    from uscl.cli.commands.sweep import _claim

    content = {"command": ["uscl", "fit", "${args}"], "method": "grid", "parameters": {"a": {"values": [1]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    asked, together, wrong = read_sweep_file(tmp_path / "s.yaml"), threading.Barrier(8, timeout=20), []

    def call(folder: Path) -> None:
        together.wait()
        try:
            _claim(folder, asked)
        except Exception as error:
            wrong.append(error)

    for number in range(5):
        threads = [threading.Thread(target=call, args=(tmp_path / f"out{number}",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert json.loads((tmp_path / f"out{number}" / "sweep.json").read_text())["command"] == content["command"]
    assert wrong == []


def test_table_shows_values_as_they_are():
    from rich.console import Console

    from uscl.cli.commands.sweep import _table
    from uscl.cli.commands.sweep_file import SweepFile

    asked = SweepFile(("${args}",), ({"classes": "[liver]", "lr": 1e-5},), None, False)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_table("x", [{"classes": "[liver]", "lr": 1e-5, "status": "finished"}], asked))
    text = console.export_text()
    assert "[liver]" in text
    assert "1e-05" in text


def test_a_cell_that_never_began_is_told(tmp_path):
    """A job that SLURM ended before it ran leaves no log."""
    from uscl.cli.commands.sweep import _reason

    assert _reason(tmp_path / "logs" / "a.log") == "it never began"
    (tmp_path / "slurm").mkdir()
    assert str(tmp_path / "slurm") in _reason(tmp_path / "logs" / "a.log")


def test_nothing_else_is_taken_for_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "base.yaml").write_text("seed_everything: 0")
    content = {
        "command": ["uscl", "fit", "--config", "base.yaml", "${args}"],
        "method": "grid",
        "parameters": {"nothing": {"values": [1]}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "s.yaml", "--out", "photos"]) == 2
    assert "something else than a sweep" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    assert main(["sweep", "s.yaml", "--out", "out"]) == 2
    assert "1 of 1 cells failed" in capsys.readouterr().err
    (tmp_path / "base.yaml").write_text("seed_everything: 1")
    assert main(["sweep", "s.yaml", "--out", "out"]) == 2
    assert "other contents of its YAML files" in capsys.readouterr().err


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_sweep_files_mean_the_same_to_wandb_and_to_our_command_line(file, tmp_path, monkeypatch, capsys):
    """W&B's own macro expansion gives the arguments that we give, and our parser takes them."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.chdir(EXPERIMENTS.parent)
    asked = read_sweep_file(file)
    assert len({cell_name(cell) for cell in asked.cells}) == len(asked.cells) >= 6
    assert (asked.metric, asked.maximise) in (("val/dice", True), ("train/loss", False))
    commands = []
    for cell in asked.cells:
        theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in cell.items()}})["args"]
        ours = cell_command(asked.command, cell, tmp_path)
        expanded = create_sweep_command(copy.copy(list(asked.command)))
        assert expanded[:3] == ["${env}", "uscl", "fit"]
        assert ours == [
            sys.executable,
            "-m",
            "uscl",
            *asked.command[2:-1],
            *theirs,
            f"--trainer.default_root_dir={tmp_path}",
            "--overwrite",
        ]
        commands.append(ours[3:])
    with pytest.raises(SystemExit) as ended:
        main([*commands[-1], "--print_config"])
    assert not ended.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["seed_everything"] == asked.cells[-1]["seed_everything"]


def test_values_reach_the_parser_as_what_they_are(tmp_path, capsys):
    content = {
        "command": ["uscl", "fit", "--config", str(EXPERIMENTS / "lora.yaml"), "${args}"],
        "method": "grid",
        "parameters": {
            "model.vcl_adapter": {"value": None},
            "model.adapter": {"value": "a folder/with space.x"},
            "model.tuning.projections": {"values": [["q", "out"]]},
            "model.clicks.learned": {"value": 1},
            "model.tuning.dropout": {"value": 1e-5},
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    asked = read_sweep_file(tmp_path / "s.yaml")
    with pytest.raises(SystemExit):
        main([*cell_command(asked.command, asked.cells[0], tmp_path / "out")[3:], "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert (options["vcl_adapter"], options["adapter"]) == (None, "a folder/with space.x")
    assert options["object_clicks"]["learned"] == 1
    assert options["tuning"]["init_args"]["projections"] == ["q", "out"]
    assert options["tuning"]["init_args"]["dropout"] == 1e-5


def test_variables_of_the_environment_are_filled_in(monkeypatch, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    monkeypatch.setenv("LENGTH", "7")
    given = ["uscl", "fit", "--trainer.max_epochs=${envvar:LENGTH}", "--x=${envvar:ABSENT_HERE}", "${args}"]
    ours = cell_command(tuple(given), {"a": 1}, tmp_path)[3:-2]
    assert ours == [*create_sweep_command(copy.copy(given))[1:-1], "--a=1"]


def test_run_cap_holds_for_a_grid_too(tmp_path):
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "grid",
        "run_cap": 2,
        "parameters": {"a": {"values": [1, 2, 3]}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert [cell["a"] for cell in read_sweep_file(tmp_path / "s.yaml").cells] == [1, 2]


def test_random_values_follow_their_probabilities(tmp_path):
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "random",
        "run_cap": 200,
        "parameters": {"a": {"values": ["rare", "often"], "probabilities": [0.1, 0.9]}, "b": {"min": 0.0, "max": 1.0}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    drawn = [cell["a"] for cell in read_sweep_file(tmp_path / "s.yaml").cells]
    assert 5 < drawn.count("rare") < 40


def test_random_cells_are_the_same_every_time_and_can_be_continued(tmp_path):
    file = tmp_path / "random.yaml"
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "random",
        "run_cap": 4,
        "parameters": {
            "model.tuning.rank": {"min": 1, "max": 64},
            "lr": {"min": 0.0001, "max": 0.1, "distribution": "log_uniform_values"},
            "x": {"values": ["a", "b"]},
            "y": {"value": 3},
        },
    }
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
        ({"command": "uscl fit ${args}"}, "command must be a list"),
        ({"metric": "val/dice"}, "metric have name and goal"),
        ({"metric": {"name": ["a"]}}, "metric have name and goal"),
        ({"metric": {"name": "val/dice", "goal": "maximise"}}, "minimize or maximize, found 'maximise'"),
        ({"run_cap": 0}, "run_cap is the number of cells"),
        ({"program": "train.py", "command": ["${env}", "${program}", "${args}"]}, "program is 'train.py'"),
        ({"parameters": {"a": {"values": [1], "probabilites": [1]}}}, "probabilites is not known here"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [1]}}}, "one number from 0 to 1 for each"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [0.1, 0.1]}}}, "add up to 1"),
        ({"parameters": {"a": 3}}, "parameter a: expected value, values"),
        ({"parameters": {"a": {"values": 3}}}, "values must be a list"),
        ({"parameters": {"a": {"values": []}}}, "values must be a list"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "write it flat"),
        (
            {
                "method": "random",
                "run_cap": 1,
                "parameters": {"a": {"min": 0.1, "max": 0.9, "distribution": "int_uniform"}},
            },
            "cannot draw",
        ),
    ],
)
def test_files_that_cannot_be_run_here(tmp_path, changed, message):
    content = {"command": ["uscl", "fit", "${args}"], "method": "grid", "parameters": {"a": {"values": [1]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | changed))
    with pytest.raises(InputError, match=message):
        read_sweep_file(tmp_path / "s.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="not readable as YAML in UTF-8"):
        read_sweep_file(tmp_path / "s.yaml")


def test_a_cell_that_is_asked_for_twice_is_run_once(tmp_path):
    content = {"command": ["uscl", "fit", "${args}"], "method": "grid", "parameters": {"a": {"values": [1, 1, 2]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert [cell["a"] for cell in read_sweep_file(tmp_path / "s.yaml").cells] == [1, 2]


def test_commands_of_something_else_are_not_run(tmp_path):
    with pytest.raises(InputError, match="expected uscl"):
        cell_command(("rm", "${args}"), {"a": 1}, tmp_path)
    for macro in ("${args_no_hyphens}", "--x=${program}"):
        with pytest.raises(InputError, match="macro"):
            cell_command(("uscl", macro, "${args}"), {"a": 1}, tmp_path)
