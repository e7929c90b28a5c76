"""The 2D models against arrays of the original implementations, loaded the way a user loads published files."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import save_file
from small_sam import SmallSam, SmallSamMed2D

from uscl.comparators import PUBLISHED, MobileSam, Sam, SamMed2D, TinySam
from uscl.comparators.methods import load_model
from uscl.comparators.pickles import read_pickled_tensors
from uscl.errors import InputError, WeightsNotFoundError

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def small(load_parity):
    return load_parity("comparators/sammed2d_small.npz")


@pytest.fixture(scope="module")
def state(small):
    return {key.removeprefix("sam.sd."): value for key, value in small.items() if key.startswith("sam.sd.")}


class Malicious:
    def __reduce__(self):
        return os.system, ("touch malicious-was-here",)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def check_clicks(model, embedding, points, labels, wanted):
    """Three clicks, one after the other, the best mask fed back."""
    mask = None
    for step in range(3):
        low, iou = model.decode(embedding, points[:, : step + 1], labels[:, : step + 1], mask)
        wanted(step, low, iou)
        mask = low[:, int(iou.argmax())][:, None]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_sam_med2d_out_of_its_pickle(small, state, tmp_path, legacy):
    """The published file holds an optimiser object, which safe reading refuses; nothing of it may be run."""
    layer = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    file = tmp_path / "b.pth"
    content = {"model": state, "optimizer": optimiser, "epoch": 3, "more": {1, 2}, "x": Malicious()}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    model, report = load_model(SmallSamMed2D(weights=str(file)))
    assert not (tmp_path / "malicious-was-here").exists()
    assert not report.missing
    assert not report.unexpected
    embedding = model.encode(small["sam.img"])
    close(embedding, small["sam.emb"])

    def wanted(step, low, iou):
        close(low, small[f"sam.step{step}.low_res_all"])
        close(iou, small[f"sam.step{step}.iou"])

    check_clicks(model, embedding, small["sam.pts"], small["sam.lab"], wanted)
    layer = model.sam.vision_encoder.layers[0].mlp.adapter
    layer.load_state_dict(
        {key.removeprefix("adapter.sd."): value for key, value in small.items() if "adapter.sd." in key}
    )
    close(layer(small["adapter.x"]).detach(), small["adapter.y"])


@pytest.mark.parametrize("form", ["published", "transformers"])
def test_sam(small, state, tmp_path, form):
    vanilla = {key: value for key, value in state.items() if ".Adapter." not in key}
    file = tmp_path / "sam.pth"
    torch.save(vanilla, file)
    model, _ = load_model(SmallSam(weights=str(file)))
    if form == "transformers":
        file = tmp_path / "sam.safetensors"
        tensors = {key: value.clone() for key, value in model.sam.state_dict().items()}
        del tensors["prompt_encoder.shared_embedding.positional_embedding"]  # the library writes tied tensors once
        save_file(tensors, file)
        model, report = load_model(SmallSam(weights=str(file)))
        assert not report.unexpected
    close(model.encode(small["sam.img"]), small["sam.emb_adapters_off"])


@pytest.mark.slow
@pytest.mark.parametrize("method", [MobileSam, TinySam])
def test_mobile_sam_at_full_size(load_parity, tmp_path, method):
    arrays = load_parity("comparators/mobilesam_seeded.npz")
    stream, tensors = np.random.RandomState(1234), {}
    for key, text in sorted(zip(arrays["keys"].tolist(), arrays["shapes"].tolist(), strict=True)):
        shape = tuple(int(size) for size in text.strip("()").split(",") if size.strip())
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(0)
            continue
        if key.endswith("running_var"):
            values = stream.uniform(0.5, 1.5, shape)
        elif len(shape) >= 2:
            values = 0.05 * stream.standard_normal(shape)
        elif key.endswith(".weight"):
            values = 1 + 0.1 * stream.standard_normal(shape)
        else:
            values = 0.1 * stream.standard_normal(shape)
        tensors[key] = torch.from_numpy(values.astype(np.float32))
    file = tmp_path / "mobile_sam.pt"
    torch.save(tensors, file)
    model, report = load_model(method(weights=str(file)))
    assert not report.unexpected
    image = np.random.RandomState(99).standard_normal((1, 3, 1024, 1024)).astype(np.float32)
    embedding = model.encode(torch.from_numpy(image))
    close(embedding[:, ::8], arrays["emb.every8th_channel"])

    def wanted(step, low, iou):
        close(low[..., ::4, ::4], arrays[f"step{step}.low_res_4x_strided"])
        close(iou, arrays[f"step{step}.iou"])

    check_clicks(model, embedding, arrays["pts"], arrays["lab"], wanted)


def test_a_partly_random_model_is_refused(state, tmp_path):
    file = tmp_path / "sam.pth"
    torch.save({key: value for key, value in state.items() if "iou_token" not in key}, file)
    with pytest.raises(InputError, match=r"1 missing: sam\.mask_decoder\.iou_token\.weight"):
        load_model(SmallSam(weights=str(file)))
    # Without its adapters SAM-Med2D would be a plain SAM under a wrong name.
    torch.save({key: value for key, value in state.items() if ".Adapter." not in key}, file)
    with pytest.raises(InputError, match="missing"):
        load_model(SmallSamMed2D(weights=str(file)))
    torch.save({"something": torch.ones(2)}, file)
    with pytest.raises(InputError, match="expected a checkpoint of PromptedSam"):
        load_model(SmallSam(weights=str(file)))


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 broken"])
def test_broken_pickles_are_named(tmp_path, content):
    file = tmp_path / "b.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"b\.pth"):
        load_model(SmallSamMed2D(weights=str(file)))


def test_a_pickle_without_tensors(tmp_path):
    torch.save({"model": {"x": 3}}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_pickled_tensors(tmp_path / "b.pth")


@pytest.mark.parametrize("method", [Sam(), Sam(size="vit_h"), MobileSam(), TinySam(), SamMed2D()])
def test_weights_that_are_not_there_are_named_and_not_fetched(monkeypatch, tmp_path, method):
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsNotFoundError) as error:
        load_model(method)
    assert error.value.reference == method.published.reference
    placed = tmp_path / method.published.reference.removeprefix("hf://")
    assert str(placed) in str(error.value)
    with pytest.raises(WeightsNotFoundError, match="no such checkpoint"):
        load_model(MobileSam(weights="absent.pt"))


def test_published_hashes_have_the_form_of_hashes():
    for name, published in PUBLISHED.items():
        assert published.sha256 is None or len(bytes.fromhex(published.sha256)) == 32, name
        assert (published.sha256 is None) == (published.size is None), name
