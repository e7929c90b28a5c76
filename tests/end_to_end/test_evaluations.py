"""Rows: the same whatever the order, the workers and the interruptions; protocols, inference and other methods."""

import json
from dataclasses import replace

import numpy as np
import pytest
from end_to_end.running import EXPERIMENTS, scored, small, uscl

from uscl.backbone import save_weights
from uscl.callbacks import scoring
from uscl.data import VolumeDataModule
from uscl.evaluation import promptable, read_rows
from uscl.evaluation.figures import read_slices

CLICKS = '--model.evaluation.clicks "[1, 3]"'


def adapter(runs) -> str:
    return f"--model.adapter {runs / 'lora/adapter.safetensors'} {CLICKS}"


def without_seconds(rows):
    return [replace(row, seconds=0) for row in rows]


def without_model(line: str) -> str:
    return line.replace("--model.backbone tiny --model.weights null", "")


@pytest.mark.parametrize("overlay", ["sam", "mobilesam", "tinysam", "sam_med2d"])
def test_comparators_without_their_weights(study, tmp_path, overlay, capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path))
    line = without_model(scored(study, tmp_path, EXPERIMENTS / "comparators" / f"{overlay}.yaml"))
    assert uscl(line) == 2
    assert "weights not found: hf://" in capsys.readouterr().err
    record = json.loads((tmp_path / "eval_us/run.json").read_text())
    assert record["status"].startswith("weights not found: hf://")
    assert not (tmp_path / "eval_us/rows.csv").exists()


def test_a_2d_method_meets_the_objects_that_ours_meets(runs, study, tmp_path):
    pytest.importorskip("transformers")
    from small_sam import SmallSam

    weights = tmp_path / "sam.safetensors"
    save_weights(SmallSam().build().sam, weights)
    line = without_model(scored(study, tmp_path, EXPERIMENTS / "comparators" / "sam.yaml"))
    line += f" --model.comparator small_sam.SmallSam --model.comparator.weights {weights} {CLICKS}"
    assert uscl(line) == 0
    theirs, ours = (read_rows(folder / "eval_us/rows.csv") for folder in (tmp_path, runs))
    assert {row.method for row in theirs} == {"SAM"}
    assert {row.inference for row in theirs} == {"its own"}
    assert [(r.case, r.class_name, r.clicks) for r in theirs] == [(r.case, r.class_name, r.clicks) for r in ours]
    assert all(row.points == row.clicks for row in ours)
    slices = {(row.case, row.class_name): row.points for row in theirs if row.clicks == 1}
    assert max(slices.values()) > 5
    assert all(row.points == row.clicks * slices[row.case, row.class_name] for row in theirs)


@pytest.mark.slow
def test_protocols_and_inference_and_what_they_change(runs, study, tmp_path):
    """The default spelt out changes no digit; the older script, patches around the first click, other inference do."""
    found = {}
    overlays = {path.stem: f"--config {path}" for path in (EXPERIMENTS / "protocols").glob("*.yaml")}
    overlays |= {path.stem: f"--config {path}" for path in (EXPERIMENTS / "inference").glob("*.yaml")}
    overlays |= {"shifts": "--model.inference.shifts 2"}
    for name, overlay in overlays.items():
        assert uscl(f"{scored(study, tmp_path / name)} {overlay} {adapter(runs)} --data.classes [liver]") == 0
        found[name] = read_rows(tmp_path / name / "eval_us/rows.csv")
    livers = [row for row in read_rows(runs / "eval_us/rows.csv") if row.class_name == "liver"]
    ours = [(r.case, r.clicks, r.dice, r.hd95) for r in livers]
    digits = {name: [(r.case, r.clicks, r.dice, r.hd95) for r in rows] for name, rows in found.items()}
    assert {name for name, own in digits.items() if own == ours} == {"sam_med3d_infer", "published"}
    assert {row.method for rows in found.values() for row in rows} == {"USCL-Med3D"}
    words = {name: {row.inference for row in rows} for name, rows in found.items()}
    assert words["refined"] == {"4 shifts, guided filter"}
    assert words["shifts"] == {"2 shifts"}
    assert words["first_click"] == {"published"}
    assert all("patches around the first click, " in row.protocol for row in found["first_click"])
    assert all("the BEST mask so far scored" in row.protocol for row in found["sam_med3d_paper"])
    best = {(r.case, r.class_name, r.clicks): r.dice for r in found["sam_med3d_paper"]}
    assert all(best[case, name, 3] >= best[case, name, 1] - 0.05 for case, name, _ in best), "the best of more masks"


