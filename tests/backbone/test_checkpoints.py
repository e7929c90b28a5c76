import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uscl.backbone import build_sam_med3d, load_checkpoint, load_trunk
from uscl.errors import InputError


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {key: torch.randn_like(value) for key, value in build_sam_med3d("tiny").state_dict().items()}


def published_wrapper(weights):
    return {"model_state_dict": weights, "epoch": 3, "best_dice": 0.8, "args": argparse.Namespace(lr=8e-4)}


FORMS = {
    "published.pth": published_wrapper,
    "bare.pth": lambda weights: weights,
    "lightning.ckpt": lambda weights: {
        "state_dict": {f"net.{key}": value for key, value in weights.items()},
        "epoch": 1,
    },
    "data_parallel.pt": lambda weights: {f"module.{key}": value for key, value in weights.items()},
    "half.safetensors": lambda weights: {key: value.half() for key, value in weights.items()},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_completely(tmp_path, weights, name):
    content = FORMS[name](weights)
    (save_file if name.endswith("safetensors") else torch.save)(content, tmp_path / name)
    model = build_sam_med3d("tiny")
    report = load_checkpoint(model, tmp_path / name).require_complete()
    assert set(report.matched) == set(weights)
    assert report.missing == report.unexpected == ()
    for key, value in model.state_dict().items():
        wanted = weights[key].half().float() if name.startswith("half") else weights[key]
        assert torch.equal(value, wanted), key


def test_the_report_names_missing_and_unexpected_keys(tmp_path, weights):
    del weights["prompt_encoder.no_mask_embed.weight"]
    torch.save({**weights, "ema.decay": torch.ones(1)}, tmp_path / "partial.pth")
    report = load_checkpoint(build_sam_med3d("tiny"), tmp_path / "partial.pth")
    assert report.missing == ("prompt_encoder.no_mask_embed.weight",)
    assert report.unexpected == ("ema.decay",)
    with pytest.raises(InputError, match=r"1 missing: prompt_encoder.no_mask_embed.weight"):
        report.require_complete()


def test_the_encoder_of_a_student_alone_is_reported(tmp_path):
    torch.save({"model_state_dict": build_sam_med3d("tiny").image_encoder.state_dict()}, tmp_path / "student.pth")
    with pytest.raises(InputError, match=r"student.pth: holds an image encoder alone"):
        load_checkpoint(build_sam_med3d("tiny"), tmp_path / "student.pth")


def test_no_key_in_common_is_an_error_and_changes_nothing(tmp_path):
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "other.pth")
    model = build_sam_med3d("tiny")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"other.pth: none of its 1 tensors"):
        load_checkpoint(model, tmp_path / "other.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_shape_is_an_error_that_names_the_fitting_variant(tmp_path, weights):
    torch.save(weights, tmp_path / "tiny.pth")
    model = build_sam_med3d("mini")
    before = model.state_dict()["image_encoder.pos_embed"].clone()
    with pytest.raises(InputError, match=r"found \[1, 4, 4, 4, 48\].*expected \[1, 8, 8, 8, 192\].*variant 'tiny'"):
        load_checkpoint(model, tmp_path / "tiny.pth")
    assert torch.equal(model.state_dict()["image_encoder.pos_embed"], before)


def test_values_that_are_not_finite_are_an_error(tmp_path, weights):
    weights["image_encoder.pos_embed"][0, 0, 0, 0, 0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=r"not finite in image_encoder.pos_embed"):
        load_checkpoint(build_sam_med3d("tiny"), tmp_path / "nan.pth")


class _Malicious:
    def __reduce__(self):
        return (Path("pwned").write_text, ("executed",))


@pytest.mark.parametrize("content", ["missing", "empty", "truncated", "text", "malicious"])
def test_unreadable_files_are_one_clear_error(tmp_path, weights, content):
    file = tmp_path / "broken.pth"
    if content == "empty":
        file.touch()
    elif content == "truncated":
        torch.save(weights, file)
        file.write_bytes(file.read_bytes()[:5000])
    elif content == "text":
        file.write_text("<html>404</html>")
    elif content == "malicious":
        torch.save({"model_state_dict": weights, "x": _Malicious()}, file)
    with pytest.raises(InputError, match=r"broken\.pth: ") as raised:
        load_checkpoint(build_sam_med3d("tiny"), file)
    assert "\n" not in str(raised.value)
    assert not Path("pwned").exists()


def test_truncated_safetensors(tmp_path, weights):
    file = tmp_path / "broken.safetensors"
    save_file(weights, file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"broken\.safetensors: not a readable safetensors file"):
        load_checkpoint(build_sam_med3d("tiny"), file)


def test_hub_reference_says_what_to_fetch_and_where_to_put_it(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path / "weights"))
    reference = "hf://owner/repo/sub/file.pth"
    placed = tmp_path / "weights/owner/repo/sub/file.pth"
    with pytest.raises(InputError) as raised:
        load_checkpoint(build_sam_med3d("tiny"), reference)
    assert "https://huggingface.co/owner/repo/resolve/main/sub/file.pth" in str(raised.value)
    assert str(placed) in str(raised.value)
    placed.parent.mkdir(parents=True)
    torch.save(weights, placed)
    assert load_checkpoint(build_sam_med3d("tiny"), reference).require_complete().source == reference


def test_malformed_hub_reference():
    with pytest.raises(InputError, match="expected hf://owner/repo/file"):
        load_checkpoint(build_sam_med3d("tiny"), "hf://owner/file.pth")


def test_random_trunk_is_always_the_same_and_says_so():
    torch.manual_seed(1)
    first = load_trunk("tiny", None)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    second = load_trunk("tiny", None)
    assert first.weights == "random weights"
    assert first.fingerprint == second.fingerprint
    assert torch.equal(drawn, torch.rand(1)), "building the trunk must not disturb the run's random numbers"


def test_fingerprint_depends_on_weights_not_on_the_file_format(tmp_path, weights):
    torch.save(published_wrapper(weights), tmp_path / "a.pth")
    save_file(weights, tmp_path / "b.safetensors")
    first, second = load_trunk("tiny", tmp_path / "a.pth"), load_trunk("tiny", tmp_path / "b.safetensors")
    assert first.fingerprint == second.fingerprint
    assert first.weights.startswith("a.pth sha256:")
    weights["image_encoder.pos_embed"] += 1e-6
    save_file(weights, tmp_path / "c.safetensors")
    assert load_trunk("tiny", tmp_path / "c.safetensors").fingerprint != first.fingerprint
