"""`uscl sweep` over folds: every patient tested once, by a training that did not see them, in one report."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from end_to_end.running import EXPERIMENTS, SMALL_STEPS, STUDY, TINY, in_process, uscl

from uscl.data.datasets import read_folder
from uscl.evaluation import read_rows


@pytest.mark.slow
def test_one_command_trains_tests_and_reports_all_folds(study, tmp_path, monkeypatch):
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    monkeypatch.setattr("uscl.cli.follow_up.subprocess.run", in_process)
    file = yaml.safe_load((EXPERIMENTS / "sweeps" / "folds.yaml").read_text())
    file["parameters"]["data.split.fold"]["values"] = [[0, 3], [1, 3], [2, 3]]
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
        for part in range(3):
            run = out / f"tuning-{method}_fold-{part}-3_seed_everything-0"
            found = {row.patient for row in read_rows(run / "tests/eval_us/rows.csv")}
            with (run / "splits.csv").open() as stream:
                sides = {line["patient"]: line["split"] for line in csv.DictReader(stream)}
            assert {sides[patient] for patient in found} == {"test"}
            tested += sorted(found)
        assert sorted(tested) == sorted(patients), method
    text = (out / "report" / "report.md").read_text()
    for name in ("LoRA both rank 32", "AdaptFormer both"):
        assert f"{name}, seed 0: rows of 3 of 3 folds together, each patient tested once" in text
    assert Path(out / "report" / "report.html").is_file()
