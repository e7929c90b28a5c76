"""`uscl prepare`: what is wrong with a download is reported by case; patches from the store are those of the files."""

import csv
import errno
import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import torch

from uscl.cli import main
from uscl.data import Preprocessing, VolumeDataModule, read_image, read_label, write_volume
from uscl.data.batches import LabelledPatch
from uscl.data.cache import CaseCache
from uscl.data.checks import check_and_prepare
from uscl.data.datasets import Splitting, read_folder
from uscl.data.store import key_of, open_case, read_prepared, summarise, write_case
from uscl.data.training_patches import PatchSampling
from uscl.data.volume import Volume
from uscl.errors import InputError

pytest.importorskip("blosc2", reason="the extra `store` is not installed")
SMALL = Preprocessing(spacing=(2.0, 2.0, 2.0), patch_size=32)
OBLIQUE = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])


def download(root, cases: int = 4, dtype=np.int16):
    """A plain folder of oblique, anisotropic volumes with two classes."""
    random = np.random.default_rng(0)
    for n in range(cases):
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in (40, 36, 28)), indexing="ij")
        array = (400 * np.sin(3 * x + n) * np.cos(2 * y) + 100 * z + 20 * random.standard_normal(x.shape)).astype(dtype)
        label = (x**2 + y**2 + z**2 < 0.3).astype(np.uint8) + ((x - 0.6) ** 2 + y**2 + z**2 < 0.05)
        geometry = ((1.1, 0.9, 2.5), (-10.0, 5.0, 30.0), OBLIQUE)
        write_volume(root / "imagesTr" / f"case{n}.nii.gz", Volume(array, *geometry))
        write_volume(root / "labelsTr" / f"case{n}.nii.gz", Volume(label.astype(np.uint8), *geometry))
    names = {"background": 0, "ball": 1, "nodule": 2}
    (root / "dataset.json").write_text(json.dumps({"name": "balls", "labels": names}))
    return root


def prepare(root, out, *more) -> int:
    return main(
        [
            "prepare",
            "folder",
            "--root",
            str(root),
            "--out",
            str(out),
            "--preprocessing.spacing",
            "[2, 2, 2]",
            "--preprocessing.patch_size",
            "32",
            *more,
        ]
    )


def report(out) -> dict[str, dict[str, str]]:
    with (out / "prepare_report.csv").open() as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def bytes_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    root = download(folder / "download")
    before = bytes_of(root)
    assert prepare(root, folder / "store") == 0
    assert bytes_of(root) == before, "nothing is written into the download"
    return root, folder / "store"


def module(root, **options) -> VolumeDataModule:
    sampling = options.pop("sampling", PatchSampling(minimum_foreground=5))
    return VolumeDataModule(str(root), options.pop("preprocessing", SMALL), sampling, num_workers=0, **options)


@pytest.mark.parametrize("centre", ["label_box", "foreground", "volume"])
def test_patches_from_the_store_are_those_from_the_files(prepared, centre):
    root, out = prepared
    patches = []
    for data in (
        module(root, sampling=PatchSampling(centre, 2, 5)),
        module(out, sampling=PatchSampling(centre, 2, 5), dataset="prepared"),
    ):
        data.setup("fit")
        patches.append([data.train_dataloader().dataset[number] for number in range(6)])
    for raw, stored in zip(*patches, strict=True):
        assert raw.case == stored.case
        assert isinstance(raw, LabelledPatch) == (centre != "volume")
        if centre != "volume":
            assert torch.equal(raw.target, stored.target)
        # Interpolated values are rounded to whole units; the images' standard deviation is about 200 of them.
        assert (raw.image - stored.image).abs().max() < 0.02


def test_workers_change_nothing(prepared):
    batches = []
    for workers in (0, 2):
        data = module(prepared[1], dataset="prepared", patches_per_epoch=6)
        data.num_workers = workers
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.target, two.target)


