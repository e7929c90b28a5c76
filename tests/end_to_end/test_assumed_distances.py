"""Millimetres that nobody measured stay assumed, through every file and command that comes after."""

import re
from pathlib import Path

import pytest
from disc_clip import clip
from end_to_end.running import SMALL_STEPS, TINY, uscl

from uscl.data import read_image, read_label
from uscl.evaluation import read_rows
from uscl.phantom.video import write_frames

UNITS = re.compile(r"(?<![\w.-])(mm|ml|cm|millilit\w+|\d+\s?mm)\b")
TEXTS = (".csv", ".md", ".html", ".json", ".tex", ".log")
DATA = "--config experiments/data/ultrasound.yaml --data.root made/sweeps.csv --data.split.val_fraction 0"
CLICKS = '--model.evaluation.clicks "[1, 2]"'


def label_clips(folder: Path) -> None:
    """Pseudo-labels of three patients' clips, in one manifest."""
    frames, labels = clip()
    for patient in ("anna", "ben", "cora"):
        write_frames(folder / patient / f"clip_{patient}", frames, range(len(frames)))
        write_frames(folder / patient / "keys", labels, (0, 8, 17))
        line = f"pseudo-label {patient}/clip_{patient} --key-frames {patient}/keys --out made/{patient}"
        how = "--reading.spacing assumed --reading.step assumed --check.threshold 0.3 --manifest made/sweeps.csv"
        assert uscl(f"{line} --patient {patient} {how}") == 0


@pytest.mark.slow
def test_assumed_in_assumed_out(tmp_path, monkeypatch, capsys, caplog):
    pytest.importorskip("blosc2")
    monkeypatch.chdir(tmp_path)
    label_clips(tmp_path)
    pair = Path("made/anna/image_1.nii.gz")
    assert read_image(pair).distances == read_label("made/anna/label_1.nii.gz").distances == "assumed"
    assert "clip_anna_part1" in Path("made/sweeps.csv").read_text()
    assert uscl("prepare ultrasound --root made/sweeps.csv --out store") == 0
    line = f"fit --config experiments/lora.yaml {DATA} {TINY} {SMALL_STEPS} --data.patches_per_epoch 4"
    small = "--data.sampling.minimum_foreground 1 --trainer.max_epochs 1 --model.tuning.rank 2"
    assert uscl(f"{line} {small} --trainer.default_root_dir runs/lora") == 0
    for name, more in {"lora": "--model.adapter runs/lora/adapter.safetensors", "untouched": ""}.items():
        test = f"test --config experiments/eval_us.yaml {DATA} {TINY} {CLICKS} {more}"
        assert uscl(f"{test} --trainer.default_root_dir runs/test_{name}") == 0
        assert {row.distances for row in read_rows(Path(f"runs/test_{name}/rows.csv"))} == {"assumed"}
    assert uscl("report runs/test_lora runs/test_untouched --out report --clicks 2") == 0
    assert "LoRA (encoder and decoder, rank 2" in Path("report/report.md").read_text()
    line = f"segment {pair} --points 20,20,6 --weights null --backbone tiny"
    assert uscl(f"{line} --out mask.nii.gz --picture m.png") == 0
    assert read_label("mask.nii.gz").distances == "assumed"
    prompts = f"image,i,j,k,label\n{pair},20,20,6,1\n"
    Path("clicks.csv").write_text(prompts)
    predict = f"predict --config experiments/predict_us.yaml {DATA} {TINY} --data.prompts clicks.csv"
    assert uscl(f"{predict} --trainer.default_root_dir runs/predict") == 0
    (mask,) = Path("runs/predict/masks").glob("*.nii.gz")
    assert read_label(mask).distances == "assumed"
    printed = capsys.readouterr()
    said = {"printed": printed.out + printed.err, "logged": "\n".join(caplog.messages)}
    said |= {str(file): file.read_text() for file in tmp_path.rglob("*") if file.suffix in TEXTS}
    assert len(said) > 20
    claims = {where: UNITS.findall(text) for where, text in said.items() if not where.endswith("distances.json")}
    assert {where: found for where, found in claims.items() if found} == {}
