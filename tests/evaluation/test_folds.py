"""Cross-validated runs in a report: rows of all folds together, nobody twice, nobody seen in training."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from evaluation.report_runs import PATIENTS, write_run

from uscl.errors import InputError
from uscl.evaluation.ablation import described, look_at, table4
from uscl.evaluation.claims import claims_table
from uscl.evaluation.folds import fold_notes
from uscl.evaluation.rows import read_rows, write_rows
from uscl.evaluation.runs import Setting, find_runs

LORA, FULL = Setting("LoRA", "both", 32), Setting("FullTuning", "both")


def write_fold(root: Path, method: str, part: int, parts: int = 3, dice: float = 0.5, elsewhere: bool = False) -> Path:
    """A training of one fold, and its test on the patients that it left out."""
    data = {"sweeps": dice} | ({"AMOS22": 0.3 + 0.01 * part} if elsewhere else {})
    run = write_run(root / f"{method}-{part}", method, data)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["split"] = {"fold": [part, parts], "fold_test": True, "seed": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    own = {f"p{n}" for n in range(PATIENTS) if n % parts == part}
    test = run / "tests" / "sweeps"
    (test / "config.yaml").write_text(yaml.safe_dump(config))
    write_rows(test / "rows.csv", [row for row in read_rows(test / "rows.csv") if row.patient in own])
    with (run / "splits.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("case", "patient", "split"))
        writer.writerows((f"case{n}", f"p{n}", "test" if f"p{n}" in own else "train") for n in range(PATIENTS))
    return run


@pytest.fixture
def divided(tmp_path) -> Path:
    for part in range(3):
        write_fold(tmp_path / "runs", "LoRA", part)
        write_fold(tmp_path / "runs", "FullTuning", part, dice=0.7)
    return tmp_path / "runs"


def test_every_patient_stands_once(divided):
    ablation = look_at(find_runs([divided]))
    lora, full = ablation.dice(LORA), ablation.dice(FULL)
    assert (lora.patients, lora.n, lora.seeds) == (PATIENTS, 2 * PATIENTS, 1)
    whole = write_run(divided.parent / "whole", "LoRA", {"sweeps": 0.5})
    assert lora.mean == pytest.approx(look_at(find_runs([whole])).dice(LORA).mean, abs=1e-3)
    assert full.mean - lora.mean == pytest.approx(0.2, abs=1e-4)
    gain = ablation.gain(FULL, LORA)
    assert gain.patients == PATIENTS, "paired over the folds"
    assert "12 objects of 6 patients" in table4(ablation).note


def test_the_report_says_so(divided, tmp_path):
    notes = list(fold_notes(find_runs([divided]), described))
    names = ("full tuning (encoder and decoder)", "LoRA (encoder and decoder, rank 32, without VCL)")
    assert notes == [
        *(
            f"{name}, seed 0: rows of 3 of 3 folds together, each patient tested once, by a training that did not see "
            "them."
            for name in names
        ),
        "Intervals from folds of a single seed leave out that trainings differ.",
    ]
    for run in divided.glob("LoRA-1"):
        (run / "run.json").write_text(json.dumps({"status": "running"}))
    (note,) = (note for note in fold_notes(find_runs([divided]), described) if note.startswith("LoRA"))
    assert "2 of 3 folds (MISSING: 1)" in note


def test_a_fold_is_tested_once(divided):
    write_fold(divided / "again", "LoRA", 1)
    with pytest.raises(InputError, match="tested fold 1 as .*LoRA-1 did; give one of them"):
        find_runs([divided])


def test_divisions_are_not_mixed(divided):
    write_fold(divided / "other", "LoRA", 3, parts=4)
    with pytest.raises(InputError, match="sweeps is divided into different numbers of folds"):
        find_runs([divided])


def test_another_data_set_is_the_result_of_as_many_trainings(tmp_path):
    for part in range(3):
        write_fold(tmp_path, "LoRA", part, elsewhere=True)
    ablation = look_at(find_runs([tmp_path]))
    amos, own = ablation.dice(LORA, "AMOS22"), ablation.dice(LORA, "sweeps")
    assert (amos.patients, amos.seeds) == (PATIENTS, 3)
    assert (own.patients, own.seeds) == (PATIENTS, 1)


def test_an_unfinished_fold_of_another_method_changes_no_figure(tmp_path):
    for part in range(3):
        write_fold(tmp_path, "LoRA", part, elsewhere=True)
    before = look_at(find_runs([tmp_path])).dice(LORA, "AMOS22")
    write_fold(tmp_path, "FullTuning", 1, elsewhere=True)
    assert look_at(find_runs([tmp_path])).dice(LORA, "AMOS22") == before


def test_a_verdict_counts_seeds_and_not_folds(divided):
    """No patient is tested by two trainings of one seed, so that nothing says how trainings differ."""
    lines = {line[0]: line[-1] for line in claims_table(look_at(find_runs([divided]))).lines}
    assert lines["full tuning gains more than LoRA"] == "no verdict from 1 training"


def test_runs_of_earlier_versions_had_no_such_setting(tmp_path):
    old = write_run(tmp_path / "old", "LoRA", {"sweeps": 0.5})
    new = write_run(tmp_path / "new", "LoRA", {"sweeps": 0.5}, seed=1)
    for run, split in ((old, {"seed": 0, "fold": None}), (new, {"seed": 0, "fold": None, "fold_test": None})):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["init_args"]["split"] = split
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(find_runs([tmp_path])) == 2


def test_whom_stage_1_saw_is_not_tested(tmp_path, caplog):
    run = write_fold(tmp_path / "runs", "LoRA", 0)
    stage1 = write_fold(tmp_path / "stage1-32-0", "LoRA", 1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    pattern = str(stage1).replace("32-0", "{rank}-{seed}")
    config["model"]["init_args"]["vcl_adapter"] = f"{pattern}/adapter.safetensors"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_fold(tmp_path / "runs", "LoRA", 1)
    assert [found.fold for found in find_runs([tmp_path / "runs"]) if found.rows] == [(1, 3)]
    assert "2 of the patients it tested were trained on" in caplog.text


def test_who_was_trained_on_is_not_tested(tmp_path, caplog):
    """The fold of the test is another than that of the training."""
    run = write_fold(tmp_path, "LoRA", 0)
    write_fold(tmp_path, "LoRA", 1)
    test = run / "tests" / "sweeps" / "rows.csv"
    rows = read_rows(test)
    write_rows(test, [replace(row, patient="p1", case="case1") for row in rows])
    runs = find_runs([tmp_path])
    assert [found.fold for found in runs if found.rows] == [(1, 3)]
    assert "1 of the patients it tested were trained on" in caplog.text
    # Patients of another folder may have the same names.
    config = yaml.safe_load((test.parent / "config.yaml").read_text())
    config["data"]["init_args"]["root"] = "elsewhere"
    (test.parent / "config.yaml").write_text(yaml.safe_dump(config))
    caplog.clear()
    find_runs([tmp_path])
    assert "trained on" not in caplog.text
