"""What the paper's claims rest on: which runs are compared, and which must not be."""

from dataclasses import replace
from pathlib import Path

import pytest

from uscl.evaluation.ablation import look_at
from uscl.evaluation.claims import claims_table
from uscl.evaluation.cost import Cost
from uscl.evaluation.rows import ResultRow
from uscl.evaluation.runs import Run, Setting, _others

COST = Cost(1.0, 2.0, 40, 2, 1, "H200", "32-true", 2**30, 1, 1000, {"image_encoder": 10}, 5, 3, None)
LORA, FULL = Setting("LoRA", "both", 32), Setting("FullTuning", "both")


def make_run(setting: Setting, cost: Cost | None = None, seed: int = 0) -> Run:
    rows = [
        ResultRow("sweeps", f"case{n}", "liver", "m", 10, 0.5, 0.5, 3.0, 1.0, f"p{n}", "mini", 10, 0.1)
        for n in range(3)
    ]
    return Run(Path(f"{setting}-{seed}"), setting, seed, {"sweeps": rows}, "mini", cost)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "holds here"),
        ({"device": "cpu"}, "no verdict: trained on other devices"),
        ({"precision": "bf16-mixed"}, "no verdict: trained on other devices"),
        ({"batch_size": 4}, "no verdict: trained on other devices"),
        ({"processes": 2}, "no verdict: trained on other devices"),
    ],
)
def test_costs_of_different_machines_are_not_compared(other, said):
    full = replace(COST, seconds_per_step=20.0, peak_device_bytes=2**34, **other)
    lines = claims_table(look_at([make_run(LORA, COST), make_run(FULL, full)])).lines
    verdicts = [str(line[-1]) for line in lines if str(line[0]).startswith("full tuning takes")]
    assert len(verdicts) == 2
    assert all(verdict.startswith(said) for verdict in verdicts)


def test_costs_are_compared_over_what_both_were_trained_on():
    elsewhere = replace(COST, device="cpu", seconds_per_step=1000.0, peak_device_bytes=None)
    runs = [make_run(LORA, COST), make_run(LORA, elsewhere, 1), make_run(FULL, replace(COST, seconds_per_step=20.0))]
    told = {line[0]: line[1] for line in claims_table(look_at(runs)).lines}
    assert told["full tuning takes 14.1 times LoRA's time per step"] == "20.00 times"


def test_the_main_setting_is_one_that_was_run():
    """VCL of one part alone, or at another rank, does not make VCL the main setting."""
    runs = [
        make_run(LORA),
        make_run(Setting("LoRA", "encoder", 32, vcl=True)),
        make_run(Setting("LoRA", "both", 8, True)),
    ]
    assert look_at(runs).main == LORA
    assert look_at([*runs, make_run(replace(LORA, vcl=True))]).main == replace(LORA, vcl=True)


@pytest.mark.parametrize("name", ["limit_train_batches", "accumulate_grad_batches", "gradient_clip_val"])
def test_trainings_of_another_length_or_step_are_others(name):
    def config(value: float) -> dict:
        return {"model": {"init_args": {"tuning": None}}, "data": {"init_args": {}}, "trainer": {name: value}}

    assert _others(config(2)) == _others(config(2)) != _others(config(3))
