import json

import pytest
import torch

from uscl.backbone import load_trunk
from uscl.errors import InputError
from uscl.tuning import Adapter, LoRA, load_adapter, lora_state_dict, save_adapter


def make_adapter(seed: int = 0) -> tuple[Adapter, torch.nn.Module]:
    trunk = load_trunk("tiny", None)
    lora = LoRA(rank=4)
    lora.apply(trunk.model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trunk.model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_()
    adapter = Adapter(
        stage="lora_seg",
        method="test",
        backbone=trunk.model.config,
        trunk_weights=trunk.weights,
        trunk_fingerprint=trunk.fingerprint,
        tuning={"encoder": lora, "decoder": lora},
        preprocessing={"spacing": [1.5, 1.5, 1.5]},
        tensors=lora_state_dict(trunk.model),
        version="0",
    )
    return adapter, trunk.model


@torch.no_grad()
def test_save_load_apply_gives_the_same_function(tmp_path):
    adapter, model = make_adapter()
    save_adapter(tmp_path / "runs" / "adapter.safetensors", adapter)
    again = load_adapter(tmp_path / "runs" / "adapter.safetensors")
    assert again.tuning == adapter.tuning
    assert again.backbone == adapter.backbone
    assert again.preprocessing == adapter.preprocessing
    trunk = load_trunk("tiny", None)
    image = torch.randn(1, 1, 64, 64, 64)
    untouched = trunk.model.encode_image(image)
    again.apply(trunk)
    assert torch.equal(trunk.model.encode_image(image), model.eval().encode_image(image))
    assert not torch.equal(trunk.model.encode_image(image), untouched)
    assert not any(parameter.requires_grad for parameter in trunk.model.parameters())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["adapter.safetensors"], "no partial file stays"


def test_another_trunk_is_refused(tmp_path):
    adapter, _ = make_adapter()
    weights = {name: value + 0.01 for name, value in load_trunk("tiny", None).model.state_dict().items()}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(InputError, match="trained on a trunk with random weights.*other.pth"):
        adapter.apply(load_trunk("tiny", tmp_path / "other.pth"))


def test_files_that_are_no_adapters(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="no such adapter file"):
        load_adapter(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(InputError, match="not a readable adapter file"):
        load_adapter(tmp_path / "text.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="expected 'uscl-adapter-3'; whole checkpoints go to --weights"):
        load_adapter(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("change", ["method", "field", "key", "part", "tensor", "shape", "json"])
def test_descriptions_of_a_later_version_are_named(tmp_path, change):
    """Neither an unknown method nor a missing tensor may come out as a traceback, or as a model half loaded."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "adapter.safetensors"
    save_adapter(path, make_adapter()[0])
    with safe_open(path, "pt") as stream:
        names = stream.keys()
        metadata, tensors = stream.metadata(), {name: stream.get_tensor(name) for name in names}
    described = json.loads(metadata["adapter"])
    first = min(tensors)
    if change == "method":
        described["tuning"]["encoder"]["method"] = "DoRA"
    elif change == "field":
        described["tuning"]["encoder"]["magnitude"] = True
    elif change == "key":
        described["colour"] = "blue"
    elif change == "part":
        described["tuning"]["head"] = described["tuning"]["decoder"]
    elif change == "tensor":
        del tensors[first]
    elif change == "shape":
        tensors[first] = torch.zeros(1, 2)
    metadata["adapter"] = "{" if change == "json" else json.dumps(described)
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match="cannot be used|lacks 1 tensors|do not fit|tuning method DoRA, which"):
        load_adapter(path).apply(load_trunk("tiny", None))