def test_a_store_travels_to_a_spawned_process(prepared):
    cache = CaseCache(SMALL, read_prepared(prepared[1]), 4)
    case = cache.data_set.cases[0]
    image = cache.get(case).image[:]
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).get(case).image[:], image)


@pytest.mark.parametrize("region", ["label", "first_click"])
def test_objects_to_score_are_the_same_and_lead_back_to_the_volume(prepared, region):
    items = []
    for data in (module(prepared[0], region=region), module(prepared[1], dataset="prepared", region=region)):
        data.setup("test")
        items.append(list(data.test_dataloader()))
    assert len(items[0]) == len(items[1]) > 0
    for raw, stored in zip(*items, strict=True):
        assert (raw.case.name, raw.class_name, raw.corner) == (
            stored.case.name,
            stored.class_name,
            stored.corner,
        )
        assert torch.equal(raw.target, stored.target)
        assert raw.first_click == stored.first_click
        logits = np.where(raw.target, 1.0, -1.0)
        assert np.array_equal(raw.grid.restore(logits, raw.corner), stored.grid.restore(logits, raw.corner))
        assert np.array_equal(raw.truth.mask, stored.truth.mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_grey_values_survive(tmp_path, dtype):
    random = np.random.default_rng(1)
    array = random.integers(0, 256, (20, 20, 20)).astype(dtype) / (1 if dtype is np.uint8 else 37)
    write_volume(tmp_path / "d" / "imagesTr" / "a.nii.gz", Volume(array.astype(dtype), (2.0, 2.0, 2.0)))
    data_set = read_folder(tmp_path / "d")
    done = check_and_prepare(data_set.cases[0], data_set, SMALL, tmp_path / "s")
    assert done.status == "usable"
    image, label, grid, *_ = open_case(tmp_path / "s", SMALL, "a")
    assert label is None
    assert image._stored.dtype == (np.uint8 if dtype is np.uint8 else np.uint16)
    step = 0 if dtype is np.uint8 else np.ptp(array) / 65535
    assert np.abs(grid.restore_axes(image[:]) - array).max() <= step


def test_settings_that_were_not_prepared_are_not_read_by_mistake(prepared):
    for other in (
        Preprocessing(spacing=(1.5, 1.5, 1.5), patch_size=32),
        Preprocessing(spacing=(2.0, 2.0, 2.0), patch_size=32, clamp=(-100.0, 100.0)),
    ):
        assert key_of(other) != key_of(SMALL)
        with pytest.raises(InputError, match=r"was not prepared with spacing .* run uscl prepare with these settings"):
            module(prepared[1], preprocessing=other, dataset="prepared").setup("fit")
    wide = Preprocessing(spacing=(2.0, 2.0, 2.0), patch_size=48, normalisation="z_score")
    assert key_of(wide) == key_of(SMALL), "patch size and normalisation act when a patch is cut"


def test_summaries():
    label = np.zeros((20, 20, 20), np.uint8)
    label[2:5, 3:9, 4:6] = 2
    label[10:, 10:, 10:] = 5
    found = summarise(label)
    assert set(found) == {2, 5}
    assert (found[2].count, found[2].low, found[2].high) == (36, (2, 3, 4), (5, 9, 6))
    assert len(found[2].voxels) == 36
    assert len(found[5].voxels) == 1000 == found[5].count
    for label_id, summary in found.items():
        assert (label[tuple(summary.voxels.T)] == label_id).all()
    assert summarise(np.zeros((4, 4, 4), np.int32)) == {}


def spoil(root, kind: str) -> str:
    """Damages case1; returns words of what must be said of it."""
    image, label = (root / f"{which}Tr" / "case1.nii.gz" for which in ("images", "labels"))
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:-400])
        return "imagesTr/case1.nii.gz"
    volume = read_image(image) if kind in ("NaN", "constant") else read_label(label)
    if kind == "NaN":
        array = volume.array.astype(np.float32)
        array[3, 3, 3] = np.nan
        write_volume(image, volume.with_array(array), overwrite=True)
        return "NaN"
    if kind == "constant":
        write_volume(image, volume.with_array(np.full(volume.shape, 7, np.int16)), overwrite=True)
        return "every voxel is 7"
    array, geometry = volume.array, (volume.spacing, volume.origin)
    changed = {
        "other shape": (Volume(array[:-3], *geometry, volume.direction), "does not lie on the grid"),
        "swapped affine": (Volume(array, *geometry, np.diag([-1.0, -1.0, 1.0])), "does not lie on the grid"),
        "unknown id": (volume.with_array(np.where(array == 2, 9, array).astype(np.uint8)), "label ids [9]"),
        "no foreground": (volume.with_array(np.zeros_like(array)), "has no foreground of ball, nodule"),
    }
    write_volume(label, changed[kind][0], overwrite=True)
    return changed[kind][1]


