"""SegGPT's network against arrays of the original, loaded the way a user loads the published files."""

import os
import sys

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from small_seggpt import FIXTURE, SMALL, random_weights

from uscl.errors import InputError, WeightsNotFoundError
from uscl.pseudo_label.seggpt_network import WEIGHTS, SegGptSize, load_seggpt

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def parity(load_parity):
    return load_parity("comparators/seggpt_small.npz")


@pytest.fixture(scope="module")
def state(parity):
    return {key.removeprefix("sd."): value for key, value in parity.items() if key.startswith("sd.")}


@pytest.fixture(scope="module", params=["authors", "library"])
def network(state, tmp_path_factory, request):
    """Out of the authors' wrapper, and out of the library's layout."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"model": state}, folder / "a.pth")
    network, report = load_seggpt(str(folder / "a.pth"), FIXTURE)
    if request.param == "library":
        library = network.seggpt.state_dict()
        save_file({key: value.contiguous() for key, value in library.items()}, folder / "b.safetensors")
        network, report = load_seggpt(str(folder / "b.safetensors"), FIXTURE)
    assert len(report.matched) == len(state) == 354
    assert not report.missing
    assert not report.unexpected
    assert len(bytes.fromhex(report.sha256)) == 32
    return network


def library_call(network, run, prompts, **options):
    network.prompts = prompts
    return network.seggpt(
        pixel_values=run["q"].expand_as(run["img"]), prompt_pixel_values=run["img"], prompt_masks=run["pm"], **options
    ).pred_masks


@pytest.mark.parametrize("name", ["run_1", "run_2", "run_3", "run_sem"])
@torch.inference_mode()
def test_parity_for_one_two_and_three_prompts(parity, network, name):
    run = {part: parity[f"{name}.{part}"] for part in ("img", "q", "pm", "y")}
    prompt_type = "semantic" if name == "run_sem" else "instance"
    found = network(run["img"][None], run["pm"][None], run["q"], prompt_type)
    torch.testing.assert_close(found, run["y"][:1, :, 64:], rtol=0, atol=TOLERANCE)
    # Every prompt's row, and the half that repeats the prompt.
    every = library_call(network, run, len(run["img"]), embedding_type=prompt_type)
    torch.testing.assert_close(every, run["y"], rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_the_librarys_own_ensemble_is_another_one(parity, network):
    """Why hooks do it. Should this fail after an update the library was mended, and the hooks may go."""
    run = {part: parity[f"run_2.{part}"] for part in ("img", "q", "pm", "y")}
    own = library_call(network, run, 1, feature_ensemble=True)
    assert (own - run["y"]).abs().max() > 1e-2


@torch.inference_mode()
def test_queries_in_a_batch_do_not_see_each_other(parity, network):
    images, masks = parity["run_2.img"], parity["run_2.pm"]
    queries = torch.cat([parity["run_2.q"], parity["run_3.q"].flip(-1), parity["run_1.img"]])
    prompts = (
        torch.stack([images, images.flip(0), images.flip(-1)]),
        torch.stack([masks, masks.flip(0), masks.flip(-1)]),
    )
    together = network(*prompts, queries)
    for row in range(3):
        alone = network(*(part[row : row + 1] for part in prompts), queries[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=TOLERANCE)
    assert (together[0] - together[1]).abs().max() > 1e-3


class Malicious:
    def __reduce__(self):
        return os.system, ("touch malicious-was-here",)


def test_weights_that_are_not_the_whole_network_are_refused(state, tmp_path):
    whole = load_file(random_weights(tmp_path / "whole.safetensors"))
    file = tmp_path / "w.safetensors"

    def refused(tensors, message, size=SMALL):
        save_file(tensors, file)
        with pytest.raises(InputError, match=message):
            load_seggpt(str(file), size)

    key = "model.encoder.layers.3.attention.rel_pos_h"
    refused({k: v for k, v in whole.items() if k != key}, rf"1 missing: {key}.*partly random")
    refused({**whole, "model.encoder.layers.4.mlp.lin1.bias": torch.ones(64)}, "1 unexpected.*another network")
    refused({**whole, key: torch.ones(3, 8)}, r"another shape.*found \[3, 8\], expected \[15, 8\]")
    refused({**whole, key: torch.full((15, 8), torch.nan)}, "not finite")
    refused({"image_encoder.x": torch.ones(2)}, "expected a checkpoint of SegGpt")
    refused(whole, "another shape, first decoder.decoder_embed.weight", FIXTURE)
    torch.save({"model": state, "more": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="cannot be|can be read safely"):
        load_seggpt(str(tmp_path / "bad.pth"), FIXTURE)
    assert not (tmp_path / "malicious-was-here").exists()


def test_weights_that_are_not_there_are_named_and_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsNotFoundError) as error:
        load_seggpt(None, SMALL)
    assert error.value.reference == WEIGHTS
    assert str(tmp_path / "BAAI/seggpt-vit-large/model.safetensors") in str(error.value)
    with pytest.raises(WeightsNotFoundError, match=r"absent\.pth: no such"):
        load_seggpt("absent.pth", SMALL)
    (tmp_path / "BAAI/seggpt-vit-large").mkdir(parents=True)
    random_weights(tmp_path / "BAAI/seggpt-vit-large/model.safetensors")
    assert load_seggpt(None, SMALL)[1].source.endswith("model.safetensors")


@pytest.mark.slow
def test_the_defaults_are_the_published_size():
    """370,723,203 values in 354 tensors: with its header that is the published file to the byte."""
    from uscl.pseudo_label.seggpt_network import _build

    with torch.device("meta"):
        state = _build(SegGptSize()).state_dict()
    assert len(state) == 354
    assert sum(value.numel() for value in state.values()) == 370_723_203


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    file = random_weights(tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install uscl\[pseudo-label\]"):
        load_seggpt(str(file), SMALL)
