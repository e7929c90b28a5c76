import copy
import json

import loralib
import pytest
import torch
from parity.recipe import PARITY

from uscl.backbone import SamMed3D, build_sam_med3d
from uscl.errors import InputError
from uscl.tuning import LoRA, lora_state_dict, merge_lora


def run(model: SamMed3D) -> tuple[torch.Tensor, torch.Tensor]:
    size = model.config.image_size
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(2, 1, size, size, size, generator=generator)
    points = torch.randint(0, size, (2, 3, 3), generator=generator), torch.ones(2, 3, dtype=torch.long)
    embedding = model.encode_image(image)
    return embedding, model.decode(embedding, points, torch.zeros(2, 1, *(model.config.mask_size,) * 3))[0]


def with_random_b(lora: LoRA, variant: str = "tiny") -> SamMed3D:
    model = build_sam_med3d(variant)
    lora.apply(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("modules", ["encoder", "decoder", "both"])
@torch.no_grad()
def test_at_the_start_it_equals_the_base_bit_for_bit(modules):
    model = build_sam_med3d("tiny")
    before = run(model)
    LoRA(rank=4, modules=modules).apply(model)
    after = run(model)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_at_the_start_it_equals_the_base_with_gradients_too():
    model = build_sam_med3d("tiny")
    before = run(model)
    LoRA(rank=4).apply(model)
    after = run(model)
    # Both compute with gradients, so torch picks the same attention kernel and not even the last bit may differ.
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_parameter_counts_of_the_full_model_at_rank_32():
    counts = json.loads((PARITY / "sam_med3d/state_dict_vit_b_ori.json").read_text())["lora_trainable_parameters"]
    with torch.device("meta"):
        model = build_sam_med3d("vit_b_ori")
        LoRA(rank=32).apply(model)
    found = {
        part: sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name.startswith(part))
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
    }
    assert found == {
        "image_encoder": counts["encoder_q_v"]["trainable"]["32"],
        "prompt_encoder": 0,
        "mask_decoder": 282_624,
    }


@pytest.mark.parametrize(
    ("modules", "roots"),
    [("encoder", {"image_encoder"}), ("decoder", {"mask_decoder"}), ("both", {"image_encoder", "mask_decoder"})],
)
def test_every_trained_tensor_is_lora_and_gets_a_gradient(modules, roots):
    model = with_random_b(LoRA(rank=4, modules=modules))
    run(model)[1].square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name.split(".")[0] for name in trained} == roots
    assert all(".lora_" in name for name in trained)


def test_every_attention_layer_of_every_block_is_tuned():
    model = with_random_b(LoRA(rank=4))
    tuned = {name.rsplit(".", 1)[0] for name in lora_state_dict(model)}
    blocks = {f"image_encoder.blocks.{i}.attn.qkv" for i in range(4)}
    layers = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    decoder = {
        f"mask_decoder.transformer.layers.{i}.{layer}.{p}_proj" for i in (0, 1) for layer in layers for p in "qv"
    }
    final = {f"mask_decoder.transformer.final_attn_token_to_image.{p}_proj" for p in "qv"}
    assert tuned == blocks | decoder | final


def test_mlp_means_both_layers_of_every_block_and_nothing_else():
    model = with_random_b(LoRA(rank=4, projections=("mlp",)))
    tuned = {name.rsplit(".", 1)[0] for name in lora_state_dict(model)}
    encoder = {f"image_encoder.blocks.{i}.mlp.lin{j}" for i in range(4) for j in (1, 2)}
    assert tuned == encoder | {f"mask_decoder.transformer.layers.{i}.mlp.lin{j}" for i in (0, 1) for j in (1, 2)}


def test_keys_and_values_of_the_base_are_untouched():
    model = build_sam_med3d("tiny")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    LoRA(rank=4).apply(model)
    state = model.state_dict()
    assert {name for name in state if ".lora_" not in name} == set(base)
    assert all(torch.equal(state[name], value) for name, value in base.items())


def test_k_is_not_adapted():
    model = with_random_b(LoRA(rank=4, modules="encoder"))
    layer = model.image_encoder.blocks[0].attn.qkv
    tokens = torch.randn(7, 48)
    change = layer(tokens) - torch.nn.functional.linear(tokens, layer.weight, layer.bias)
    q, k, v = change.chunk(3, dim=-1)
    assert q.abs().max() > 0.01
    assert v.abs().max() > 0.01
    assert k.abs().max() == 0


def test_merged_equals_unmerged_and_merging_twice_is_merging_once():
    model = with_random_b(LoRA(rank=4, alpha=8, projections=("q", "v", "mlp")))
    wanted = run(model)
    merged = merge_lora(copy.deepcopy(model))
    assert not any(isinstance(module, loralib.LoRALayer) for module in merged.modules())
    assert set(merged.state_dict()) == set(build_sam_med3d("tiny").state_dict())
    assert wanted[0].sub(run(build_sam_med3d("tiny"))[0]).abs().max() > 0.1, "the update must be visible"
    for found, value in zip(run(merged), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=2e-5)
    once = {name: value.clone() for name, value in merged.state_dict().items()}
    merge_lora(merged)
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in once.items())


def test_eval_and_train_never_merge():
    model = with_random_b(LoRA(rank=4))
    weight = model.image_encoder.blocks[0].attn.qkv.weight.clone()
    model.eval()
    model.train()
    model.eval()
    assert torch.equal(model.image_encoder.blocks[0].attn.qkv.weight, weight)
    assert not any(module.merged for module in model.modules() if isinstance(module, loralib.LoRALayer))


def test_the_padded_window_tokens_keep_their_fold():
    """LoRA has no bias, so zero tokens still have the bias as key and value: the fold stays exact."""
    from backbone.padded_oracle import padded_encoder

    model = with_random_b(LoRA(rank=4, projections=("q", "v", "mlp"))).double()
    image = torch.randn(1, 1, 64, 64, 64, dtype=torch.float64)
    found, wanted = model.encode_image(image), padded_encoder(model.image_encoder, image)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_nothing_of_it_stays_behind_when_the_model_moves():
    """loralib keeps the indices of what it tunes as a plain tensor, which no device is told of."""
    model = build_sam_med3d("tiny")
    LoRA(rank=2).apply(model)
    names = set(model.state_dict())
    model.to("meta")
    for module in model.modules():
        plain = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not plain
        assert getattr(module, "lora_ind", torch.empty(0, device="meta")).device.type == "meta"
    assert not any("lora_ind" in name for name in names), "adapters keep their tensors"


def test_alpha_is_tied_to_the_rank():
    assert LoRA(rank=8).scale_of("encoder") == LoRA(rank=64).scale_of("decoder") == 1.0
    assert LoRA(rank=8, alpha=16).scale_of("encoder") == 2.0


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError, match=f"LoRA.*{next(iter(wrong))}"):
        LoRA(**wrong)
