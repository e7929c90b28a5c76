"""`uscl sweep`: the very files that `wandb sweep` takes, run without a server."""

import csv
import json
import shlex
from pathlib import Path

import pytest
import yaml
from end_to_end.running import EXPERIMENTS, STUDY, in_process, uscl

from uscl.cli.lightning_cli import resolve

FIXED = {
    "model.backbone": "tiny",
    "model.weights": "null",
    "model.evaluation.val_clicks": "[1]",
    "data.batch_size": 2,
    "data.sampling.size": 32,
    "data.sampling.objects": 2,
    "data.sampling.minimum_foreground": 20,
    "data.preprocessing.patch_size": 64,
    "data.preprocessing.spacing": "[3, 3, 3]",
    "data.patches_per_epoch": 2,
    "data.study": json.dumps(STUDY),
    "trainer.check_val_every_n_epoch": 1,
    "trainer.max_epochs": 1,
    "trainer.limit_val_batches": 1,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
}


def write_sweep(path: Path, ranks: list[int], *more: str) -> Path:
    """Stage 2 for a step with the tiny backbone, at some ranks; its data are named on the command line."""
    fixed = [f"--{name}={value}" for name, value in FIXED.items()]
    content = {
        "program": "uscl",
        "command": ["${env}", "uscl", "fit", "--config", str(EXPERIMENTS / "lora.yaml"), *fixed, *more, "${args}"],
        "method": "grid",
        "metric": {"name": "val/dice", "goal": "maximize"},
        "parameters": {"model.tuning.rank": {"values": ranks}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "sweep.csv").open() as stream:
        return {row["model.tuning.rank"]: row for row in csv.DictReader(stream)}


def test_cells_are_run_once_and_failures_are_shown(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    run_twice(study, tmp_path, capsys)


@pytest.mark.slow
def test_cells_are_programs_of_their_own(study, tmp_path, capsys):
    run_twice(study, tmp_path, capsys)


def run_twice(study: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    file = write_sweep(tmp_path / "sweep.yaml", [2, 0])
    assert uscl(f"sweep {file} --out {out} --data.root {study}") == 2
    assert "1 of 2 cells failed" in capsys.readouterr().err
    first = rows(out)
    assert (first["2"]["status"], first["0"]["status"]) == ("finished", "failed")
    assert 0 <= float(first["2"]["val/dice"]) <= 1
    assert "LoRA's ranks must be at least 1" in first["0"]["problem"]
    run = out / first["2"]["cell"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["tuning"]["init_args"]["rank"] == 2
    assert config["trainer"]["default_root_dir"] == str(run)
    assert config["data"]["init_args"]["root"] == str(study), "further options reach the cells"
    before = (run / "metrics.csv").stat().st_mtime_ns
    # Mended and made longer: the finished cell stays as it is.
    write_sweep(file, [2, 1])
    assert uscl(f"sweep {file} --out {out} --data.root={study}") == 0
    second = rows(out)
    assert set(second) == {"1", "2"}
    assert (run / "metrics.csv").stat().st_mtime_ns == before
    assert second["2"]["val/dice"] == first["2"]["val/dice"]
    assert second["2"]["seconds"] == first["2"]["seconds"]
    assert float(second["1"]["seconds"]) > 0.1
    assert first["0"]["seconds"] == "nan", "it never began"


def test_a_finished_cell_counts_as_long_as_all_its_settings_are_the_same(study, tmp_path, capsys, monkeypatch):
    """In whichever file they are: other figures must not be taken for those of this command."""
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    (tmp_path / "data.yaml").write_text("class_path: PhantomDataModule\ninit_args: {batch_size: 2}\n")
    (tmp_path / "over.yaml").write_text("data: data.yaml\n")
    file = write_sweep(tmp_path / "sweep.yaml", [2], f"--config={tmp_path / 'over.yaml'}", f"--data.root={study}")
    content = yaml.safe_load(file.read_text())
    content["command"].remove("--data.batch_size=2")
    # The overlay replaces the data of the experiment, so that it comes before what is small in them.
    content["command"].insert(5, content["command"].pop(-3))
    file.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    assert uscl(f"sweep {file} --out {out}") == 0
    assert uscl(f"sweep {file} --out {out}") == 0
    (tmp_path / "data.yaml").write_text("class_path: PhantomDataModule\ninit_args: {batch_size: 1}\n")
    assert uscl(f"sweep {file} --out {out}") == 2
    assert "finished with another data.init_args.batch_size" in capsys.readouterr().err
    # Another command would mix cells that cannot be compared.
    assert uscl(f"sweep {file} --out {out} --trainer.max_epochs 2") == 2
    assert "holds cells with the settings [], asked for are those with" in capsys.readouterr().err
    # A finished cell whose settings are not known may be of any.
    (next(out.glob("*/config.yaml"))).unlink()
    (tmp_path / "data.yaml").write_text("class_path: PhantomDataModule\ninit_args: {batch_size: 2}\n")
    assert uscl(f"sweep {file} --out {out}") == 0
    assert len(list(out.glob("*/config.yaml"))) == 1
    # Sweeps of earlier versions noted no settings.
    mark = json.loads((out / "sweep.json").read_text())
    del mark["settings"]
    (out / "sweep.json").write_text(json.dumps(mark))
    assert uscl(f"sweep {file} --out {out}") == 0


@pytest.mark.parametrize(
    ("option", "message"),
    {
        "--model.tuning.rank 4": "--model.tuning.rank: ",
        "--model.tuning.init_args.rank 4": "--model.tuning.init_args.rank: ",
        "--model.tuning.rnk 4": "cell rank-2: model.tuning: Option 'rnk' is not accepted",
        '--test_with "[nowhere.yaml]"': "--test_with: nowhere.yaml: no such file",
        "--trainer.default_root_dir here": "--trainer.default_root_dir: every cell has a folder of its own in --out",
        "--jbos 2": "jbos",
    }.items(),
)
def test_options_that_no_cell_can_be_run_with_are_refused(option, message, tmp_path, capsys):
    file = write_sweep(tmp_path / "sweep.yaml", [2])
    assert uscl(f"sweep {file} --out {tmp_path / 'out'} {option}") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_one_cell_that_cannot_be_run_is_no_reason_to_run_none(study, tmp_path, monkeypatch):
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    file = write_sweep(tmp_path / "sweep.yaml", ["two", 2])
    assert uscl(f"sweep {file} --out {tmp_path / 'out'} --data.root {study}") == 2
    assert {rank: row["status"] for rank, row in rows(tmp_path / "out").items()} == {"two": "failed", "2": "finished"}


def test_part_of_what_is_swept_over_is_not_passed_on(tmp_path, capsys):
    content = {"method": "grid", "command": ["uscl", "test", "--config=experiments/eval_us.yaml", "${args}"]}
    content["parameters"] = {"model.inference": {"values": ["published", "refined"]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert uscl(f"sweep {tmp_path / 's.yaml'} --out {tmp_path / 'out'} --model.inference.shifts 2") == 2
    assert "--model.inference.shifts: " in capsys.readouterr().err
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | {"command": ["uscl", "segment", "${args}"]}))
    assert uscl(f"sweep {tmp_path / 's.yaml'} --out {tmp_path / 'out'}") == 2
    assert "expected fit, validate, test or predict" in capsys.readouterr().err


def test_what_is_swept_over_stays_though_a_file_among_the_options_says_otherwise(tmp_path, caplog):
    (tmp_path / "over.yaml").write_text("model: {init_args: {tuning: {class_path: LoRA, init_args: {rank: 64}}}}\n")
    file = write_sweep(tmp_path / "sweep.yaml", [2])
    assert uscl(f"sweep {file} --out {tmp_path / 'out'} --dry-run --config {tmp_path / 'over.yaml'}") == 0
    args = shlex.split(caplog.messages[-1])[3:]
    assert resolve(args)["model"]["init_args"]["tuning"]["init_args"]["rank"] == 2


def test_a_file_can_be_laid_over_cells_that_are_files(tmp_path, caplog):
    content = {"method": "grid", "command": ["uscl", "test", "${args}"]}
    content["parameters"] = {"config": {"values": ["experiments/eval_amos.yaml"]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    over = "experiments/inference/refined.yaml"
    assert uscl(f"sweep {tmp_path / 's.yaml'} --out {tmp_path / 'out'} --dry-run --config {over}") == 0
    configs = [Path(part).name for part in shlex.split(caplog.messages[-1]) if part.startswith("--config=")]
    assert configs == ["eval_amos.yaml", "refined.yaml"]


def test_cells_are_resolved_from_any_folder(study, tmp_path, capsys, monkeypatch):
    """Also when a finished one is compared, where the experiments are those of the package."""
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    monkeypatch.chdir(tmp_path)
    file = write_sweep(tmp_path / "sweep.yaml", [2])
    file.write_text(file.read_text().replace(str(EXPERIMENTS), "experiments"))
    for _ in range(2):
        assert uscl(f"sweep {file} --out {tmp_path / 'out'} --data.root {study}") == 0


def test_nothing_else_is_taken_for_a_sweep(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    file = write_sweep(tmp_path / "sweep.yaml", [2])
    assert uscl(f"sweep {file} --out {tmp_path / 'photos'}") == 2
    assert "something else than a sweep" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_cells_whose_weights_are_not_here_can_be_skipped(study, tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    content = {
        "command": ["uscl", "test", "--config", str(EXPERIMENTS / "eval_us.yaml"), "${args}"],
        "method": "grid",
        "parameters": {"model": {"values": ["ComparatorModule"]}, "model.comparator": {"values": ["MobileSam"]}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    line = f"sweep {tmp_path / 's.yaml'} --out {tmp_path / 'out'} --data.root {study} --trainer.accelerator cpu"
    assert uscl(line, "--data.study", json.dumps(STUDY)) == 2
    assert "weights not found: hf://" in capsys.readouterr().err
    assert uscl(f"{line} --skip-missing-weights", "--data.study", json.dumps(STUDY)) == 0
    with (tmp_path / "out" / "sweep.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["status"] == "weights not found"
