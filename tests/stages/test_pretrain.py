import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from uscl.backbone import load_trunk
from uscl.data import Preprocessing
from uscl.errors import InputError
from uscl.phantom.pretraining import Curriculum, PretrainDataModule
from uscl.prompting.pretraining import PretrainingClicks
from uscl.stages import PretrainModule, WeightsExport
from uscl.stages.pretrain import DenseHead, Trapezoid


@pytest.fixture(scope="module")
def anatomies(tmp_path_factory):
    return tmp_path_factory.mktemp("anatomies")


def make_data(anatomies, **options) -> PretrainDataModule:
    options = {
        "torsos": 1, "heads": 1, "preprocessing": Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64),
        "curriculum": Curriculum(8), "objects": 2, "batch_size": 2, "patches_per_epoch": 4, "val_patches": 2,
        "workers": 0, **options,
    }  # fmt: skip
    return PretrainDataModule(str(anatomies), **options)


def make_module(**options) -> PretrainModule:
    torch.manual_seed(0)  # of the auxiliary head; the command line seeds everything
    options = {"backbone": "tiny", "clicks": PretrainingClicks(1, 2), "val_clicks": (1, 2), **options}
    return PretrainModule(**options)


def ema() -> EMAWeightAveraging:
    return EMAWeightAveraging(decay=0.5)


def test_all_of_the_backbone_trains(anatomies, make_trainer):
    module = make_module()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    make_trainer(2).fit(module, datamodule=make_data(anatomies))
    moved = {name for name, value in module.net.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("image_encoder.patch_embed", "image_encoder.neck", "prompt_encoder.mask_downscaling",
                 "prompt_encoder.point_embeddings", "mask_decoder.transformer",
                 "mask_decoder.output_upscaling"):  # fmt: skip
        assert any(name.startswith(part) for name in moved), part


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


def test_resumed_equals_uninterrupted(anatomies, make_trainer, tmp_path):
    whole = make_module()
    make_trainer(2, callbacks=[ema()]).fit(whole, datamodule=make_data(anatomies))
    half = make_module()
    latest = ModelCheckpoint(tmp_path / "half", "last")
    make_trainer(1, "half", enable_checkpointing=True, callbacks=[ema(), latest]).fit(
        half, datamodule=make_data(anatomies)
    )
    resumed = make_module()
    again = ModelCheckpoint(tmp_path / "half", "last")
    make_trainer(2, "resumed", enable_checkpointing=True, callbacks=[ema(), again]).fit(
        resumed, datamodule=make_data(anatomies), ckpt_path=tmp_path / "half" / "last.ckpt", weights_only=True
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


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
    train, val = data.train_dataloader().dataset, data.val_dataloader().dataset
    assert not {*train.torsos, *train.heads} & {*val.torsos, *val.heads}


def test_patches_that_do_not_fit_the_backbone(anatomies, make_trainer):
    data = make_data(anatomies, preprocessing=Preprocessing(patch_size=32))
    with pytest.raises(InputError, match="patch_size is 32, but the backbone takes 64"):
        make_trainer(1).fit(make_module(), datamodule=data)


def test_impossible_data():
    with pytest.raises(InputError, match="at least"):
        PretrainDataModule(torsos=0)
