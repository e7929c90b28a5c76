"""`uscl sweep`: how cells share a machine, and how several calls share the cells."""

import io
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from uscl.cli.commands.sweep_file import command_mark, read_sweep_file


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
(run / "config.yaml").touch()
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
            _claim(folder, command_mark(asked))
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


def test_a_cell_that_never_began_is_reported(tmp_path):
    """A job that SLURM ended before it ran leaves no log."""
    from uscl.cli.commands.sweep import _reason

    assert _reason(tmp_path / "logs" / "a.log") == "it never began"
    (tmp_path / "slurm").mkdir()
    assert str(tmp_path / "slurm") in _reason(tmp_path / "logs" / "a.log")
