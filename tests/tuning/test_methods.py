"""What every tuning method has to do, whatever it is."""

import copy
from dataclasses import fields

import pytest
import torch
from torch.multiprocessing import spawn

from uscl.backbone import SamMed3D, Trunk, build_sam_med3d, load_trunk
from uscl.errors import InputError
from uscl.prompting import TrainingClicks, training_rollout
from uscl.seeds import seeded_draw
from uscl.tuning import (
    Adapter,
    AdaptFormer,
    FullTuning,
    LoRA,
    TuningMethod,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from uscl.tuning.adaptformer import Bottleneck
from uscl.tuning.method import ROOTS

METHODS = {
    "lora": LoRA(rank=4),
    "lora of the encoder": LoRA(rank=4, modules="encoder"),
    "lora of everything": LoRA(rank=4, projections=("q", "k", "v", "out"), decoder_rank=2, dropout=0.1),
    "lora of every linear layer": LoRA(rank=4, projections=("q", "k", "v", "out", "mlp"), dropout=0.1),
    "lora of the MLPs": LoRA(rank=4, projections=("mlp",)),
    "lora of k": LoRA(rank=2, projections=("k",), alpha=4, rank_stabilised=True),
    "adaptformer": AdaptFormer(width=8),
    "adaptformer of the decoder": AdaptFormer(8, modules="decoder", layer_norm=True),
    "full": FullTuning(),
    "full decoder": FullTuning("decoder"),
}
VARIED = ("lora of the encoder", "lora of everything", "lora of the MLPs", "adaptformer of the decoder")
each = pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=[pytest.mark.slow] * (name in VARIED), id=name) for name, method in METHODS.items()],
)


