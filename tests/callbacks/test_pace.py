"""What a user reads while a training goes on, and when it was interrupted."""

import logging

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from uscl.callbacks import Pace


class Worker(LightningModule):
    """A step takes two seconds, the first a hundred."""

    def __init__(self, clock: list[float], stop_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.clock, self.stop_at = clock, stop_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop_at:
            raise KeyboardInterrupt
        self.clock[0] += 100 if self.global_step == 0 else 2
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def fit(tmp_path, monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr("uscl.callbacks.pace.perf_counter", lambda: clock[0])
    caplog.set_level(logging.INFO, "uscl")

    def fit(stop_at: int = -1, data=None, **options) -> str:
        latest = ModelCheckpoint(tmp_path / "checkpoints", "last", save_on_train_epoch_end=True)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[Pace(), latest],
            **options,
        )
        trainer.fit(Worker(clock, stop_at), DataLoader(data or [torch.ones(1)] * 10))
        return caplog.text

    return fit


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"max_epochs": 3}, "0:00:48 for the 24 steps left (2 s each"),
        ({"max_steps": 20}, "0:00:28 for the 14 steps left (2 s each"),
        ({"max_epochs": 3, "max_steps": 16}, "0:00:20 for the 10 steps left (2 s each"),
    ],
)
def test_the_time_that_is_left_is_said_once(fit, options, left):
    text = fit(**options)
    assert text.count("steps left") == 1
    assert f"About {left}" in text


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.ones(1)] * 10)


def test_epochs_without_a_length_have_no_estimate(fit):
    assert "steps left" not in fit(data=Stream(), max_epochs=1)


def test_a_training_of_few_steps_says_nothing(fit):
    assert "steps left" not in fit(max_steps=4)


def test_after_ctrl_c_the_command_that_goes_on_is_shown(fit, tmp_path, caplog):
    with pytest.raises(SystemExit):
        fit(stop_at=13, max_epochs=3)
    line = f"uscl fit --config {tmp_path / 'config.yaml'} --ckpt_path {tmp_path / 'checkpoints' / 'last.ckpt'}"
    assert f"Interrupted. To go on: {line}" in caplog.text


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(fit, caplog):
    with pytest.raises(SystemExit):
        fit(stop_at=3, max_epochs=3)
    assert "To go on" not in caplog.text
