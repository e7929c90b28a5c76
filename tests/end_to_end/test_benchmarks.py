"""The benchmark that users point at data of their own: what they had stays, errors name what is wrong in one line."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mini.py"


@pytest.fixture
def run(one_scan, monkeypatch):
    """Runs the script in the folder of the scan, without the start of a program; what it exits with."""
    monkeypatch.chdir(one_scan)

    def run(*args: str) -> object:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--skip-phantoms", "--out", "rows", *args])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as left:
            return left.code
        return 0

    return run


@pytest.fixture
def one_scan(tmp_path):
    """A cube of 40 ml in the plain layout."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[10:33, 10:33, 10:33] = 1
    image = label * 100 + np.random.default_rng(0).normal(200, 5, label.shape)
    for folder, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
        written = sitk.GetImageFromArray(array)
        written.SetSpacing((1.5, 1.5, 1.5))
        (tmp_path / "scans" / folder).mkdir(parents=True)
        sitk.WriteImage(written, tmp_path / "scans" / folder / "a.nii.gz")
    names = {"name": "cube", "labels": {"background": 0, "cube": 1}}
    (tmp_path / "scans" / "dataset.json").write_text(json.dumps(names))
    return tmp_path


@pytest.mark.parametrize("name", sorted({path.stem for path in SCRIPT.parent.glob("*.py")} - {"memory"}))
def test_every_benchmark_starts(name, monkeypatch, capsys):
    script = SCRIPT.with_name(f"{name}.py")
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 0
    assert "--" in capsys.readouterr().out


def test_every_run_leaves_its_rows_in_a_folder_of_its_own(one_scan, run):
    for _ in range(2):
        assert run("--weights", "random", "--set", "cubes", "folder", "scans", "-") == 0
    for name in ("rows", "rows-2"):
        with (one_scan / name / "rows.csv").open() as stream:
            (row,) = csv.DictReader(stream)
        assert (row["group"], row["case"], row["class"]) == ("cubes", "a", "cube")
        assert row["inference"] == "published"
        assert 0 <= float(row["dice_10"]) <= 1
        record = json.loads((one_scan / name / "run.json").read_text())
        assert record["status"] == "finished"
        assert "--set" in record["command"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "mine", "nifti", "scans", "-"], "no data set is called 'nifti'"),
        (["--set", "mine", "folder", "nowhere", "-"], "nowhere: no such data folder"),
        (["--card", "nowhere.json", "--set", "mine", "folder", "scans", "-"], "--card nowhere.json: no such file"),
        ([], "nothing to score"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line_and_leaves_nothing(args, message, one_scan, run, capsys):
    assert run(*args) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (one_scan / "rows").exists()
