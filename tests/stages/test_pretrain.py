import threading
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from uscl.backbone import VARIANTS, load_trunk
from uscl.callbacks import WeightsExport
from uscl.data import Preprocessing
from uscl.errors import InputError
from uscl.evaluation.promptable import Evaluation
from uscl.optim import Trapezoid
from uscl.optim.muon import Muon, MuonAdamW
from uscl.phantom.pretraining import Curriculum, PretrainDataModule
from uscl.prompting.objects import ObjectClicks
from uscl.stages import PretrainModule
from uscl.stages.pretrain import DenseHead


def make_data(anatomies, **options) -> PretrainDataModule:
    options = {
        "torsos": 1,
        "heads": 1,
        "preprocessing": Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64),
        "curriculum": Curriculum(8, (0.7, 0.25), (20.0, 1.5)),
        "objects": 2,
        "batch_size": 2,
        "patches_per_epoch": 4,
        "val_patches": 2,
        "workers": 0,
        **options,
    }
    return PretrainDataModule(str(anatomies), **options)


def make_module(**options) -> PretrainModule:
    torch.manual_seed(0)  # of the auxiliary head; the command line seeds everything
    options = {"backbone": "tiny", "clicks": ObjectClicks(1, 2), "evaluation": Evaluation(val_clicks=(1, 2)), **options}
    return PretrainModule(**options)


def ema() -> EMAWeightAveraging:
    return EMAWeightAveraging(decay=0.5)


def test_all_of_the_backbone_trains(anatomies, make_trainer):
    module = make_module()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    make_trainer(2).fit(module, datamodule=make_data(anatomies))
    moved = {name for name, value in module.net.state_dict().items() if not torch.equal(value, before[name])}
    for part in (
        "image_encoder.patch_embed",
        "image_encoder.neck",
        "prompt_encoder.mask_downscaling",
        "prompt_encoder.point_embeddings",
        "mask_decoder.transformer",
        "mask_decoder.output_upscaling",
    ):
        assert any(name.startswith(part) for name in moved), part


@pytest.mark.parametrize("anatomical", [True, False])
def test_every_trainable_weight_gets_a_gradient_whatever_the_batch_holds(anatomies, anatomical):
    """Several processes wait for all of them, and for each other's logs."""
    data = make_data(anatomies)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    data.prepare_data()
    batch = next(iter(data.train_dataloader()))
    if not anatomical:
        batch = batch._replace(semantic=torch.full_like(batch.semantic, -100))
    module = make_module(clicks=ObjectClicks(2, 2))
    logged = set()
    module.log = lambda name, value, **_: logged.add((name, bool(torch.as_tensor(value).isfinite())))
    module._trainer = SimpleNamespace(current_epoch=0, global_rank=0)
    module.training_step(batch, 0).backward()
    assert {("train/semantic", True), ("train/intensity", True), ("train/loss", True)} <= logged
    without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_the_average_is_taken_of_weights_and_not_of_a_trainer():
    """The command line's callables lead to the trainer, which holds its processes and cannot be copied."""
    module = make_module(optimizer=partial(lambda lock, parameters: None, threading.Lock()))
    copied = deepcopy(module)
    assert copied.optimizer is module.optimizer
    name = "net.image_encoder.pos_embed"
    assert copied.get_parameter(name) is not module.get_parameter(name)
    assert torch.equal(copied.get_parameter(name), module.get_parameter(name))
    assert copied.clicks == module.clicks


