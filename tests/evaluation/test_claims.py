"""What the paper's claims rest on: which runs are compared, and which must not be."""

from dataclasses import replace
from pathlib import Path

import pytest

from uscl.evaluation.ablation import look_at
from uscl.evaluation.claims import claims_table, verdict
from uscl.evaluation.cost import Cost
from uscl.evaluation.rows import ResultRow
from uscl.evaluation.runs import Run, Setting, _others
from uscl.evaluation.statistics import Estimate

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
    runs = [make_run(*of, seed) for seed in range(3) for of in ((LORA, COST), (FULL, full))]
    lines = claims_table(look_at(runs)).lines
    verdicts = [str(line[-1]) for line in lines if str(line[0]).startswith("full tuning takes")]
    assert len(verdicts) == 2
    assert all(verdict.startswith(said) for verdict in verdicts)


def test_costs_are_compared_over_what_both_were_trained_on():
    elsewhere = replace(COST, device="cpu", seconds_per_step=1000.0, peak_device_bytes=None)
    runs = [make_run(LORA, COST), make_run(LORA, elsewhere, 1), make_run(FULL, replace(COST, seconds_per_step=20.0))]
    assert verdict_on_time(runs) == ("20.00 times", "no verdict from 1 training")


def verdict_on_time(runs: list[Run]) -> tuple[str, str]:
    lines = {line[0]: line for line in claims_table(look_at(runs)).lines}
    line = lines["full tuning takes 14.1 times LoRA's time per step"]
    return str(line[1]), str(line[-1])


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [
        ((20.0, 20.5, 21.0), 40, ("20.50 times [19.29, 21.78]", "holds here")),
        ((2.0, 2.05, 2.1), 40, ("2.05 times [1.93, 2.18]", "more than LoRA's, less than claimed")),
        ((0.9, 1.0, 1.1), 40, ("1.00 times [0.78, 1.28]", "does not hold here")),
        ((8.0, 16.0, 24.0), 40, None),
        ((20.0, 20.5, 21.0), 2, ("not measured", "no verdict: trainings of fewer than 10 steps")),
        ((20.0, 20.5), 40, ("20.25 times", "no verdict from 2 trainings")),
    ],
)
def test_verdicts_on_costs_take_several_trainings(seconds, steps, said):
    runs = [make_run(LORA, replace(COST, steps=steps), seed) for seed in range(3)]
    runs += [make_run(FULL, replace(COST, seconds_per_step=s, steps=steps), seed) for seed, s in enumerate(seconds)]
    found = verdict_on_time(runs)
    if said is None:
        assert found[1] == "undecided: the interval includes what is claimed"
    else:
        assert found == said


@pytest.mark.parametrize(
    ("patients", "seeds", "low", "p", "said"),
    [
        (6, 3, 0.1, 0.03, "holds here"),
        (6, 3, -0.3, 0.03, "does not hold here"),
        (6, 3, -0.1, 0.03, "undecided: the interval includes 0"),
        (6, 3, 0.1, 0.06, "undecided: p is not below 0.05"),
        (6, 3, 0.1, float("nan"), "undecided: p is not below 0.05"),
        (5, 3, 0.1, 0.01, "no verdict from 5 patients"),
        (1, 3, float("nan"), 1.0, "no verdict from 1 patient"),
        (20, 2, 0.1, 0.001, "no verdict from 2 trainings"),
    ],
)
def test_what_a_verdict_takes(patients, seeds, low, p, said):
    assert verdict(Estimate(0.0, low, low + 0.2, 40, patients, seeds), p) == said
    assert verdict(None, float("nan")) == "not run"


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
