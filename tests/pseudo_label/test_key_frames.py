"""Every way of annotating key frames gives the same masks, and every mistake is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from uscl.data.volume import Volume, write_volume
from uscl.errors import InputError
from uscl.pseudo_label.key_frames import frame_number, read_key_frames

SHAPE = (12, 30, 40)
NAMES = {1: "pleural effusion", 3: "liver"}


@pytest.fixture
def labels() -> dict[int, np.ndarray]:
    """Rectangles, which polygons draw exactly: effusion at the top, liver below, on frames 2 and 10."""
    made = {}
    for number in (2, 10):
        made[number] = np.zeros(SHAPE[1:], np.int32)
        made[number][3:9, 5:20] = 1
        made[number][12 : 20 + number % 3, 8:30] = 3
    return made


def polygon_of(mask: np.ndarray) -> list[list[float]]:
    rows, columns = np.nonzero(mask)
    (top, bottom), (left, right) = (rows.min(), rows.max()), (columns.min(), columns.max())
    return [[float(x), float(y)] for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]


def as_pictures(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    for number, ids in labels.items():
        Image.fromarray(ids.astype(np.uint8)).save(folder / f"sweep7_{number:04d}.png")
    return folder


def as_palette(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    for number, ids in labels.items():
        picture = Image.fromarray(ids.astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture.save(folder / f"{number}.png")
    return folder


def as_folders(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    for number, ids in labels.items():
        for value, name in NAMES.items():
            (folder / name.replace(" ", "_")).mkdir(exist_ok=True)
            mask = Image.fromarray((255 * (ids == value)).astype(np.uint8))
            mask.save(folder / name.replace(" ", "_") / f"{number}.png")
    return folder


def as_volume(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    whole = np.zeros(SHAPE, np.uint8)
    for number, ids in labels.items():
        whole[number] = ids
    return write_volume(folder / "keys.nii.gz", Volume(whole.transpose(2, 1, 0)))


def as_label_me(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    for number, ids in labels.items():
        shapes = [{"label": name, "shape_type": "polygon", "points": polygon_of(ids == value)}
                  for value, name in NAMES.items()]  # fmt: skip
        content = {"shapes": shapes, "imageHeight": SHAPE[1], "imageWidth": SHAPE[2], "imagePath": f"{number}.png"}
        (folder / f"{number:03d}.json").write_text(json.dumps(content))
        Image.fromarray(np.full(SHAPE[1:], 90, np.uint8)).save(folder / f"{number:03d}.png")  # the frame itself
    return folder


def as_coco(folder: Path, labels: dict[int, np.ndarray], runs: bool = False) -> Path:
    def outline(mask: np.ndarray) -> object:
        if not runs:
            return [[c for point in polygon_of(mask) for c in point]]
        flat = mask.T.ravel()
        changes = np.flatnonzero(np.diff(flat.astype(int))) + 1
        edges = [0, *changes.tolist(), flat.size]
        counts = np.diff(edges).tolist()
        return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}

    content = {
        "categories": [{"id": 70 + value, "name": name} for value, name in NAMES.items()],
        "images": [{"id": 5 + n, "file_name": f"frames/{n:04d}.png", "height": SHAPE[1], "width": SHAPE[2]}
                   for n in range(SHAPE[0])],
        "annotations": [{"image_id": 5 + n, "category_id": 70 + value, "segmentation": outline(ids == value)}
                        for n, ids in labels.items() for value in NAMES],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def as_runs(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    return as_coco(folder, labels, runs=True)


def as_segmentation(folder: Path, labels: dict[int, np.ndarray]) -> Path:
    """As 3D Slicer writes it: cropped to what is drawn, with values of its own."""
    whole = np.zeros(SHAPE, np.uint8)
    for number, ids in labels.items():
        whole[number] = np.where(ids == 1, 2, np.where(ids == 3, 1, 0))
    image = sitk.GetImageFromArray(whole[2:11, 3:25, 5:31])
    for key, value in {
        "Segmentation_ReferenceImageExtentOffset": "5 3 2", "Segment0_Name": "Liver", "Segment0_LabelValue": "1",
        "Segment0_Layer": "0", "Segment1_Name": "Pleural effusion", "Segment1_LabelValue": "2", "Segment1_Layer": "0",
    }.items():  # fmt: skip
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(folder / "Segmentation.seg.nrrd"))
    return folder / "Segmentation.seg.nrrd"


@pytest.mark.parametrize("kind", [as_pictures, as_palette, as_folders, as_volume, as_label_me, as_coco, as_runs,
                                  as_segmentation])  # fmt: skip
def test_every_kind_gives_the_same_masks(kind, labels, tmp_path):
    found = read_key_frames(kind(tmp_path, labels), SHAPE, NAMES)
    assert list(found) == [2, 10]
    for number, ids in labels.items():
        assert np.array_equal(found[number], ids)


def test_layers_of_a_segmentation_may_overlap_nothing_else(labels, tmp_path):
    layers = np.stack([(np.stack([labels[2]] * 12) == value).astype(np.uint8) for value in (1, 3)], axis=-1)
    image = sitk.GetImageFromArray(layers, isVector=True)
    for number, name in enumerate(("pleural effusion", "liver")):
        for key, value in {"Name": name, "LabelValue": "1", "Layer": str(number)}.items():
            image.SetMetaData(f"Segment{number}_{key}", value)
    sitk.WriteImage(image, str(tmp_path / "two.seg.nrrd"))
    found = read_key_frames(tmp_path / "two.seg.nrrd", SHAPE, NAMES)
    assert len(found) == 12
    assert np.array_equal(found[7], labels[2])


def test_black_and_white_stands_for_the_only_class(tmp_path):
    mask = np.zeros(SHAPE[1:], np.uint8)
    mask[4:8, 4:8] = 255
    Image.fromarray(mask).save(tmp_path / "3.png")
    assert np.unique(read_key_frames(tmp_path, SHAPE, {3: "liver"})[3]).tolist() == [0, 3]
    with pytest.raises(InputError, match="holds label 255; known are 1 pleural effusion, 3 liver"):
        read_key_frames(tmp_path, SHAPE, NAMES)


def test_an_empty_key_frame_has_to_be_meant(labels, tmp_path):
    labels[5] = np.zeros(SHAPE[1:], np.int32)
    folder = as_pictures(tmp_path, labels)
    with pytest.raises(InputError, match=r"0005\.png: nothing is annotated on frame 5; .*--allow-empty"):
        read_key_frames(folder, SHAPE, NAMES)
    assert not read_key_frames(folder, SHAPE, NAMES, allow_empty=True)[5].any()


@pytest.mark.parametrize(("name", "size", "value", "reason"), [
    ("0099.png", (30, 40), 3, "is for frame 99, the sweep has frames 0 to 11"),
    ("0004.png", (30, 41), 3, "has 41 x 30 pixels, frames of the sweep have 40 x 30"),
    ("0004.png", (30, 40), 9, "holds label 9; known are"),
    ("mask.png", (30, 40), 3, "says in its name not which frame"),
    ("0002.png", (30, 40), 3, "frame 2 has been annotated twice"),
])  # fmt: skip
def test_wrong_masks_are_named(labels, tmp_path, name, size, value, reason):
    folder = as_pictures(tmp_path, labels)
    Image.fromarray(np.full(size, value, np.uint8)).save(folder / name)
    with pytest.raises(InputError, match=rf"(?s){name}.*{reason}"):
        read_key_frames(folder, SHAPE, NAMES)


def change(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize(("write", "reason"), [
    (lambda folder, labels: folder / "nothing", "no such key frames"),
    (lambda folder, labels: folder, "holds no key frame"),
    (lambda folder, labels: (folder / "a.json", (folder / "a.json").write_text("{"))[0], "not readable as JSON"),
    (lambda folder, labels: (folder / "a.json", (folder / "a.json").write_text("{}"))[0], "is no COCO file"),
    (lambda folder, labels: (folder, (folder / "1.json").write_text('{"shapes": 3}'))[0], "is no file of LabelMe"),
    (lambda folder, labels: (folder / "a.txt", (folder / "a.txt").write_text("x"))[0], "no key frames; expected"),
    (lambda folder, labels: (folder / "a.seg.nrrd", (folder / "a.seg.nrrd").write_text("x"))[0], "readable as NRRD"),
    (lambda folder, labels: change(as_coco(folder, labels), categories=[{"id": 71, "name": "heart"},
                                                                        {"id": 73, "name": "liver"}]), "holds 'heart'"),
    (lambda folder, labels: as_volume(folder, {2: np.where(labels[2] > 0, 8, 0)}), "frame 2: holds label 8"),
])  # fmt: skip
def test_broken_files_are_named(labels, tmp_path, write, reason):
    with pytest.raises(InputError, match=reason):
        read_key_frames(write(tmp_path, labels), SHAPE, NAMES)


def test_a_segmentation_of_another_image(labels, tmp_path):
    with pytest.raises(InputError, match="reaches beyond the sweep"):
        read_key_frames(as_segmentation(tmp_path, labels), (10, 30, 40), NAMES)


def test_the_last_number_counts():
    assert frame_number(Path("pat3_sweep02_frame0012_mask.png")) == 12
