"""Every way of annotating key frames gives the same masks, and every mistake is named."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from uscl.data.frames import frame_number
from uscl.data.sweeps import SweepReading, read_sweep
from uscl.data.volume import Volume, read_image, write_volume
from uscl.errors import InputError
from uscl.pseudo_label.key_frames import read_key_frames

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
        shapes = [
            {"label": name, "shape_type": "polygon", "points": polygon_of(ids == value)}
            for value, name in NAMES.items()
        ]
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
        "images": [
            {"id": 5 + n, "file_name": f"frames/{n:04d}.png", "height": SHAPE[1], "width": SHAPE[2]}
            for n in range(SHAPE[0])
        ],
        "annotations": [
            {"image_id": 5 + n, "category_id": 70 + value, "segmentation": outline(ids == value)}
            for n, ids in labels.items()
            for value in NAMES
        ],
    }
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
    image.SetOrigin((5, 3, 2))
    for key, value in {
        "Segmentation_ReferenceImageExtentOffset": "5 3 2",
        "Segment0_Name": "Liver",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment1_Name": "Pleural effusion",
        "Segment1_LabelValue": "2",
        "Segment1_Layer": "0",
    }.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(folder / "Segmentation.seg.nrrd"))
    return folder / "Segmentation.seg.nrrd"


@pytest.mark.parametrize(
    "kind", [as_pictures, as_palette, as_folders, as_volume, as_label_me, as_coco, as_runs, as_segmentation]
)
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


def test_coco_cannot_say_that_a_frame_is_empty(labels, tmp_path, caplog):
    file = as_coco(tmp_path, labels)
    with caplog.at_level("WARNING"):
        assert list(read_key_frames(file, SHAPE, NAMES, allow_empty=True)) == [2, 10]
    assert f"{SHAPE[0] - 2} images without annotations are no key frames" in caplog.text


@pytest.mark.parametrize(
    ("name", "size", "value", "reason"),
    [
        ("0099.png", (30, 40), 3, "is for frame 99, the sweep has frames 0 to 11"),
        ("0004.png", (30, 41), 3, "has 41 x 30 pixels, frames of the sweep have 40 x 30"),
        ("0004.png", (30, 40), 9, "holds label 9; known are"),
        ("mask.png", (30, 40), 3, "says in its name not which frame"),
        ("0002.png", (30, 40), 3, "frame 2 has been annotated twice"),
    ],
)
def test_wrong_masks_are_named(labels, tmp_path, name, size, value, reason):
    folder = as_pictures(tmp_path, labels)
    Image.fromarray(np.full(size, value, np.uint8)).save(folder / name)
    with pytest.raises(InputError, match=rf"(?s){name}.*{reason}"):
        read_key_frames(folder, SHAPE, NAMES)


def drawn(folder: Path, points: object, **changes: object) -> Path:
    content = {"shapes": [{"label": "liver", "points": points}], "imageHeight": SHAPE[1], "imageWidth": SHAPE[2]}
    (folder / "2.json").write_text(json.dumps(content | changes))
    return folder


def outlined(folder: Path, labels: dict[int, np.ndarray], outline: object) -> Path:
    path = as_coco(folder, labels)
    entries = json.loads(path.read_text())["annotations"]
    entries[0]["segmentation"] = outline
    return change(path, annotations=entries)


def headed(folder: Path, labels: dict[int, np.ndarray], **changes: str | None) -> Path:
    path = as_segmentation(folder, labels)
    image = sitk.ReadImage(str(path))
    for key, value in changes.items():
        if value is None:
            image.EraseMetaData(key)
        else:
            image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return path


def reference(*size: int) -> str:
    matrix = "1;0;0;0;0;1;0;0;0;0;1;0;0;0;0;1;"
    return f"Oversampling|1|Why.&Reference image geometry|{matrix}{''.join(f'0;{n - 1};' for n in size)}|What.&"


def change(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda folder, labels: folder / "nothing", "no such key frames"),
        (lambda folder, labels: folder, "holds no key frame"),
        (lambda folder, labels: (folder / "a.json", (folder / "a.json").write_text("{"))[0], "not readable as JSON"),
        (lambda folder, labels: (folder / "a.json", (folder / "a.json").write_text("{}"))[0], "is no COCO file"),
        (lambda folder, labels: (folder, (folder / "1.json").write_text('{"shapes": 3}'))[0], "is no file of LabelMe"),
        (lambda folder, labels: (folder / "a.txt", (folder / "a.txt").write_text("x"))[0], "no key frames; expected"),
        (
            lambda folder, labels: (folder / "a.seg.nrrd", (folder / "a.seg.nrrd").write_text("x"))[0],
            "readable as NRRD",
        ),
        (
            lambda folder, labels: change(
                as_coco(folder, labels), categories=[{"id": 71, "name": "heart"}, {"id": 73, "name": "liver"}]
            ),
            "holds 'heart'",
        ),
        (lambda folder, labels: as_volume(folder, {2: np.where(labels[2] > 0, 8, 0)}), "frame 2: holds label 8"),
        (lambda folder, labels: drawn(folder, 3), "is no file of LabelMe"),
        (lambda folder, labels: drawn(folder, [["a", 1], [2, 3], [4, 5]]), "is no file of LabelMe"),
        (lambda folder, labels: drawn(folder, [[1], [2, 3], [4, 5]]), "is no file of LabelMe"),
        (
            lambda folder, labels: drawn(folder, [[90, 90], [95, 90], [95, 95]]),
            "a polygon outside the frame of 40 x 30",
        ),
        (lambda folder, labels: drawn(folder, [[1, 1], [9, 1], [9, 9]], imageHeight=-1), "has 40 x -1 pixels"),
        (
            lambda folder, labels: drawn(folder, [[1, 1], [9, 1], [9, 9]], imageHeight=10**12),
            "has 40 x 1000000000000 pix",
        ),
        (lambda folder, labels: outlined(folder, labels, []), "holds pleural effusion on .* without an outline"),
        (lambda folder, labels: outlined(folder, labels, {"counts": [10**13]}), "runs over 10000000000000 pixels"),
        (lambda folder, labels: outlined(folder, labels, {"size": [40, 30], "counts": [0, 1200]}), r"\(\[40, 30\]\)"),
        (lambda folder, labels: headed(folder, labels, Segment0_Layer="x"), "header does not say"),
        (lambda folder, labels: headed(folder, labels, Segment0_Layer="7"), "holds 1 layer.*Liver in layer 7"),
        (lambda folder, labels: headed(folder, labels, Segment0_LabelValue="5"), "value 1, which no segment explains"),
        (
            lambda folder, labels: headed(folder, labels, Segmentation_ReferenceImageExtentOffset="a b c"),
            "header does not",
        ),
        (
            lambda folder, labels: headed(folder, labels, Segmentation_ReferenceImageExtentOffset=None),
            "which part of the",
        ),
        (
            lambda folder, labels: headed(folder, labels, Segmentation_ConversionParameters=reference(50, 30, 12)),
            r"drawn on an image of \(50, 30, 12\) voxels",
        ),
    ],
)
def test_broken_files_are_named(labels, tmp_path, write, reason):
    with pytest.raises(InputError, match=reason):
        read_key_frames(write(tmp_path, labels), SHAPE, NAMES)


def test_a_segmentation_of_another_image(labels, tmp_path):
    with pytest.raises(InputError, match="reaches beyond the sweep"):
        read_key_frames(as_segmentation(tmp_path, labels), (10, 30, 40), NAMES)


def test_a_segmentation_that_says_what_it_was_drawn_on(labels, tmp_path):
    path = headed(tmp_path, labels, Segmentation_ConversionParameters=reference(40, 30, 12))
    assert np.array_equal(read_key_frames(path, SHAPE, NAMES)[10], labels[10])


def test_segments_need_not_be_numbered_without_gaps(labels, tmp_path):
    moved = {f"Segment4_{key}": value for key, value in (("Name", "Pleural effusion"), ("LabelValue", "2"))}
    path = headed(tmp_path, labels, Segment1_Name=None, **moved)
    assert np.array_equal(read_key_frames(path, SHAPE, NAMES)[10], labels[10])


def test_the_last_number_counts():
    assert frame_number(Path("pat3_sweep02_frame0012_mask.png")) == 12
    assert frame_number(Path("frame0012_png.rf.8f3d9e2a71.jpg")) == 12, "not the hash that Roboflow adds"


@pytest.mark.parametrize("write", [as_volume, as_segmentation])
def test_volumes_lie_where_the_sweep_lies(labels, tmp_path, write: Callable[..., Path]):
    """Annotated on a copy that was flipped on the way: the numbers of voxels agree, the places do not."""
    frames = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    path = write(tmp_path, labels)
    same = read_image(write_volume(tmp_path / "sweep.nrrd", Volume(frames.transpose(2, 1, 0))))
    assert np.array_equal(read_key_frames(path, SHAPE, NAMES, sweep=same)[2], labels[2])
    assert list(read_key_frames(path, SHAPE, NAMES, sweep=replace(same, spacing=(2.0, 2.0, 1.0)))) == [2, 10]
    turned = Volume(same.array, direction=np.diag([1.0, -1.0, 1.0]), origin=(0.0, 29.0, 0.0))
    flipped = read_image(write_volume(tmp_path / "flipped.nrrd", turned))
    with pytest.raises(InputError, match=r"does not lie on the grid of .*flipped\.nrrd"):
        read_key_frames(path, SHAPE, NAMES, sweep=flipped)


def test_a_label_volume_has_all_frames(labels, tmp_path):
    with pytest.raises(InputError, match=r"has \(40, 30, 12\) voxels, the sweep has \(40, 30, 20\)"):
        read_key_frames(as_volume(tmp_path, labels), (20, *SHAPE[1:]), NAMES)


def test_masks_find_the_pictures_they_are_named_after(labels, tmp_path):
    """Frames of a folder that are numbered from 1: counted from 0 every mask would be its neighbour's."""
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8), start=1):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number:04d}.png")
    (tmp_path / "keys").mkdir()
    keys = as_pictures(tmp_path / "keys", labels)
    sweep = read_sweep(tmp_path / "frames", SweepReading("assumed", "assumed"))
    found = read_key_frames(keys, SHAPE, NAMES, sweep=sweep)
    assert list(found) == [1, 9]
    assert np.array_equal(found[9], labels[10])
    (keys / "sweep7_0002.png").rename(keys / "sweep7_0000.png")
    with pytest.raises(InputError, match="is for frame 0, the sweep has frames 1 to 12"):
        read_key_frames(keys, SHAPE, NAMES, sweep=sweep)
    assert list(read_key_frames(as_volume(tmp_path, labels), SHAPE, NAMES, sweep=sweep)) == [2, 10]


def test_what_lies_over_another_class_is_reported(labels, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    read_key_frames(as_label_me(tmp_path, labels), SHAPE, NAMES)
    assert not caplog.messages
    path = tmp_path / "002.json"
    shapes = json.loads(path.read_text())["shapes"]
    shapes[1]["points"] = shapes[0]["points"]
    change(path, shapes=shapes)
    read_key_frames(tmp_path, SHAPE, NAMES)
    assert "90 pixels of liver are drawn over pleural effusion" in caplog.messages[0]


def test_a_frame_that_one_class_has_and_another_has_not(labels, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    as_folders(tmp_path, labels)
    read_key_frames(tmp_path, SHAPE, NAMES)
    assert not caplog.messages
    (tmp_path / "liver" / "10.png").unlink()
    assert not (read_key_frames(tmp_path, SHAPE, NAMES)[10] == 3).any()
    assert "frame 10 has masks of pleural_effusion and none of liver, which is taken not to be there" in caplog.text
