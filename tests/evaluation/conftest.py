from pathlib import Path

import pytest
from evaluation.report_runs import write_study


@pytest.fixture
def study(tmp_path) -> Path:
    """Runs of every setting that claims rest on, instead of the sweeps of the same name."""
    return write_study(tmp_path / "study")
