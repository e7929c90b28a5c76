import numpy as np
import pytest
import SimpleITK as sitk

from uscl.data.volume import Volume, read_image, read_label, stem, write_volume
from uscl.errors import InputError

OBLIQUE = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).integers(0, 255, (12, 10, 8)).astype(np.int16)
    return Volume(array, (0.7, 0.9, 2.5), (-30.5, 12.25, 100.0), OBLIQUE)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_written_and_read_back_unchanged(tmp_path, volume, ending):
    path = write_volume(tmp_path / "new" / f"scan{ending}", volume)
    again = read_image(path)
    assert np.array_equal(again.array, volume.array)
    assert again.array.dtype == np.int16
    assert again.same_grid(volume) is None
    np.testing.assert_allclose(again.direction, OBLIQUE, atol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no partial file stays"


def test_axis_order_is_the_files_own_index(tmp_path, volume):
    path = write_volume(tmp_path / "scan.nii.gz", volume)
    image = sitk.ReadImage(str(path))
    assert image.GetSize() == (12, 10, 8)
    assert image[3, 4, 5] == volume.array[3, 4, 5]
    point = image.TransformIndexToPhysicalPoint((3, 4, 5))
    assert read_image(path).to_index(point) == (3, 4, 5)


def test_nothing_is_overwritten_unasked(tmp_path, volume):
    path = write_volume(tmp_path / "scan.nii.gz", volume)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"scan\.nii\.gz: exists already.*--overwrite"):
        write_volume(path, volume.with_array(volume.array * 0 + 1))
    assert path.read_bytes() == before
    write_volume(path, volume.with_array(volume.array + 1), overwrite=True)
    assert np.array_equal(read_image(path).array, volume.array + 1)


@pytest.mark.parametrize("kind", [sitk.sitkVectorUInt8, sitk.sitkComplexFloat32])
def test_colour_is_reported_and_not_taken_for_a_damaged_file(tmp_path, kind):
    image = sitk.Image([6, 7, 8], kind, 3 if kind == sitk.sitkVectorUInt8 else 0)
    sitk.WriteImage(image, str(tmp_path / "colour.nii"))
    path = tmp_path / "colour.nii"
    content = bytearray(path.read_bytes())
    if kind == sitk.sitkVectorUInt8:  # as others write it: the NIfTI type RGB24 instead of a vector
        content[40:56] = np.array([3, 6, 7, 8, 1, 1, 1, 1], "<i2").tobytes()
        content[68:74] = np.array([0, 128, 24], "<i2").tobytes()
        path.write_bytes(content)
    with pytest.raises(InputError, match="3 values per voxel|complex numbers") as caught:
        read_image(path)
    assert "cut short" not in str(caught.value)


def test_unknown_ending(tmp_path, volume):
    with pytest.raises(InputError, match=r"expected a name ending in one of \.nii\.gz"):
        write_volume(tmp_path / "scan.png", volume)


def write_raw(path, array, **geometry):
    """Straight through SimpleITK, so that broken files can be made."""
    image = sitk.GetImageFromArray(np.asarray(array), **geometry)
    sitk.WriteImage(image, str(path))
    return path


def broken(kind: str, folder):
    values = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    path = folder / "scan.nii.gz"
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not a volume")
    elif kind == "2D":
        write_raw(path, values[0])
    elif kind == "4D":
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(values)] * 2), str(path))
    elif kind == "colour":
        write_raw(path, np.repeat(values[..., None], 3, -1), isVector=True)
    elif kind == "one slice":
        write_raw(path, values[:1])
    elif kind == "NaN":
        values[2, 3, 4] = np.nan
        write_raw(path, values)
    elif kind == "all zero":
        write_raw(path, np.zeros((6, 7, 8), np.uint8))
    elif kind == "truncated":
        write_raw(path, values)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "damaged":
        write_raw(path, values)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif kind == "truncated plain":
        path = folder / "scan.nii"
        write_raw(path, values)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "truncated nrrd":
        path = folder / "scan.nrrd"
        write_raw(path, values)
        path.write_bytes(path.read_bytes()[:-200])
    return path


WORDS = {
    "missing": "no such file",
    "empty": "0 bytes",
    "folder": "is a folder",
    "text": "not readable as a volume",
    "2D": "has 2 dimensions",
    "4D": "has 4 dimensions",
    "colour": "has 3 values per voxel",
    "one slice": "a single slice",
    "NaN": "NaN or infinite",
    "all zero": "every voxel is 0",
    "truncated": "damaged or cut short",
    "damaged": "damaged",
    "truncated plain": "cut short",
    "truncated nrrd": "damaged or of another kind",
}


@pytest.mark.parametrize("kind", WORDS)
def test_broken_files_get_one_line_that_names_the_file(tmp_path, kind):
    path = broken(kind, tmp_path)
    with pytest.raises(InputError) as raised:
        read_image(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert WORDS[kind] in message
    assert "\n" not in message


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    values = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(values)]), str(tmp_path / "scan.nii.gz"))
    assert read_image(tmp_path / "scan.nii.gz").shape == (8, 7, 6)


def test_labels_are_whole_numbers(tmp_path):
    write_raw(tmp_path / "float.nii.gz", np.array([[[0.0, 1.0], [2.0, 0.0]]] * 2, np.float32))
    label = read_label(tmp_path / "float.nii.gz")
    assert label.array.dtype == np.int32
    assert sorted(set(label.array.ravel().tolist())) == [0, 1, 2]
    for values in ([0.5, 1.0], [-1.0, 1.0]):
        write_raw(tmp_path / "wrong.nii.gz", np.array([[values, values]] * 2, np.float32))
        with pytest.raises(InputError, match="whole numbers from 0 upwards"):
            read_label(tmp_path / "wrong.nii.gz")


def test_grids_are_compared_by_where_their_corners_lie(volume):
    moved = Volume(volume.array, volume.spacing, (-30.5, 12.25, 100.001), volume.direction)
    assert moved.same_grid(volume) is None
    for other in (
        Volume(volume.array, (0.7, 0.9, 2.6), volume.origin, volume.direction),
        Volume(volume.array, volume.spacing, (-30.0, 12.25, 100.0), volume.direction),
        Volume(volume.array, volume.spacing, volume.origin, np.eye(3)),
    ):
        assert "against" in other.same_grid(volume)
    assert "size" in Volume(volume.array[1:], volume.spacing).same_grid(volume)


def test_stem():
    assert stem("a/b.c.nii.gz") == "b.c"
    assert stem("scan.mha") == "scan"
    assert stem("plain") == "plain"
