"""What every run leaves, and that nothing of an earlier run is lost."""

import csv
import json
from collections import Counter

import yaml
from end_to_end.running import ONE_OBJECT, VERBS, scored, uscl

from uscl.data import read_image, read_label
from uscl.evaluation import read_rows


def test_every_run_leaves_its_record(runs):
    for name, verb in VERBS.items():
        record = json.loads((runs / name / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["seed"] == 0
        assert record["uscl"]
        config = yaml.safe_load((runs / name / "config.yaml").read_text())
        assert config["model"]["init_args"]["backbone"] == "tiny"
        assert config["trainer"]["default_root_dir"] == str(runs / name)
        if verb != "predict":
            assert record["data_set"] == "phantom-ultrasound"
            with (runs / name / "splits.csv").open() as stream:
                split = list(csv.DictReader(stream))
            assert Counter(row["split"] for row in split) == {"train": 2, "val": 2, "test": 2}
            assert len({(row["patient"], row["split"]) for row in split}) == 3
        assert (runs / name / "adapter.safetensors").exists() == (verb == "fit")
        assert (runs / name / "checkpoints" / "last.ckpt").exists() == (verb == "fit")
    wanted = {"family": "LoRA", "modules": "both", "rank": 4, "vcl": True, "label": ""}
    for name in ("lora", "eval_us"):
        assert json.loads((runs / name / "run.json").read_text())["setting"] == wanted


def test_settings_are_saved_whole_however_they_were_composed(study, tmp_path):
    (tmp_path / "data.yaml").write_text("class_path: PhantomDataModule\ninit_args: {batch_size: 3}\n")
    (tmp_path / "over.yaml").write_text("data: data.yaml\n")
    line = f"{scored(study, tmp_path, tmp_path / 'over.yaml')} {ONE_OBJECT}"
    assert uscl(line) == 0
    saved = yaml.safe_load((tmp_path / "eval_us/config.yaml").read_text())["data"]
    assert saved["init_args"]["batch_size"] == 3
    assert saved["init_args"]["classes"] == ["liver"]
    assert uscl(f"report {tmp_path / 'eval_us'} --out {tmp_path / 'report'} --clicks 1") == 0


def test_metrics_are_logged(runs):
    header = (runs / "vcl/metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/prediction", "train/region_accuracy", "train/dead_positives"))
    header = (runs / "lora/metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/loss_epoch", "val/dice_1", "val/dice_2", "val/dice"))


def test_rows_table_and_pictures(runs):
    rows = read_rows(runs / "eval_us/rows.csv")
    assert {row.clicks for row in rows} == {1, 3}
    assert {row.method for row in rows} == {"USCL-Med3D"}
    assert {row.weights for row in rows} == {"random weights"}
    assert {row.inference for row in rows} == {"published"}
    protocol = "patches around the label, clicks drawn from all wrong voxels, the mask after as many clicks scored"
    assert {row.protocol for row in rows} == {protocol}
    objects = {(row.case, row.class_name) for row in rows}
    assert len(rows) == 2 * len(objects) > 0
    pictures = {path.stem.replace("_", " ") for path in (runs / "eval_us/pictures").glob("*.png")}
    assert pictures == {row.class_name for row in rows} | {"worst"}
    assert "| USCL-Med3D |" in (runs / "eval_us/table.md").read_text()


def test_masks_lie_on_the_grid_of_their_image(runs, study):
    lines = (study / "prompts.csv").read_text().splitlines()[1:]
    masks = sorted((runs / "predict_us/masks").glob("*.nii.gz"))
    assert len(masks) == len(lines)
    for mask in masks:
        image = read_image(study / "imagesTs" / f"{mask.name.split('__')[0]}.nii.gz")
        assert read_label(mask).same_grid(image) is None


def test_a_second_run_gets_a_folder_of_its_own(study, tmp_path):
    line = f"{scored(study, tmp_path)} {ONE_OBJECT}"
    assert uscl(line) == 0
    before = (tmp_path / "eval_us/rows.csv").read_bytes()
    assert uscl(line) == 0
    assert (tmp_path / "eval_us/rows.csv").read_bytes() == before
    assert {row.clicks for row in read_rows(tmp_path / "eval_us-2/rows.csv")} == {1}


def test_overwrite_replaces_a_run_and_nothing_else(study, tmp_path, capsys):
    line = f"{scored(study, tmp_path)} {ONE_OBJECT}"
    assert uscl(line) == 0
    (tmp_path / "eval_us" / "notes.txt").write_text("mine")
    assert uscl(f"{line} --overwrite") == 0
    assert (tmp_path / "eval_us" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "eval_us-2").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    line = line.replace(str(tmp_path / "eval_us"), str(tmp_path / "thesis"))
    assert uscl(f"{line} --overwrite") == 2
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
