"""What a training costs, measured on a model with a clock of its own."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from uscl.callbacks import CostMeter
from uscl.evaluation.cost import read_cost


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker(LightningModule):
    """A step takes a second, the first 100; validation and the end of an epoch take 1000 each."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False))
        self.net[0].requires_grad_(False)
        self.head = torch.nn.Linear(1, 1)
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.now += 100 if self.global_step == 0 else 1
        return self.head(self.net(batch["image"])).sum()

    def validation_step(self, batch, batch_idx) -> None:
        self.clock.now += 1000

    def on_train_epoch_end(self) -> None:
        self.clock.now += 1000

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


def make_trainer(folder, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[CostMeter()],
        **options,
    )


@pytest.mark.parametrize("interval", [1.0, 0.5], ids=["validation at the end", "validation within an epoch"])
def test_only_steps_are_timed(tmp_path, monkeypatch, interval):
    clock = Clock()
    monkeypatch.setattr("uscl.callbacks.cost_meter.perf_counter", clock)
    data = DataLoader([{"image": torch.ones(2)} for _ in range(24)], batch_size=4)
    trainer = make_trainer(tmp_path, max_epochs=3, val_check_interval=interval, num_sanity_val_steps=1)
    trainer.fit(Worker(clock), data, DataLoader([{"image": torch.ones(2)}]))
    cost = read_cost(tmp_path)
    assert (cost.steps, cost.seconds_per_step, cost.samples_per_second) == (18, 1.0, 4.0)
    assert cost.trainable == {"1": 3, "beside the backbone": 2}
    assert cost.parameters == 12
    assert cost.checkpoint_bytes is None
    assert (cost.device, cost.precision, cost.processes) == ("cpu", "32-true", 1)


def test_a_single_step_tells_no_time(tmp_path):
    data = DataLoader([{"image": torch.ones(2)}])
    make_trainer(tmp_path, max_epochs=1).fit(Worker(Clock()), data, data)
    assert "NaN" not in (tmp_path / "cost.json").read_text()
    assert read_cost(tmp_path).seconds_per_step is None


def test_nothing_is_written_without_steps(tmp_path):
    data = DataLoader([{"image": torch.ones(2)}])
    make_trainer(tmp_path, max_epochs=0).fit(Worker(Clock()), data, data)
    assert read_cost(tmp_path) is None


def test_energy_where_the_device_tells(monkeypatch):
    import sys

    from uscl.callbacks import cost_meter

    told = iter([5000, 5000, 12500])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(told),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0815"))
    meter = cost_meter._energy_meter(torch.device("cuda", 0))
    assert (meter(), meter()) == (5.0, 12.5)
    assert cost_meter._energy_meter(torch.device("cpu"))() is None
