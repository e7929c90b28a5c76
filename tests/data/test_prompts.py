import numpy as np
import pytest

from uscl.data.evaluation_patches import place_patch
from uscl.data.patches import Preprocessing
from uscl.data.prompts import Prompt, mask_names, parse_points, read_prompts
from uscl.data.volume import Volume
from uscl.errors import InputError


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).random((60, 50, 40)).astype(np.float32)
    return Volume(array, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), np.diag([-1.0, -1.0, 1.0]))


def test_points_of_the_command_line(volume):
    points = parse_points(" 1,2,3,1; 4,5,6,0 ;7,8,9", volume)
    assert points == [((1, 2, 3), True), ((4, 5, 6), False), ((7, 8, 9), True)]
    physical = parse_points("9.0,16.0,39.0,1", volume, "physical")
    assert physical == [((1, 2, 3), True)]


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,2", "1,2,x,1", "1.5,2,3,1", "1,2,3,1,1"])
def test_malformed_points(volume, text):
    with pytest.raises(InputError, match="point"):
        parse_points(text, volume)


def test_table_of_prompts(tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("image,i,j,k,label,object\na.nii,1,2,3,1,liver\nb.nii,4,5,6,1,\na.nii,7,8,9,0,liver\n")
    first, second = read_prompts(table)
    assert first.image == tmp_path / "a.nii"
    assert first.object_name == "liver"
    assert first.points == (((1, 2, 3), True), ((7, 8, 9), False))
    assert second.object_name == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,i,j,k,label\na.nii,1,2,x,1\n", "line 2"),
        ("image,i,j,k,label\n", "holds no prompt"),
        ("a,b\n1,2\n", "line 2"),
        ("image,i,j,k,label\na.nii,1,2,3,5\n", "label 0 or 1"),
    ],
)
def test_malformed_tables(tmp_path, content, message):
    (tmp_path / "prompts.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "prompts.csv")
    with pytest.raises(InputError, match="no such table"):
        read_prompts(tmp_path / "nothing.csv")


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "prompts.csv").write_bytes("image,i,j,k,label,object\na.nii,1,2,3,1,Gefäß\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"prompts\.csv: not readable as CSV in UTF-8"):
        read_prompts(tmp_path / "prompts.csv")


def test_values_without_a_column_are_not_lost(tmp_path):
    (tmp_path / "prompts.csv").write_text("image,i,j,k,label\na.nii,1,2,3,1,,\na.nii,1,2,3,1,liver\n")
    with pytest.raises(InputError, match="line 3: has more values than there are columns"):
        read_prompts(tmp_path / "prompts.csv")


def test_every_mask_has_a_name_of_its_own(tmp_path):
    (tmp_path / "1.2.840.5").mkdir()
    images = ["p1/ct.nii.gz", "p2/ct.nii.gz", "b/clip.mp4", "b/clip.avi", "lone.nii", "1.2.840.5"]
    prompts = [Prompt(tmp_path / image, "liver", ()) for image in images]
    prompts += [Prompt(tmp_path / "lone.nii", name, ()) for name in ("", "left/right kidney", "left right kidney")]
    assert mask_names(prompts) == [
        "p1_ct__liver",
        "p2_ct__liver",
        "clip.mp4__liver",
        "clip.avi__liver",
        "lone__liver",
        "1.2.840.5__liver",
        "lone",
        "lone__left_right_kidney",
        "lone__left_right_kidney_2",
    ]


SMALL = Preprocessing(spacing=(1.0, 1.0, 1.0), patch_size=32)


def test_the_patch_is_centred_on_the_foreground_clicks(volume):
    patch = place_patch(volume, [((30, 25, 20), True)], SMALL)
    ((index, foreground),) = patch.points
    assert foreground
    assert max(abs(i - 16) for i in index) <= 1
    two = place_patch(volume, [((20, 25, 20), True), ((40, 25, 20), True), ((0, 0, 0), False)], SMALL)
    assert len(two.points) == 2, "a background click beyond the patch is left out"
    xs = [index[0] for index, _ in two.points]
    assert sorted(xs)[0] + sorted(xs)[1] in (31, 32, 33)


def test_clicks_that_cannot_be_used(volume):
    with pytest.raises(InputError, match=r"point \(60, 0, 0\) lies outside the volume of \(60, 50, 40\)"):
        place_patch(volume, [((60, 0, 0), True)], SMALL)
    with pytest.raises(InputError, match=r"point \(-1, 0, 0\) lies outside"):
        place_patch(volume, [((-1, 0, 0), True)], SMALL)
    with pytest.raises(InputError, match="no foreground point"):
        place_patch(volume, [((1, 0, 0), False)], SMALL)
    with pytest.raises(InputError, match="segment the object in parts"):
        place_patch(volume, [((0, 0, 0), True), ((59, 49, 39), True)], SMALL)


def test_clicks_mark_the_same_voxel_in_the_patch(volume):
    """The voxel that was clicked is the one the model is told of."""
    for index in ((5, 40, 3), (59, 0, 39), (31, 17, 22)):
        array = np.zeros(volume.shape, np.float32)
        array[index] = 100.0
        preprocessing = Preprocessing(spacing=volume.spacing, patch_size=32)
        patch = place_patch(volume.with_array(array), [(index, True)], preprocessing)
        ((placed, _),) = patch.points
        assert patch.image[0, 0][placed] == patch.image.max()