def test_weights_file_holds_the_average_and_loads(anatomies, make_trainer, tmp_path):
    module = make_module()
    trainer = make_trainer(2, callbacks=[ema(), WeightsExport()])
    trainer.fit(module, datamodule=make_data(anatomies))
    trunk = load_trunk("tiny", tmp_path / "run" / "weights.safetensors")
    start = load_trunk("tiny", None).model.state_dict()
    for name, value in trunk.model.state_dict().items():
        # The module holds the average once training has ended.
        torch.testing.assert_close(value, module.net.state_dict()[name], rtol=1e-3, atol=1e-4)
    name = "image_encoder.patch_embed.proj.weight"
    assert not torch.equal(trunk.model.state_dict()[name], start[name])
    again = PretrainModule("tiny", str(tmp_path / "run" / "weights.safetensors"))
    assert torch.equal(again.net.state_dict()[name], trunk.model.state_dict()[name])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [None, MuonAdamW])
def test_resumed_equals_uninterrupted(anatomies, make_trainer, tmp_path, optimizer):
    whole = make_module(optimizer=optimizer)
    make_trainer(2, callbacks=[ema()]).fit(whole, datamodule=make_data(anatomies))
    half = make_module(optimizer=optimizer)
    latest = ModelCheckpoint(tmp_path / "half", "last")
    make_trainer(1, "half", enable_checkpointing=True, callbacks=[ema(), latest]).fit(
        half, datamodule=make_data(anatomies)
    )
    resumed = make_module(optimizer=optimizer)
    again = ModelCheckpoint(tmp_path / "half", "last")
    make_trainer(2, "resumed", enable_checkpointing=True, callbacks=[ema(), again]).fit(
        resumed, datamodule=make_data(anatomies), ckpt_path=tmp_path / "half" / "last.ckpt", weights_only=True
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_muon_takes_the_matrices_of_hidden_layers_alone():
    module = make_module(optimizer=MuonAdamW)
    optimizer = module.configure_optimizers()
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    by_muon = {named[id(p)] for group in optimizer.param_groups if group["matrices"] for p in group["params"]}
    assert "net.image_encoder.blocks.0.attn.qkv.weight" in by_muon
    assert all(name.endswith("weight") and "embed" not in name and "norm" not in name for name in by_muon)
    everything = [named[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(name for name, p in module.named_parameters() if p.requires_grad)
    # An orthogonal step: every direction of the matrix moves by about the same length; AdamW's part moves too.
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    loss = sum(parameter.square().sum() for parameter in module.parameters())
    loss.backward()
    optimizer.step()
    name = "net.image_encoder.blocks.0.mlp.lin1.weight"
    moved = torch.linalg.svdvals((module.get_parameter(name) - before[name]).detach())
    assert moved.max() / moved.median() < 2
    bias = "net.image_encoder.neck.0.weight"
    assert not torch.equal(module.get_parameter(bias), before[bias])


def test_muon_takes_matrices_together_as_torch_takes_them_one_by_one():
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5)]
    ours, theirs = ([torch.zeros(shape, requires_grad=True) for shape in shapes] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    optimizers = Muon([{"params": ours}], **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for pair in zip(ours, theirs, strict=True):
            gradient = torch.randn(pair[0].shape, generator=generator)
            for parameter in pair:
                parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=0.02, rtol=0)  # theirs is computed in bfloat16
        assert other.abs().max() > 0.1


def test_schedules_reach_both_optimizers():
    optimizer = make_module(optimizer=MuonAdamW).configure_optimizers()
    before = [group["lr"] for group in optimizer.param_groups]
    assert {0.02, 1e-3} <= set(before)
    Trapezoid(optimizer, steps=10, warmup=2, cooldown=2)
    for part in optimizer.parts:
        assert all(any(group is own for own in optimizer.param_groups) for group in part.param_groups)
    assert [group["lr"] for group in optimizer.param_groups] == [lr / 2 for lr in before]


def test_the_transformer_of_the_decoder_can_learn_more_slowly():
    module = make_module(optimizer=MuonAdamW, transformer_rate=0.1)
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    rates = {named[id(p)]: group["lr"] for group in module.configure_optimizers().param_groups for p in group["params"]}
    slow = {rate for name, rate in rates.items() if name.startswith("net.mask_decoder.transformer")}
    assert sorted(slow) == pytest.approx([0.1 * 1e-3, 0.1 * 0.02])
    assert rates["net.image_encoder.blocks.0.mlp.lin1.weight"] == 0.02
    assert rates["net.mask_decoder.output_upscaling.0.bias"] == 1e-3


def test_a_checkpoint_of_another_model_is_reported(anatomies, make_trainer, tmp_path):
    latest = ModelCheckpoint(tmp_path, "last")
    make_trainer(1, enable_checkpointing=True, callbacks=[latest]).fit(make_module(), datamodule=make_data(anatomies))
    narrow = replace(VARIANTS["tiny"], decoder_mlp_dim=64)
    with pytest.raises(InputError, match=r"--ckpt_path: belongs to another model; net\.mask_decoder"):
        make_trainer(2, "other").fit(
            make_module(backbone=narrow),
            datamodule=make_data(anatomies),
            ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )


def test_training_starts_at_clicks_or_at_random():
    small = replace(VARIANTS["mini_fine"], image_size=32, patch_size=4)
    options = {"backbone": small, "semantic_weight": 0, "intensity_weight": 0}
    started, random = (make_module(start_at_clicks=at, **options).net for at in (True, False))
    name = "prompt_encoder.point_embeddings.1.weight"
    assert torch.equal(random.state_dict()[name], load_trunk(small, None).model.state_dict()[name])
    assert not torch.equal(started.state_dict()[name], random.state_dict()[name])


def test_finer_tokens_have_no_dense_head():
    small = replace(VARIANTS["mini_fine"], image_size=32, patch_size=4)
    assert make_module(backbone=small, semantic_weight=0, intensity_weight=0).dense is None
    with pytest.raises(InputError, match="tokens of 8 voxels or more, the backbone's have 4"):
        make_module(backbone=small)


def test_dense_head_speaks_of_cells_in_place():
    """Token (i, j, k) names cells 2 i to 2 i + 1, and has the intensities of cells 4 i to 4 i + 3, along every axis."""
    head = DenseHead(4, 3, 16)
    embedding = torch.zeros(1, 4, 3, 3, 3)
    quiet = head(embedding)
    embedding[0, :, 2, 0, 1] = 1
    for cells, before, after in zip((2, 4), quiet, head(embedding), strict=True):
        changed = (after != before).any(1)[0].nonzero()
        assert before.shape[2:] == (3 * cells,) * 3
        assert changed.min(0).values.tolist() == [2 * cells, 0, cells]
        assert changed.max(0).values.tolist() == [3 * cells - 1, cells - 1, 2 * cells - 1]


def test_trapezoid():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = Trapezoid(optimizer, steps=20, warmup=4, cooldown=5)
    rates = []
    for _ in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[14:] == pytest.approx([2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.0])


def test_training_and_validation_share_no_anatomy(anatomies, make_trainer):
    data = make_data(anatomies)
    data.prepare_data()
    data.trainer = make_trainer(1)
    train, val = data.train_dataloader().dataset, data.val_dataloader().dataset.patches
    assert not {*train.torsos, *train.heads} & {*val.torsos, *val.heads}


def test_patches_that_do_not_fit_the_backbone(anatomies, make_trainer):
    data = make_data(anatomies, preprocessing=Preprocessing(patch_size=32))
    with pytest.raises(InputError, match="patch_size is 32, but the backbone takes 64"):
        make_trainer(1).fit(make_module(), datamodule=data)


def test_impossible_data():
    with pytest.raises(InputError, match="at least"):
        PretrainDataModule(torsos=0)


def test_weights_that_are_in_no_file_are_not_tested(make_trainer):
    module = make_module()
    for verb in (make_trainer(1).test, make_trainer(1).predict):
        with pytest.raises(InputError, match=r"stage 0 is trained; test what it leaves with --model LoRASegModule"):
            verb(module, DataLoader([0]))
    assert module.described() == {}
