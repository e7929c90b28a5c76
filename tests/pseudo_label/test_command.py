"""``uscl pseudo-label`` from files to a data set that trains."""

import csv
import json
import shutil
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from disc_clip import COUNT, HEIGHT, WIDTH, clip
from PIL import Image

from uscl.cli import main
from uscl.data.datamodule import VolumeDataModule
from uscl.data.datasets import Splitting
from uscl.data.datasets.ultrasound import CLASSES, read_ultrasound
from uscl.data.patches import Preprocessing
from uscl.data.training_patches import PatchSampling
from uscl.data.volume import read_image, read_label
from uscl.errors import InputError
from uscl.phantom.video import write_frames, write_video
from uscl.pseudo_label.output import add_to_manifest

GIVEN = ("--reading.spacing", "[2.0, 2.0]", "--reading.step", "3.0")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    frames, labels = clip()
    write_frames(root / "frames", frames, range(COUNT))
    write_frames(root / "keys", labels, (0, 8, 17))
    return root


def run(study: Path, out: Path, *more: str, sweep: str = "frames", keys: str = "keys") -> int:
    return main(
        ["pseudo-label", str(study / sweep), "--key-frames", str(study / keys), "--out", str(out), *GIVEN, *more]
    )


@pytest.fixture(scope="module")
def labelled(study, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    assert run(study, out, "--patient", "anna", "--check.threshold", "0.3") == 0
    return out


@pytest.fixture(autouse=True)
def _plain_sheets(monkeypatch) -> None:
    """The contact sheet of ``labelled`` is drawn before; of later runs it would take most of the time."""
    command = import_module("uscl.cli.commands.pseudo_label")
    monkeypatch.setattr(command, "save_contact_sheet", lambda file, *_: Image.new("L", (4, 4)).save(file))


def test_what_a_run_leaves(study, labelled):
    frames, labels = clip()
    image = read_image(labelled / "image.nii.gz")
    assert np.array_equal(image.array.transpose(2, 1, 0), frames), "the frames as they were"
    assert image.spacing == pytest.approx((2, 2, 3))
    proposals = read_label(labelled / "proposals.nii.gz").array.transpose(2, 1, 0)
    for key in (0, 8, 17):
        assert np.array_equal(proposals[key], labels[key])
    inner = [t for t in range(17) if t not in (0, 8)]
    met = (
        2
        * ((proposals == 3) & (labels == 3))[inner].sum()
        / ((proposals == 3)[inner].sum() + (labels == 3)[inner].sum())
    )
    assert met > 0.85
    quality = json.loads((labelled / "quality.json").read_text())
    assert quality["key_frames"] == [0, 8, 17]
    assert set(map(int, quality["flagged"])) >= set(range(18, COUNT))
    assert quality["classes"]["liver"]["left_out"][0]["frame"] == 8
    assert len(quality["classes"]["liver"]["confidence"]) == COUNT
    assert quality["classes"]["liver"]["carried_by"] in ("shape", "motion", "blend")
    assert len(quality["annotate_next"]) == 3
    record = json.loads((labelled / "run.json").read_text())
    assert record["status"] == "finished"
    assert "threshold: 0.3" in (labelled / "config.yaml").read_text()
    assert plt.imread(labelled / "contact_sheet.png").shape[0] > 200
    text = (labelled / "report.html").read_text()
    assert "not a medical device" in text
    assert text.count("<figure") == COUNT
    assert text.count('<figure class="key"') == 3
    assert 'src="http' not in text


def test_flagged_frames_are_left_out_of_the_pair(labelled):
    with (labelled / "sweeps.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["patient"], row["sweep"]) == ("anna", "frames_part1")
    image, label = read_image(labelled / row["image"]), read_label(labelled / row["label"])
    assert image.same_grid(label) is None
    assert image.shape == (WIDTH, HEIGHT, 18)
    assert not (labelled / "label.nii.gz").exists(), "nothing that invites to train on flagged frames"


def test_the_manifest_trains(labelled):
    data_set = read_ultrasound(labelled / "sweeps.csv")
    assert data_set.label_names[3] == "liver"
    data = VolumeDataModule(
        root=str(labelled / "sweeps.csv"),
        dataset="ultrasound",
        batch_size=1,
        patches_per_epoch=1,
        preprocessing=Preprocessing(spacing=(4.0, 4.0, 4.0), patch_size=16),
        sampling=PatchSampling(minimum_foreground=20),
        split=Splitting(0.0, 0.0),
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.target.any()


def test_keeping_flagged_frames(study, tmp_path):
    assert run(study, tmp_path / "out", "--keep-flagged") == 0
    (case,) = read_ultrasound(tmp_path / "out").cases
    assert case.name == "frames"
    assert read_label(case.label).shape == (WIDTH, HEIGHT, COUNT)


def test_one_more_key_frame_and_a_shared_manifest(study, tmp_path, monkeypatch, capsys):
    out, shared = tmp_path / "out", tmp_path / "all" / "sweeps.csv"
    keys = tmp_path / "keys"
    shutil.copytree(study / "keys", keys)
    options = ("--manifest", str(shared), "--check.threshold", "0.3")
    assert run(study, out, *options, keys=str(keys)) == 0
    (out / "label_1.nii.gz").touch()
    assert run(study, out, *options, keys=str(keys)) == 2
    assert "has been labelled; --overwrite replaces" in capsys.readouterr().err

    def forbidden(*_):
        raise AssertionError("has been registered already")

    monkeypatch.setattr("uscl.pseudo_label.registration._register", forbidden)
    write_frames(keys, clip()[1], (4,))
    assert run(study, out, *options, "--overwrite", keys=str(keys)) == 0
    assert json.loads((out / "quality.json").read_text())["key_frames"] == [0, 4, 8, 17]
    (case,) = read_ultrasound(shared).cases
    assert case.image.resolve() == (out / "image_1.nii.gz").resolve(), "in place of the earlier line"
    other = tmp_path / "other"
    write_frames(other, clip()[0][::-1].copy(), range(COUNT))
    assert run(study, out, sweep=str(other)) == 2
    assert "labels of another sweep" in capsys.readouterr().err


def test_a_run_that_fails_keeps_what_was_there(study, tmp_path, monkeypatch, capsys):
    out, keys = tmp_path / "out", tmp_path / "keys"
    shutil.copytree(study / "keys", keys)
    assert run(study, out, "--check.threshold", "0.3", keys=str(keys)) == 0
    (out / "label_corrected.nii.gz").write_bytes(b"mine")
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.suffix in (".gz", ".json", ".html")}
    alone = tmp_path / "alone"
    write_frames(alone, clip()[1], (8,))
    assert run(study, out, "--overwrite", keys=str(alone)) == 2
    assert "annotate at least the first and the last frame" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("uscl.cli.commands.pseudo_label.label_sweep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(study, out, "--overwrite", keys=str(keys))
    kept = {name for name, content in before.items() if (out / name).read_bytes() == content}
    assert kept >= {"label_1.nii.gz", "proposals.nii.gz", "quality.json", "report.html"}
    assert run(study, out, "--check.threshold", "0.3", "--overwrite", keys=str(keys)) == 0
    assert (out / "label_corrected.nii.gz").read_bytes() == b"mine", "not a file of ours"


def test_a_shared_manifest_loses_no_line_and_keeps_no_dead_one(study, tmp_path, capsys):
    shared, options = tmp_path / "all" / "sweeps.csv", ("--check.threshold", "0.3")
    assert run(study, tmp_path / "anna", *options, "--manifest", str(shared), "--patient", "anna") == 0
    first = shared.read_text()
    assert run(study, tmp_path / "bert", *options, "--manifest", str(shared), "--patient", "bert") == 2
    assert "has a sweep frames_part1 already" in capsys.readouterr().err
    assert shared.read_text() == first, "another patient's clip of the same name"
    assert not (tmp_path / "bert").exists()
    again = ("--manifest", str(shared), "--least-frames", "20", "--overwrite")
    assert run(study, tmp_path / "anna", *options, *again) == 0
    assert len(shared.read_text().splitlines()) == 1, "the pair is no more"


def test_frames_are_called_by_the_numbers_in_their_names(study, tmp_path):
    frames, labels = clip()
    for kind, content, numbers in (("frames", frames, range(COUNT)), ("keys", labels, (0, 8, 17))):
        (tmp_path / kind).mkdir()
        for t in numbers:
            Image.fromarray(content[t]).save(tmp_path / kind / f"img-{t + 1:04d}.png")
    out = tmp_path / "out"
    assert run(study, out, "--check.threshold", "0.3", sweep=str(tmp_path / "frames"), keys=str(tmp_path / "keys")) == 0
    found = json.loads((out / "quality.json").read_text())
    assert found["key_frames"] == [1, 9, 18]
    assert max(map(int, found["flagged"])) == COUNT
    assert [one["frame"] for one in found["classes"]["liver"]["left_out"]] == [9]
    assert f"<figcaption>{COUNT}: " in (out / "report.html").read_text()
    proposals = read_label(out / "proposals.nii.gz").array.transpose(2, 1, 0)
    assert np.array_equal(proposals[8], labels[8])


def test_an_interrupted_run_goes_on(study, labelled, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = ("--patient", "anna", "--check.threshold", "0.3")
    with monkeypatch.context() as patch:
        patch.setattr("uscl.cli.commands.pseudo_label.label_sweep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(study, out, *options)
    assert run(study, out, *options) == 0
    for name in ("proposals.nii.gz", "label_1.nii.gz"):
        assert np.array_equal(read_label(out / name).array, read_label(labelled / name).array)


def test_videos_and_names_of_ones_own(study, tmp_path):
    pytest.importorskip("av", reason="extra video")
    frames, labels = clip()
    write_video(tmp_path / "clip.mp4", frames)
    (tmp_path / "names.json").write_text(json.dumps({"labels": {"background": 0, "cyst": 1}}))
    for number in (0, 17):
        (tmp_path / "keys").mkdir(exist_ok=True)
        Image.fromarray((labels[number] > 0).astype(np.uint8) * 255).save(tmp_path / "keys" / f"{number}.png")
    assert (
        run(
            study,
            tmp_path / "out",
            "--labels",
            str(tmp_path / "names.json"),
            sweep=str(tmp_path / "clip.mp4"),
            keys=str(tmp_path / "keys"),
        )
        == 0
    )
    assert list(json.loads((tmp_path / "out" / "quality.json").read_text())["classes"]) == ["cyst"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--key-frames", "nowhere"), "no such key frames"),
        (("--check.threshold", "2"), "threshold is 2"),
        (("--least-frames", "1"), "a sweep has at least two frames"),
        (("--labels", "nowhere.json"), "names no labels"),
        (("--out", "used"), "is not empty and holds no pseudo-labels"),
    ],
)
def test_mistakes_are_reported(study, tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    assert run(study, tmp_path / "out", *arguments) == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "used" / "mine.txt").read_text() == "keep"
    assert not (tmp_path / "out").exists()


def test_one_frame_is_no_sweep(study, tmp_path, capsys):
    write_frames(tmp_path / "one", clip()[0], (0,))
    assert run(study, tmp_path / "out", sweep=str(tmp_path / "one")) == 2
    assert "a sweep has at least two" in capsys.readouterr().err
    assert run(study, tmp_path / "out", "--reading.spacing", "null") == 2
    assert "millimetres between pixels are not known" in capsys.readouterr().err


def test_seggpt_and_what_both_engines_agree_on(study, tmp_path):
    pytest.importorskip("transformers", reason="extra pseudo-label")
    from small_seggpt import SMALL, random_weights

    weights = random_weights(tmp_path / "small.safetensors")
    size = [option for name, value in vars(SMALL).items() for option in (f"--seggpt.size.{name}", json.dumps(value))]
    options = ("--engine", "seggpt", "--compare", "--seggpt.weights", str(weights), "--seggpt.memory", "0", *size)
    assert run(study, tmp_path / "out", *options) == 0
    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert found["engine"] == "seggpt"
    assert 0 <= found["classes"]["liver"]["dice_against_the_other_engine"] <= 1
    proposals = read_label(tmp_path / "out" / "proposals.nii.gz").array.transpose(2, 1, 0)
    assert np.array_equal(proposals[8], clip()[1][8]), "key frames stay, whatever paints the others"


def test_an_engine_without_weights_is_never_replaced(study, tmp_path, capsys):
    assert (
        run(study, tmp_path / "out", "--engine", "seggpt", "--seggpt.weights", str(tmp_path / "none.safetensors")) == 2
    )
    assert "none.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_shared_manifest_keeps_what_its_owner_wrote_in_it(tmp_path):
    shared, folder = tmp_path / "sweeps.csv", tmp_path / "out"
    shared.write_text("scanner,patient,sweep,image,label,age\nX,anna,old,old.mp4,old.nii.gz,44\n")
    pairs = [("new", folder / "image.nii.gz", folder / "label.nii.gz")]
    with pytest.raises(InputError, match=r"has no dataset\.json beside it, so its labels are .*pleural effusion"):
        add_to_manifest(shared, pairs, "new", "bert", folder, {1: "cyst"})
    add_to_manifest(shared, pairs, "new", "bert", folder, CLASSES)
    with shared.open() as stream:
        old, new = csv.DictReader(stream)
    assert (old["scanner"], old["age"], old["patient"], old["image"]) == ("X", "44", "anna", "old.mp4")
    assert (new["scanner"], new["patient"], new["image"]) == ("", "bert", "out/image.nii.gz")
    assert not (tmp_path / "dataset.json").exists(), "the data set had no name of its own"
