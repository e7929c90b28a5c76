import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from uscl.data import PatchSampling, Preprocessing, VolumeDataModule, read_image, read_label, write_volume
from uscl.data.augmentations import Augmentation
from uscl.data.datasets import Splitting
from uscl.data.training_patches import PatchNumbers
from uscl.errors import InputError

SMALL = Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64)
ANY_SIZE = PatchSampling(minimum_foreground=1)


def module(root, **options) -> VolumeDataModule:
    options = {"preprocessing": SMALL, "sampling": ANY_SIZE, **options}
    return VolumeDataModule(str(root), **options)


@pytest.fixture
def fitted(study) -> VolumeDataModule:
    data = module(study, patches_per_epoch=8)
    data.setup("fit")
    return data


def test_batches(fitted):
    batch = next(iter(fitted.train_dataloader()))
    assert batch.image.shape == batch.target.shape == (2, 1, 64, 64, 64)
    assert batch.image.dtype == batch.target.dtype == torch.float32
    assert set(batch.target.unique().tolist()) == {0.0, 1.0}
    assert all(name in fitted.data_set.label_names.values() for name in batch.class_name)


def test_the_stream_is_numbered_and_each_number_is_one_patch(fitted, study):
    patches = fitted.train_dataloader().dataset
    other = module(study)
    other.setup("fit")
    again = other.train_dataloader().dataset
    for number in (5, 0, 123456):
        first, second = patches[number], again[number]
        assert torch.equal(first.image, second.image)
        assert first.case == second.case
    assert not torch.equal(patches[0].image, patches[1].image)
    reseeded = module(study, seed=1)
    reseeded.setup("fit")
    assert not torch.equal(reseeded.train_dataloader().dataset[0].image, patches[0].image)


def test_workers_change_nothing(study):
    batches = []
    for workers in (0, 2):
        data = module(study, patches_per_epoch=4, num_workers=workers)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.image, two.image)
        assert one.class_name == two.class_name


def test_augmentation_changes_training_patches_alone(study):
    plain, changed = module(study), module(study, augmentation=Augmentation(1.0, gain=0.3, rotation=10.0))
    for data in (plain, changed):
        data.setup("fit")
    first, second = (data.train_dataloader().dataset[3] for data in (plain, changed))
    assert first.case == second.case
    assert not torch.equal(first.image, second.image)
    held = [next(iter(data.val_dataloader())) for data in (plain, changed)]
    assert torch.equal(held[0].image, held[1].image)


def test_patch_numbers_of_epochs_and_ranks():
    epochs = []
    for epoch in range(3):
        ranks = []
        for rank in range(2):
            sampler = PatchNumbers(10, rank, 2)
            sampler.set_epoch(epoch)
            ranks.append(list(sampler))
            assert len(ranks[-1]) == len(sampler) == 5
        assert not set(ranks[0]) & set(ranks[1])
        epochs.append(sorted(ranks[0] + ranks[1]))
    assert sum(epochs, []) == list(range(30))


def test_classes_are_drawn_evenly(study):
    data = module(study)
    data.setup("fit")
    patches = data.train_dataloader().dataset
    drawn = [patches[number].class_name for number in range(60)]
    present = {name for _, name in data._objects["train"]}
    assert len(present) >= 3
    assert min(drawn.count(name) for name in present) >= 60 / len(present) / 3


def test_chosen_classes_only(study):
    data = module(study, classes=["liver"], patches_per_epoch=4)
    data.setup("fit")
    assert {data.train_dataloader().dataset[n].class_name for n in range(5)} == {"liver"}
    with pytest.raises(InputError, match=r"data\.classes: lung not among the classes"):
        module(study, classes=["lung"]).setup("fit")


@pytest.mark.parametrize("centre", ["label_box", "foreground"])
def test_the_object_is_in_the_patch(study, centre):
    data = module(study, sampling=PatchSampling(centre=centre, minimum_foreground=20, jitter=3))
    data.setup("fit")
    patches = data.train_dataloader().dataset
    assert all(patches[number].target.sum() >= 20 for number in range(10))


