"""The slices that tests keep, and Figure 6 from them."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from uscl.errors import InputError
from uscl.evaluation import panels
from uscl.evaluation.ablation import Ablation
from uscl.evaluation.comparison import failures_table
from uscl.evaluation.figures import Panel, make_panel, read_slices, save_slices
from uscl.evaluation.panels import draw_panels, draw_worst
from uscl.evaluation.rows import ResultRow
from uscl.evaluation.runs import BASELINE, Run, Setting

OURS = Setting("LoRA", "both", 32, vcl=True)


def panel(title: str, seed: int = 0, reference: bool = True) -> Panel:
    random = np.random.default_rng(seed)
    image = random.normal(size=(24, 20, 6)) * 1000
    mask = np.zeros(image.shape, bool)
    mask[5:12, 6:14, 1:5] = True
    return make_panel(
        title,
        image,
        mask if reference else None,
        {1: mask, 10: np.roll(mask, 3, 0)},
        [((7, 8, 2), True), ((0, 0, 2), False)],
        {1: 1.0, 10: 0.5},
        (0.5, 2.0, 3.0),
    )


def test_slices_come_back_as_they_went(tmp_path):
    kept = [panel("b", 1), panel("a", 2, reference=False)]
    save_slices(tmp_path / "new" / "slices.npz", kept)
    found = read_slices(tmp_path / "new" / "slices.npz")
    assert list(found) == ["a", "b"]
    assert found["a"].reference is None
    for before in kept:
        after = found[before.title]
        assert (after.clicks, after.dice, after.pixel_mm) == (before.clicks, before.dice, before.pixel_mm)
        assert np.array_equal(after.predictions[10], before.predictions[10])
        assert np.corrcoef(after.image.ravel(), before.image.ravel())[0, 1] > 0.99
    assert np.array_equal(found["b"].reference, kept[0].reference)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 broken"])
def test_broken_slices_are_named(tmp_path, content):
    (tmp_path / "slices.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"slices\.npz: holds no slices of a test"):
        read_slices(tmp_path / "slices.npz")


@pytest.fixture
def ablation(tmp_path) -> Ablation:
    """Ours, the untouched backbone and FastSAM3D, which was tested on sweeps alone; Dice rises with the case."""
    runs = []
    for setting, data_sets in (
        (OURS, ("sweeps", "AMOS22")),
        (Setting(BASELINE), ("sweeps", "AMOS22")),
        (Setting("FastSAM3D"), ("sweeps",)),
    ):
        rows: dict[str, list[ResultRow]] = {}
        tests: dict[str, Path] = {}
        for name in data_sets:
            tests[name] = tmp_path / setting.family / name
            objects = [(i, organ) for i in range(5) for organ in ("liver", "spleen")]
            rows[name] = [
                ResultRow(
                    name,
                    f"case{i}",
                    organ,
                    "m",
                    10,
                    0.1 * i + 0.05 * (organ == "liver"),
                    0.5,
                    3.0,
                    1.0,
                    f"p{i}",
                    "w",
                    10,
                    0.1,
                )
                for i, organ in objects
            ]
            save_slices(tests[name] / "pictures" / "slices.npz", [panel(f"case{i} {organ}", i) for i, organ in objects])
        seed = 0 if setting == OURS else None
        runs.append(Run(tmp_path / setting.family, setting, seed, rows, "w", None, tests=tests))
    return Ablation(tuple(runs), 10, "sweeps", ("AMOS22",), OURS)


def test_a_row_for_the_median_object_of_every_class_and_scan(ablation, tmp_path, monkeypatch):
    titles: list[str] = []
    show = panels.show_slice
    monkeypatch.setattr(
        panels, "show_slice", lambda axis, shown, title: (titles.append(title), show(axis, shown, title))
    )
    assert draw_panels(ablation, tmp_path / "new" / "panels.png")
    assert plt.imread(tmp_path / "new" / "panels.png").shape[2] in (3, 4)
    rows = [title for title in titles if title.startswith(("sweeps", "AMOS22"))]
    # Of both classes together, ten objects: the lower of the two in the middle.
    assert rows == ["sweeps\ncase2 liver", "sweeps\ncase2 spleen", "AMOS22\ncase2 spleen"]
    assert sum(title.startswith("FastSAM3D") for title in titles) == 2, "it was not tested on the third"
    assert sum(title.startswith("SAM-Med3D") for title in titles) == 3


def test_nothing_is_drawn_without_slices_of_ours(ablation, tmp_path):
    without = replace(ablation, runs=tuple(run for run in ablation.runs if run.setting != OURS))
    assert not draw_panels(without, tmp_path / "panels.png")
    assert not (tmp_path / "panels.png").exists()


def test_nothing_is_drawn_where_ours_was_scored_at_other_numbers_of_clicks(ablation, tmp_path):
    at_three = {name: [replace(row, clicks=3) for row in rows] for name, rows in ablation.runs[0].rows.items()}
    other = replace(ablation, runs=(replace(ablation.runs[0], rows=at_three), *ablation.runs[1:]))
    assert not draw_panels(other, tmp_path / "panels.png")


@pytest.mark.parametrize("measured", [True, False])
def test_no_millimetres_on_what_rests_on_an_assumption(ablation, tmp_path, monkeypatch, measured):
    for tests in (run.tests for run in ablation.runs):
        for folder in tests.values():
            file = folder / "pictures" / "slices.npz"
            save_slices(file, [replace(shown, measured=measured) for shown in read_slices(file).values()])
    bars = []
    monkeypatch.setattr(panels, "_scale", lambda *given: bars.append(given))
    assert draw_panels(ablation, tmp_path / "panels.png")
    assert bool(bars) == measured


def test_the_worst_objects_are_those_of_the_failure_list(ablation, tmp_path, monkeypatch):
    drawn: list[Panel] = []
    monkeypatch.setattr(panels, "save_panels", lambda file, shown, heading: drawn.extend(shown))
    assert draw_worst(ablation, tmp_path / "worst.png", 3)
    listed = failures_table(ablation, 3).lines
    assert [panel.title for panel in drawn] == [f"{line[2]}\n{line[0]} {line[1]}" for line in listed]
    assert drawn[0].title == "AMOS22\ncase0 spleen"
    assert all(list(panel.predictions) == [10] for panel in drawn)
    assert not draw_worst(replace(ablation, runs=()), tmp_path / "worst.png")
