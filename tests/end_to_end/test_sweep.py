"""`uscl sweep`: the very files that `wandb sweep` takes, run without a server."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from end_to_end.running import EXPERIMENTS, STUDY, in_process, uscl

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
    assert "another command" in capsys.readouterr().err
    assert uscl(f"sweep {file} --out {out} --model.tuning.rank 4") == 2
    assert "--model.tuning.rank: " in capsys.readouterr().err


def test_options_that_are_neither_of_the_sweep_nor_of_its_cells_are_refused(tmp_path, capsys):
    file = write_sweep(tmp_path / "sweep.yaml", [2])
    with pytest.raises(SystemExit) as left:
        uscl(f"sweep {file} --out {tmp_path / 'out'} --jbos 2")
    assert left.value.code == 2
    assert "jbos" in capsys.readouterr().err


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
