from pathlib import Path

import pytest
from end_to_end.running import EXPERIMENTS, SMALL_HEAD, SMALL_STEPS, VERBS, small, uscl
from once import once


@pytest.fixture(scope="session")
def runs(study, tmp_path_factory) -> Path:
    """Each experiment on sweeps, run once: stage 2 and the tests with what the stages before left."""

    def make(folder: Path) -> None:
        adapter = f"--model.adapter {folder / 'lora/adapter.safetensors'}"
        extra = {
            "vcl": f"{SMALL_HEAD} --model.subvolumes.size 32",
            "lora": f"--model.vcl_adapter {folder / 'vcl/adapter.safetensors'} {SMALL_STEPS}",
            "eval_us": f'{adapter} --model.evaluation.clicks "[1, 3]"',
            "predict_us": adapter,
        }
        for name in VERBS:
            assert uscl(f"{small(EXPERIMENTS / f'{name}.yaml', study, folder)} {extra[name]}") == 0

    return once(tmp_path_factory, "runs", make)
