import os
from multiprocessing import get_context

import pytest

from uscl.cli.run_folder import RECORD, SHARED, claim_run_folder, release_run_folder


@pytest.fixture(autouse=True)
def no_run_before_or_after():
    os.environ.pop(SHARED, None)
    yield
    os.environ.pop(SHARED, None)


def claim(folder: str) -> str:
    os.environ.pop(SHARED, None)  # every task is a run of its own
    return claim_run_folder(folder, overwrite=False).name


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path):
    with get_context("spawn").Pool(4) as pool:
        found = pool.map(claim, [str(tmp_path / "vcl")] * 40, chunksize=1)
    assert sorted(found) == sorted(["vcl", *(f"vcl-{number}" for number in range(2, 41))])


def test_processes_of_a_launcher_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert {claim(str(tmp_path / "vcl")), claim(str(tmp_path / "vcl"))} == {"vcl"}


@pytest.mark.parametrize("abandon", [True, False])
def test_a_run_that_never_began_leaves_nothing(tmp_path, abandon):
    folder = claim_run_folder(tmp_path / "vcl", overwrite=False)
    assert (folder / RECORD).is_file()
    release_run_folder(abandon)
    assert not folder.exists()


def test_a_run_that_failed_later_keeps_what_it_has(tmp_path):
    folder = claim_run_folder(tmp_path / "vcl", overwrite=False)
    (folder / "config.yaml").touch()
    release_run_folder()
    assert {path.name for path in folder.iterdir()} == {RECORD, "config.yaml"}