def loss_of(model: SamMed3D, patch: int = 5) -> torch.Tensor:
    """A training step of stage 2, with clicks and masks, on one patch."""
    generator = torch.Generator().manual_seed(patch)
    image = torch.randn(1, 1, 64, 64, 64, generator=generator)
    target = torch.zeros(1, 1, 64, 64, 64)
    target[..., 20:40, 20:40, 20:40] = 1

    def square(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (logits.sigmoid() - wanted).square().mean()

    return training_rollout(model, image, target, square, TrainingClicks(3), seeded_draw("catalogue", 0))[0]


@torch.no_grad()
def outputs(model: SamMed3D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    model.eval()
    embedding = model.encode_image(torch.randn(1, 1, 64, 64, 64, generator=generator))
    points = torch.randint(0, 64, (1, 2, 3), generator=generator), torch.ones(1, 2, dtype=torch.long)
    return model.decode(embedding, points, torch.randn(1, 1, 16, 16, 16, generator=generator))[0]


def stirred(method: TuningMethod) -> SamMed3D:
    """A model tuned for a few large steps, so that everything it owns has moved."""
    torch.manual_seed(0)
    model = load_trunk("tiny", None).model
    method.apply(model)
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model


@each
def test_before_training_nothing_changes_by_a_single_bit(method):
    model = load_trunk("tiny", None).model
    before = outputs(model)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    method.apply(model)
    assert not any(module.training for module in model.modules()), "dropout would act in a model that predicts"
    assert torch.equal(outputs(model), before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in base.items())


@each
def test_what_is_declared_gets_gradients_and_nothing_else(method):
    model = stirred(method)
    declared = {name for name, p in model.named_parameters() if p.requires_grad}
    roots = tuple(root for part in method.parts for root in ROOTS[part])
    assert declared == {n for n, _ in model.named_parameters() if n.startswith(roots) and method.owns(n)} != set()
    model.zero_grad()
    loss_of(model).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == declared
    moved = {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
    }
    assert {root.rstrip(".") for root in roots} - {"prompt_encoder"} <= moved
    base = load_trunk("tiny", None).model.state_dict()
    kept = model.state_dict()
    frozen = [name for name in base if name not in declared]
    assert all(torch.equal(kept[name], base[name]) for name in frozen if name in kept)
    assert sum(trainable_parameters(model).values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapter_of(method: TuningMethod, model: SamMed3D, trunk: Trunk) -> Adapter:
    parts = dict.fromkeys(method.parts, method)
    tensors = {k: v for part in parts for k, v in method.tensors(model, part).items()}
    return Adapter("lora_seg", method.title, model.config, trunk.weights, trunk.fingerprint, parts, None, tensors)


@each
def test_saved_and_loaded_it_computes_the_same(method, tmp_path):
    model, trunk = stirred(method), load_trunk("tiny", None)
    save_adapter(tmp_path / "a.safetensors", adapter_of(method, model, trunk))
    again = load_adapter(tmp_path / "a.safetensors")
    assert again.tuning == dict.fromkeys(method.parts, method)
    untouched = outputs(copy.deepcopy(trunk.model))
    again.apply(trunk)
    assert torch.equal(outputs(trunk.model), outputs(model))
    assert not torch.equal(outputs(model), untouched)
    saved = {name for name, _ in model.named_parameters() if name in again.tensors}
    assert saved == {name for name, p in model.named_parameters() if p.requires_grad}


@each
def test_merging_keeps_the_function_and_can_be_repeated(method):
    model = stirred(method)
    wanted = outputs(model)
    if not method.merge(model):
        assert isinstance(method, AdaptFormer), "a bottleneck with a relu cannot become part of a linear layer"
        assert torch.equal(outputs(model), wanted)
        return
    assert set(model.state_dict()) == set(build_sam_med3d("tiny").state_dict())
    torch.testing.assert_close(outputs(model), wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))
    once = {name: value.clone() for name, value in model.state_dict().items()}
    assert method.merge(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in once.items())


@each
def test_bf16_autocast_and_activation_checkpointing(method):
    model = load_trunk("tiny", None).model.eval()  # without dropout, which would differ between two passes
    method.apply(model)
    plain = loss_of(model)
    plain.backward()
    plain = plain.detach()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.image_encoder.activation_checkpointing = True
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        if name in wanted:
            largest = float(wanted[name].abs().max())
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4 * largest)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    torch.testing.assert_close(loss.detach().float(), plain, rtol=0.05, atol=0)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, method in METHODS.items():
        torch.manual_seed(0)
        model = load_trunk("tiny", None).model.eval()
        method.apply(model)
        # Every declared parameter has to get a gradient, or DDP stops with an error in the second step.
        shared = torch.nn.parallel.DistributedDataParallel(_Loss(model))
        for step in range(2):
            shared(2 * step + rank).backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        torch.save(found, f"{folder}/{name}.{rank}.pt")
    torch.distributed.destroy_process_group()


class _Loss(torch.nn.Module):
    def __init__(self, model: SamMed3D) -> None:
        super().__init__()
        self.model = model

    def forward(self, patch: int) -> torch.Tensor:
        return loss_of(self.model, patch)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Each has patches of its own; together they have the gradients of one process with all of them."""
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for name, method in METHODS.items():
        torch.manual_seed(0)
        model = load_trunk("tiny", None).model.eval()
        method.apply(model)
        for patch in range(4):
            (loss_of(model, patch) / 2).backward()
        alone = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        for rank in range(2):
            together = torch.load(tmp_path / f"{name}.{rank}.pt")
            assert set(together) == set(alone)
            for key, gradient in alone.items():
                torch.testing.assert_close(together[key], gradient, rtol=1e-3, atol=1e-6, msg=f"{name}: {key}")


@each
def test_what_is_added_has_the_precision_of_the_model(method):
    model = load_trunk("tiny", None).model.to(torch.bfloat16)
    method.apply(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["none", "in"])
def test_bottleneck_equals_the_original(load_parity, kind):
    arrays = load_parity("adaptformer/adaptformer.npz")
    layer = Bottleneck(48, 12, 0.1, 0.1, layer_norm=kind == "in").eval()
    state = {key.split(".sd.")[1]: value for key, value in arrays.items() if key.startswith(f"{kind}.0.1.sd.")}
    layer.load_state_dict({key.replace("adapter_layer_norm_before", "norm"): value for key, value in state.items()})
    # The fixture's y_parallel holds the layer's own output, without the residual.
    torch.testing.assert_close(layer(arrays["x"]), arrays[f"{kind}.0.1.y_parallel"], rtol=0, atol=1e-6)


def test_block_equals_the_original(load_parity):
    """Un-normed input, beside the MLP: with the norm, or after the MLP, it would differ."""
    arrays = load_parity("adaptformer/adaptformer.npz")
    state = {key.removeprefix("block.parallel.sd."): value for key, value in arrays.items() if ".parallel.sd." in key}
    x, dim, heads = arrays["x"], 48, 4

    def layer(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    adapter = Bottleneck(dim, 12, 0.1, 0.1, layer_norm=False).eval()
    adapter.load_state_dict({k.removeprefix("adaptmlp."): v for k, v in state.items() if k.startswith("adaptmlp.")})

    class Attention(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            q, k, v = (layer(f"attn.{n}_proj", tokens).unflatten(-1, (heads, -1)).transpose(-3, -2) for n in "qkv")
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return layer("attn.proj", out.transpose(-3, -2).flatten(-2))

    block = build_sam_med3d("tiny").image_encoder.blocks[0]
    block.attn, block.adapter = Attention(), adapter
    block.mlp.load_state_dict({f"lin{i}.{kind}": state[f"fc{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias")})
    for name in ("norm1", "norm2"):
        getattr(block, name).load_state_dict({kind: state[f"{name}.{kind}"] for kind in ("weight", "bias")})
        getattr(block, name).eps = 1e-5  # what the fixture was made with; SAM-Med3D has 1e-6
    found = block(x)
    torch.testing.assert_close(found, arrays["block.parallel.y"], rtol=0, atol=2e-5)


def test_counts_of_the_full_model():
    with torch.device("meta"):
        counts = {}
        for name, method in {
            "adaptformer": AdaptFormer(modules="encoder"),
            "full": FullTuning(),
            "lora": LoRA(modules="encoder"),
        }.items():
            model = build_sam_med3d("vit_b_ori")
            method.apply(model)
            counts[name] = trainable_parameters(model)
        whole = sum(parameter.numel() for parameter in build_sam_med3d("vit_b_ori").image_encoder.parameters())
    assert counts["adaptformer"]["image_encoder"] == 12 * 99_136
    assert counts["lora"]["image_encoder"] == 1_179_648
    assert counts["full"]["image_encoder"] == whole


def test_rank_stabilised_scale_and_ranks_by_part():
    lora = LoRA(rank=16, alpha=8, rank_stabilised=True, decoder_rank=4)
    assert lora.scale_of("encoder") == 2.0
    assert lora.scale_of("decoder") == 4.0
    model = build_sam_med3d("tiny")
    lora.apply(model)
    assert model.image_encoder.blocks[0].attn.qkv.lora_A.shape[0] == 2 * 16
    assert model.mask_decoder.transformer.layers[0].self_attn.q_proj.lora_A.shape[0] == 4
    assert model.image_encoder.blocks[0].attn.qkv.scaling == 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: AdaptFormer(0),
        lambda: AdaptFormer(dropout=1.0),
        lambda: LoRA(projections=()),
        lambda: LoRA(projections=("w",)),
        lambda: LoRA(decoder_rank=0),
        lambda: LoRA(rank_stabilised=True),
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        wrong()


def test_every_method_is_in_the_catalogue():
    ours = {method for method in TuningMethod.__subclasses__() if method.__module__.startswith("uscl.")}
    assert {type(method) for method in METHODS.values()} == ours
    assert all(any(field.name == "modules" for field in fields(method)) for method in METHODS.values())