@pytest.mark.parametrize(
    "kind", ["truncated", "NaN", "constant", "other shape", "swapped affine", "unknown id", "no foreground"]
)
def test_a_damaged_case_is_reported_and_the_others_come_through(tmp_path, capsys, kind):
    root, out = download(tmp_path / "Aufnahmen für Müller", 3), tmp_path / "store"
    words = spoil(root, kind)
    assert prepare(root, out) == 2
    assert "1 of 3 cases cannot be used" in capsys.readouterr().err
    rows = report(out)
    assert [rows[f"case{n}"]["status"] for n in range(3)] == ["usable", "unusable", "usable"]
    assert words in rows["case1"]["problem"]
    with pytest.raises(InputError, match="not there; run uscl prepare"):
        read_prepared(out)
    assert prepare(root, out, "--skip-bad") == 0
    assert [case.name for case in read_prepared(out).cases] == ["case0", "case2"]
    data = module(out, dataset="prepared", split=Splitting(0.0, 0.0))
    data.setup("fit")
    assert data.train_dataloader().dataset[0].target.any()


def test_a_missing_modality_and_a_doubled_patient(tmp_path, capsys):
    root = download(tmp_path / "d", 3)
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "ball": 1, "nodule": 2}}
    (root / "dataset.json").write_text(json.dumps(description))
    for n in range(3):
        image = root / "imagesTr" / f"case{n}.nii.gz"
        for channel in (0, 1) if n else (0,):
            (root / "imagesTr" / f"case{n}_000{channel}.nii.gz").write_bytes(image.read_bytes())
        image.unlink()
    assert prepare(root, tmp_path / "s", "--modality", "T2") == 2
    assert "channel 1 (case0_0001) of case case0 is missing" in report(tmp_path / "s")["case0"]["problem"]
    assert prepare(root, tmp_path / "s", "--modality", "T2", "--skip-bad") == 0
    assert len(read_prepared(tmp_path / "s").cases) == 2
    (root / "patients.csv").write_text("case,patient\ncase0,a\ncase0,b\n")
    assert prepare(root, tmp_path / "s2") == 2
    assert "case case0 is listed twice" in capsys.readouterr().err