def test_a_killed_test_is_resumed_and_redoes_nothing(runs, study, tmp_path, monkeypatch, capsys):
    whole = read_rows(runs / "eval_us/rows.csv")
    objects = len(whole) // 2
    line = f"{scored(study, tmp_path)} {adapter(runs)} --trainer.default_root_dir null"
    tried, score = [], promptable.Reference.score

    def killed(*given):
        if len(tried) == 5:  # in the third object, between its two scores
            raise RuntimeError("killed")
        tried.append(given)
        return score(*given)

    monkeypatch.setattr(promptable.Reference, "score", killed)
    with pytest.raises(RuntimeError, match="killed"):
        uscl(line)
    folder = tmp_path / "runs" / "test"
    partial = folder / "rows.partial-0.csv"
    assert len(partial.read_text().splitlines()) == 4
    with partial.open("a") as stream:
        stream.write("phantom-ultrasound,a line that was cut")
    assert len(list(folder.glob("pictures/slices.partial-*.npz"))) == 2
    monkeypatch.setattr(promptable.Reference, "score", lambda *given: tried.append(given) or score(*given))
    assert uscl(f'{line} --resume --data.classes "[liver]"') == 2
    assert "began with another data.init_args.classes" in capsys.readouterr().err
    tried.clear()
    assert uscl(f"{line} --resume") == 0
    assert len(tried) == 2 * (objects - 1), "of the two that were done one is done again"
    assert without_seconds(read_rows(folder / "rows.csv")) == without_seconds(whole)
    assert not partial.exists()
    assert not list(folder.glob("pictures/slices.partial-*.npz"))
    kept, wanted = (read_slices(of / "pictures/slices.npz") for of in (folder, runs / "eval_us"))
    assert kept.keys() == wanted.keys(), "pictures show what was scored before, too"
    assert all(np.array_equal(kept[title].predictions[3], wanted[title].predictions[3]) for title in wanted)
    assert uscl(f"{line} --resume") == 2
    assert "has finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_test_killed_while_it_draws_is_resumed(runs, study, tmp_path, monkeypatch, capsys):
    """After everything was scored, before anything was written."""
    line = f"{scored(study, tmp_path)} {adapter(runs)}"

    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "save_panels", killed)
        with pytest.raises(RuntimeError, match="killed"):
            uscl(line)
    tried, score = [], promptable.Reference.score
    monkeypatch.setattr(promptable.Reference, "score", lambda *given: tried.append(given) or score(*given))
    assert uscl(f"{line} --resume") == 0
    assert len(tried) == 2
    whole = read_rows(runs / "eval_us/rows.csv")
    assert without_seconds(read_rows(tmp_path / "eval_us/rows.csv")) == without_seconds(whole)
    assert uscl(f"{scored(study, tmp_path / 'nothing')} --resume") == 2
    assert "holds no run to go on with" in capsys.readouterr().err
    assert uscl(f"{small(EXPERIMENTS / 'vcl.yaml', study, tmp_path)} --resume") == 2
    assert "resumed with --ckpt_path" in capsys.readouterr().err


def test_order_changes_no_digit_and_every_method_meets_the_same_first_click(runs, study, tmp_path, monkeypatch):
    rollout, listed = promptable.evaluation_rollout, VolumeDataModule._list_objects
    met: dict[tuple[str, ...], list[object]] = {}

    def noted(segmenter, image, target, count, draw_for, *more):
        for step in rollout(segmenter, image, target, count, draw_for, *more):
            if step.number == 1:
                met.setdefault(draw_for.args, []).append(step.clicks[0])
            yield step

    monkeypatch.setattr(promptable, "evaluation_rollout", noted)
    monkeypatch.setattr(VolumeDataModule, "_list_objects", lambda *given: listed(*given)[::-1])
    found = {}
    for name, more in {"ours": adapter(runs), "untouched": CLICKS}.items():
        assert uscl(f"{scored(study, tmp_path / name)} {more}") == 0
        found[name] = read_rows(tmp_path / name / "eval_us/rows.csv")
    assert without_seconds(found["ours"]) == without_seconds(read_rows(runs / "eval_us/rows.csv"))
    assert {row.method for row in found["untouched"]} == {"SAM-Med3D"}
    assert {(row.case, row.class_name) for row in found["untouched"]} == {key[2:] for key in met}
    assert all(len(clicks) == 2 and clicks[0] == clicks[1] for clicks in met.values())


@pytest.mark.slow
def test_workers_change_no_digit_of_the_rows(runs, study, tmp_path):
    line = scored(study, tmp_path).replace("--data.num_workers 0", "--data.num_workers 2")
    assert uscl(f"{line} {adapter(runs)}") == 0
    mine, theirs = (read_rows(folder / "eval_us/rows.csv") for folder in (tmp_path, runs))
    assert without_seconds(mine) == without_seconds(theirs)


def test_a_test_from_python_returns_its_metrics_and_writes_nothing(study, tmp_path, monkeypatch):
    """Without the command line and its callbacks."""
    from lightning.pytorch import Trainer

    from uscl.data import Preprocessing
    from uscl.evaluation.promptable import Evaluation
    from uscl.stages import LoRASegModule

    monkeypatch.chdir(tmp_path)
    module = LoRASegModule(backbone="tiny", tuning=None, evaluation=Evaluation(clicks=(1, 2)))
    data = VolumeDataModule(str(study), Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64), classes=["liver"])
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **options)
    (metrics,) = trainer.test(module, data, verbose=False)
    assert metrics.keys() == {"test/dice_1", "test/dice_2"}
    assert len(module.rows) == 2 * len({row.case for row in module.rows}) > 0
    mean = np.mean([row.dice for row in module.rows if row.clicks == 2])
    assert metrics["test/dice_2"] == pytest.approx(mean, abs=1e-6)
    assert list(tmp_path.iterdir()) == []