def test_several_objects_of_a_small_patch(study):
    sampling = PatchSampling("foreground", minimum_foreground=20)
    one, many = (module(study, sampling=replace(sampling, size=32, objects=count)) for count in (1, 4))
    for data in (one, many):
        data.setup("fit")
    single, several = (data.train_dataloader().dataset for data in (one, many))
    shown = []
    for number in range(12):
        patch = several[number]
        assert patch.image.shape == (1, 32, 32, 32)
        assert patch.target.shape == (4, 32, 32, 32)
        assert patch.target.flatten(1).sum(1).min() >= 20
        assert torch.equal(patch.image, single[number].image), "the objects asked for do not move the patch"
        assert torch.equal(patch.target[0], single[number].target[0])
        shown.append(len(patch.target.flatten(1).unique(dim=0)))
    assert max(shown) > 1
    assert next(iter(many.val_dataloader())).image.shape[-1] == 64, "validation looks at whole patches"
    image = single[0].image
    inside = image[image > image.min()]
    assert abs(inside.mean()) < 0.5, "normalised by itself"


def test_labels_are_moved_with_the_image_by_augmentation(study):
    """Several objects come from one moved label map: each is where it is when it is cut alone."""
    sampling = PatchSampling("foreground", minimum_foreground=20, flip_probability=0.0, objects=3)
    turned = module(study, sampling=sampling, augmentation=Augmentation(1.0, rotation=30.0))
    still = module(study, sampling=sampling)
    for data in (turned, still):
        data.setup("fit")
    moved, plain = (data.train_dataloader().dataset[2] for data in (turned, still))
    assert set(moved.target.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(moved.target[0], plain.target[0])
    volumes = [patch.target[0].sum() for patch in (moved, plain)]
    assert 0.5 < volumes[0] / volumes[1] < 2


def test_contrastive_patches_keep_their_size(study):
    with pytest.raises(InputError, match=r"sampling\.objects and sampling\.size are for training on labels"):
        PatchSampling(centre="volume", size=32)
    with pytest.raises(InputError, match=r"sampling\.objects must be at least 1, found 0"):
        PatchSampling(objects=0)
    nothing = module(study, sampling=PatchSampling(size=0))
    nothing.setup("fit")
    with pytest.raises(InputError, match="patch_size at least 16, found"):
        nothing.train_dataloader()


def test_volume_patches_look_at_no_label(study, tmp_path):
    root = tmp_path / "unlabelled"
    shutil.copytree(study / "imagesTr", root / "imagesTr")
    data = module(root, sampling=PatchSampling(centre="volume"), split=Splitting(0.3, 0.0))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch._fields == ("image", "case")
    assert next(iter(data.val_dataloader())).image.shape == (2, 1, 64, 64, 64)


def test_an_object_too_small_is_passed_over_and_none_at_all_is_an_error(study):
    data = module(study, sampling=PatchSampling(minimum_foreground=10**6))
    data.setup("fit")
    with pytest.raises(InputError, match=r"in 50 draws no object had 1000000 voxels"):
        data.train_dataloader().dataset[0]


def test_flips_move_image_and_target_together(study):
    still = module(study, sampling=PatchSampling(flip_probability=0.0, minimum_foreground=1))
    flipped = module(study, sampling=PatchSampling(flip_probability=1.0, minimum_foreground=1))
    for data in (still, flipped):
        data.setup("fit")
    one, two = (data.train_dataloader().dataset[3] for data in (still, flipped))
    assert torch.equal(one.image.flip(1, 2, 3), two.image)
    assert torch.equal(one.target.flip(1, 2, 3), two.target)


def test_objects_for_testing(study):
    data = module(study)
    data.setup("test")
    loader = data.test_dataloader()
    labels = {case.name: read_label(case.label).array for case in data.data_set.in_split("test")}
    wanted = {(name, data.data_set.label_names[i]) for name, array in labels.items() for i in np.unique(array) if i}
    found = set()
    for item in loader:
        found.add((item.case.name, item.class_name))
        assert item.image.shape == (1, 1, 64, 64, 64)
        assert item.target.dtype == torch.bool
        assert item.target.any()
        assert item.truth.mask.shape == labels[item.case.name].shape
        # The way back: the patch's own target, as logits, lands on the reference.
        logits = item.target.float().numpy() - 0.5
        restored = item.grid.restore(logits, item.corner).astype(bool)
        dice = 2 * (restored & item.truth.mask).sum() / (restored.sum() + item.truth.mask.sum())
        # 3 mm voxels cannot hold the thin films of fluid.
        assert dice > (0.4 if item.truth.mask.sum() < 2000 or item.class_name == "seroperitoneum" else 0.8)
    assert found <= wanted
    assert found


def test_prediction_opens_no_label(study, tmp_path):
    """The label folder is gone and nobody notices."""
    root = tmp_path / "images"
    shutil.copytree(study / "imagesTs", root / "imagesTs")
    shutil.copy(study / "prompts.csv", root)
    data = module(root, prompts=str(root / "prompts.csv"))
    data.setup("predict")
    items = list(data.predict_dataloader())
    with (root / "prompts.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(items) == len(rows)
    for item, row in zip(items, rows, strict=True):
        assert item.mask_name.endswith("__" + row["object"].replace(" ", "_"))
        (index, foreground), *_ = item.points
        assert foreground
        assert max(abs(i - 32) for i in index) <= 1, "the patch is centred on the click"


def test_prediction_needs_prompts(study):
    with pytest.raises(InputError, match=r"--data\.prompts"):
        module(study).setup("predict")


def test_splits_share_no_patient(study):
    sides = {}
    for case in module(study).data_set.cases:
        assert sides.setdefault(case.patient, case.split) == case.split
    assert set(sides.values()) == {"train", "val", "test"}


def test_a_single_scan_goes_to_the_side_that_is_asked_for(study, tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        file = min((study / folder).glob("train*.nii.gz"))
        shutil.copy(file, tmp_path / folder)
    shutil.copy(study / "dataset.json", tmp_path)
    with pytest.raises(
        InputError, match=r"test side of 1; --data\.split\.val_fraction 0 --data\.split\.test_fraction 1"
    ):
        module(tmp_path).setup("test")
    everything = module(tmp_path, split=Splitting(0.0, 1.0))
    everything.setup("test")
    assert len(everything.test_dataloader()) > 0
    with pytest.raises(
        InputError, match=r"train side of 1; --data\.split\.val_fraction 0 --data\.split\.test_fraction 0"
    ):
        everything.setup("fit")
    module(tmp_path, split=Splitting(0.0, 0.0)).setup("fit")


@pytest.mark.parametrize("wrong", ["shape", "moved", "unknown id", "no foreground", "no label"])
def test_labels_that_do_not_fit_are_refused(study, tmp_path, wrong):
    root = tmp_path / "data"
    shutil.copytree(study, root)
    file = sorted((root / "labelsTr").glob("train*.nii.gz"))[0]
    label = read_label(file)
    array = label.array.astype(np.uint8)
    spacing, origin = label.spacing, label.origin
    words = {
        "shape": "does not lie on the grid of",
        "moved": "does not lie on the grid of",
        "unknown id": r"label ids \[9\]",
        "no foreground": "has no foreground",
        "no label": "has no label map",
    }
    if wrong == "shape":
        array = array[:-1]
    elif wrong == "moved":
        origin = (5.0, 0.0, 0.0)
    elif wrong == "unknown id":
        array[0, 0, 0] = 9
    elif wrong == "no foreground":
        array[:] = 0
    file.unlink()
    if wrong != "no label":
        write_volume(file, type(label)(array, spacing, origin))
    with pytest.raises(InputError, match=words[wrong]) as raised:
        module(root).setup("fit")
    assert file.name in str(raised.value)


def test_too_few_patches_for_a_batch(study):
    data = module(study, batch_size=50)
    data.setup("fit")
    with pytest.raises(InputError, match="do not fill one batch of 50"):
        data.train_dataloader()


def test_prepared_cases_are_read_once(study, monkeypatch):
    data = module(study, patches_per_epoch=4)
    data.setup("fit")
    monkeypatch.setattr("uscl.data.cache.read_image", lambda path: pytest.fail(f"{path} was read again"))
    assert len(list(data.train_dataloader())) == 2
    assert read_image is not None