def test_empty_folders_and_outputs_that_cannot_be_used(tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert prepare(tmp_path / "empty", tmp_path / "s") == 2
    assert "no volumes" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    root = download(tmp_path / "d", 2)
    assert prepare(root, root / "store") == 2
    assert "lies in the download" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert prepare(root, tmp_path / "mine") == 2
    assert "no store of uscl prepare" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert prepare(root, tmp_path / "file" / "store") == 2
    assert "cannot be written to" in capsys.readouterr().err

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("blosc2.asarray", full)
        assert prepare(root, tmp_path / "s") == 2
        assert "No space left on device); make room and run again" in " ".join(capsys.readouterr().err.split())
    assert prepare(root, tmp_path / "s") == 0, "goes on once there is room"


def test_objects_that_resampling_leaves_no_voxel_of_are_reported(tmp_path, caplog):
    root, out = download(tmp_path / "d"), tmp_path / "s"
    for file in sorted((root / "labelsTr").iterdir()):
        volume = read_label(file)
        array = np.minimum(volume.array, 1)
        nodule = [(x, 2, 2) for x in range(38) if file.name == "case0.nii.gz"]
        voxel = next(
            (v for v in nodule if not (SMALL.prepare_label(volume.with_array(_only(array, v))) == 2).any()), None
        )
        write_volume(file, volume.with_array(array if voxel is None else _only(array, voxel)), overwrite=True)
    assert prepare(root, out) == 0
    for data in (module(root), module(out, dataset="prepared")):
        caplog.clear()
        data.setup("fit")
        told = [record.message for record in caplog.records if "too small for a spacing" in record.message]
        assert len(told) == 1
        assert told[0].endswith(": nodule of case0")


def _only(array, voxel):
    """The array with a nodule of one voxel."""
    changed = array.copy()
    changed[voxel] = 2
    return changed


def test_interrupted_runs_go_on_and_changed_files_are_prepared_again(tmp_path):
    root, out = download(tmp_path / "d", 3), tmp_path / "s"
    assert prepare(root, out) == 0
    folder = out / key_of(SMALL)
    before = {name: (folder / name / "image.b2nd").stat().st_mtime_ns for name in ("case0", "case2")}
    shutil.rmtree(folder / "case1")
    (folder / ".case1.123").mkdir()  # what a killed process leaves
    label = root / "labelsTr" / "case2.nii.gz"
    volume = read_label(label)
    write_volume(label, volume.with_array(np.minimum(volume.array, 1)), overwrite=True)
    assert prepare(root, out) == 0
    assert (folder / "case0" / "image.b2nd").stat().st_mtime_ns == before["case0"], "what is complete is left alone"
    assert (folder / "case2" / "image.b2nd").stat().st_mtime_ns != before["case2"]
    assert set(open_case(out, SMALL, "case2")[3]) == {1}
    assert set(open_case(out, SMALL, "case1")[3]) == {1, 2}
    assert prepare(download(tmp_path / "other", 1), out) == 2, "a store is of one download"


def test_who_writes_a_case_second_leaves_what_is_there(tmp_path):
    """Another process may be reading it."""
    array = np.ones((4, 4, 4), np.float32)
    grid = SMALL.grid(Volume(array))
    for value in (1, 2):
        write_case(tmp_path, SMALL, "a", array * value, None, grid, True, {})
    folder = tmp_path / key_of(SMALL)
    assert [path.name for path in folder.iterdir()] == ["a"], "nothing half written is left"
    assert open_case(tmp_path, SMALL, "a")[0][:].max() == 1


def _prepare_in_process(root, out):
    raise SystemExit(prepare(root, out))


def test_two_runs_at_once_do_no_harm(tmp_path):
    root, out = download(tmp_path / "d", 4), tmp_path / "s"
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=_prepare_in_process, args=(root, out)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0, 0]
    data_set = read_prepared(out)
    cache = CaseCache(SMALL, data_set, 4)
    assert all(cache.get(case).image[:].shape == cache.get(case).grid.shape for case in data_set.cases)
    assert not [path for path in (out / key_of(SMALL)).iterdir() if path.name.startswith(".")]


def test_a_damaged_store_is_reported(tmp_path):
    root, out = download(tmp_path / "d", 1), tmp_path / "s"
    assert prepare(root, out) == 0
    image = out / key_of(SMALL) / "case0" / "image.b2nd"
    image.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="case0: cannot be read .* delete it and run uscl prepare again"):
        open_case(out, SMALL, "case0")
    (out / "data_set.json").write_text('{"name": 1}')
    with pytest.raises(InputError, match="not what uscl prepare writes"):
        read_prepared(out)
