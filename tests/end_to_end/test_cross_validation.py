"""`uscl sweep` over folds: every patient tested once, by a training that did not see them, in one report."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from end_to_end.running import EXPERIMENTS, ONE_OBJECT, SMALL_STEPS, STUDY, TINY, in_process, scored, uscl

from uscl.data.datasets import Splitting, read_folder
from uscl.evaluation import read_rows


@pytest.mark.slow
def test_one_command_trains_tests_and_reports_all_folds(study, tmp_path, monkeypatch):
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    monkeypatch.setattr("uscl.cli.follow_up.subprocess.run", in_process)
    file = yaml.safe_load((EXPERIMENTS / "sweeps" / "folds.yaml").read_text())
    file["parameters"]["data.split.fold"]["values"] = [[0, 2], [1, 2]]
    (tmp_path / "folds.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    data = f"--data.root {study} --data.study '{json.dumps(STUDY)}'"
    steps = f"{TINY} {SMALL_STEPS} --data.patches_per_epoch 2 --data.sampling.minimum_foreground 20"
    test = f"experiments/eval_us.yaml {TINY} {data} --model.evaluation.clicks [1,10]"
    out = tmp_path / "out"
    line = f"sweep {tmp_path / 'folds.yaml'} --out {out} --report {data} {steps} --trainer.max_epochs 1"
    assert uscl(line, "--test_with", json.dumps([test])) == 0
    patients = {case.patient for case in read_folder(study).cases}
    for method in ("LoRA", "AdaptFormer"):
        tested = []
        for part in range(2):
            run = out / f"tuning-{method}_fold-{part}-2_seed_everything-0"
            found = {row.patient for row in read_rows(run / "tests/eval_us/rows.csv")}
            with (run / "splits.csv").open() as stream:
                sides = {line["patient"]: line["split"] for line in csv.DictReader(stream)}
            assert {sides[patient] for patient in found} == {"test"}
            tested += sorted(found)
        assert sorted(tested) == sorted(patients), method
    text = (out / "report" / "report.md").read_text()
    for name in ("LoRA (encoder and decoder, rank 32, without VCL)", "AdaptFormer (encoder and decoder)"):
        assert f"{name}, seed 0: rows of 2 of 2 folds together, each patient tested once" in text
    assert Path(out / "report" / "report.html").is_file()


def test_validate_scores_its_side_as_a_test_would(study, tmp_path, capsys, caplog):
    line = f"{scored(study, tmp_path)} {ONE_OBJECT}"
    assert uscl(line.replace("test --config", "validate --config", 1)) == 0
    (case, *_) = (case for case in read_folder(study).cases if case.split == "val")
    rows = read_rows(tmp_path / "eval_us" / "rows.csv")
    assert {row.patient for row in rows} == {case.patient}
    assert "Dice in %" in capsys.readouterr().out
    parts = {part: Splitting(fold=(part, 3), fold_test=True).of(read_folder(study)) for part in range(3)}
    (part,) = (part for part, found in parts.items() if case.patient in {c.patient for c in found.in_split("test")})
    fold = f'--data.split.fold "[{part}, 3]" --data.split.fold_test true'
    assert uscl(f"{line} {fold} --trainer.default_root_dir {tmp_path / 'test'}") == 0
    assert "--test_with" not in caplog.text, "a test has nothing that follows it"
    tested = read_rows(tmp_path / "test" / "rows.csv")
    assert [replace(row, seconds=0) for row in rows] == [replace(row, seconds=0) for row in tested]
    assert uscl(f"report {tmp_path} --out {tmp_path / 'report'} --clicks 1") == 0
    assert "scored the validation side (uscl validate); left out" in caplog.text
