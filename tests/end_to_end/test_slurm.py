"""Cells as jobs of SLURM. There is no cluster here: `sbatch` and `sacct` are stand-ins that run the job arrays."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from uscl.cli import main
from uscl.cli.commands import slurm

SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
here = Path(os.environ["FAKE_SLURM"])
script = Path(sys.argv[1]).read_text()
(here / "script.sh").write_text(script)
array = re.search(r"--array=0-([0-9]+)", script)
count = int(array[1]) + 1 if array else 1
number = 100 + 10 * len(list(here.glob("job*")))
(here / f"job{number}").write_text(str(count))
print("Submitted batch job", number, flush=True)
output = re.search(r"--output=(\\S+)", script)[1]
for task in range(count):
    own = {"SLURM_JOB_ID": str(number), "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "here",
           "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NAME": "uscl-sweep"}
    if array:
        own |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    path = output.replace("%A", str(number)).replace("%a", str(task)).replace("%j", str(number))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as stream:
        subprocess.Popen(["bash", sys.argv[1]], env={**os.environ, **own}, stdout=stream, stderr=stream)
"""
SACCT = """#!{python}
print("JobID|State|NodeList")
"""
# A cell that needs no model: it says what it was given, and fails when told to.
CELL = """
import json, os, sys
from pathlib import Path
values = dict(argument[2:].split("=", 1) for argument in sys.argv[1:] if "=" in argument)
run = Path(values["trainer.default_root_dir"])
run.mkdir(parents=True, exist_ok=True)
with open(run / "times", "a") as stream:
    stream.write("x")
(run / "environment").write_text(" ".join(name for name in os.environ if name.startswith("SLURM_")))
failed = values["model.tuning.rank"] == "0"
record = {"status": "failed" if failed else "finished", "started": "2026-01-01T00:00:00.000+00:00"}
if not failed:
    record["ended"] = "2026-01-01T00:01:30.500+00:00"
(run / "run.json").write_text(json.dumps(record))
(run / "config.yaml").touch()
sys.exit(failed)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    pytest.importorskip("submitit")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "sacct": SACCT, "srun": "#!/bin/sh\nexit 1\n"}.items():
        (programs / name).write_text(text.replace("{python}", sys.executable))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setattr(slurm, "_SECONDS_BETWEEN_LOOKS", 0.2)
    (tmp_path / "cell.py").write_text(CELL)

    def command(asked, cell, folder, settings):
        values = [f"--{name}={value}" for name, value in cell.items()]
        return [sys.executable, str(tmp_path / "cell.py"), *values, f"--trainer.default_root_dir={folder}"]

    monkeypatch.setattr("uscl.cli.commands.sweep.cell_command", command)
    monkeypatch.setattr("uscl.cli.commands.sweep._check_settings", lambda run, command: None)
    return tmp_path


def write_sweep(path: Path, ranks: list[int]) -> Path:
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "grid",
        "parameters": {"model.tuning.rank": {"values": ranks}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_cells_go_to_the_cluster_once(cluster, capsys):
    file, out = write_sweep(cluster / "s.yaml", [4, 0, 8]), cluster / "out"
    args = [
        "sweep",
        str(file),
        "--out",
        str(out),
        "--jobs",
        "2",
        "--slurm.minutes",
        "90",
        "--slurm.partition",
        "gpu",
        "--slurm.setup",
        "[module load cuda]",
    ]
    assert main(args) == 2
    assert "1 of 3 cells failed, first rank-0" in capsys.readouterr().err
    script = (cluster / "script.sh").read_text()
    for wanted in (
        "--time=90",
        "--partition=gpu",
        "--array=0-2%2",
        "--gpus-per-node=1",
        "--mem=32GB",
        "module load cuda",
    ):
        assert wanted in script
    assert "--account" not in script
    with (out / "sweep.csv").open() as stream:
        rows = {row["cell"]: row for row in csv.DictReader(stream)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "rank-4": "finished",
        "rank-0": "failed",
        "rank-8": "finished",
    }
    assert (rows["rank-4"]["seconds"], rows["rank-0"]["seconds"]) == ("90.5", "nan")
    # Lightning would take these for its own and refuse to start processes.
    assert (out / "rank-4" / "environment").read_text() == ""
    # Again: only what failed is submitted.
    assert main(args) == 2
    assert {name: (out / name / "times").read_text() for name in rows} == {"rank-4": "x", "rank-0": "xx", "rank-8": "x"}


@pytest.mark.slow
def test_cells_that_an_interrupted_call_submitted_are_waited_for(cluster, monkeypatch):
    """The first call ends right after submitting, as if somebody had pressed Ctrl-C."""
    file, out = write_sweep(cluster / "s.yaml", [4, 8]), cluster / "out"
    args = ["sweep", str(file), "--out", str(out), "--slurm.minutes", "90"]
    (cluster / "cell.py").write_text("import time\ntime.sleep(5)\n" + CELL)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(slurm.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(args)
    assert len(json.loads((out / "slurm.json").read_text())) == 2
    assert main(args) == 0
    assert {path.parent.name: path.read_text() for path in out.glob("*/times")} == {"rank-4": "x", "rank-8": "x"}
    assert len(list(cluster.glob("job*"))) == 1


def test_where_there_is_no_cluster(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    file = write_sweep(tmp_path / "s.yaml", [4])
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--slurm.minutes", "90"]) == 2
    assert "call this where sbatch and srun are" in capsys.readouterr().err
