"""From settings to rows and costs in one command, as cells of a sweep run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml
from end_to_end.running import in_process

from uscl.cli import main
from uscl.evaluation import read_rows
from uscl.evaluation.cost import read_cost

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
STUDY = {"patients": 3, "sweeps_per_patient": 2, "frames": 12, "size": 64}


@pytest.fixture(scope="module")
def small(study, tmp_path_factory) -> Path:
    """What makes training and test small, to be laid over the experiments."""
    folder = tmp_path_factory.mktemp("small")
    data = {"root": str(study), "study": STUDY, "preprocessing": {"patch_size": 64, "spacing": [3.0, 3.0, 3.0]}}
    test = {"data": {"init_args": {**data}}, "model": {"init_args": {"evaluation": {"clicks": [1]}}}}
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    training = {
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "limit_val_batches": 1,
            "check_val_every_n_epoch": 1,
        },
        "model": {"init_args": {"backbone": "tiny", "weights": None, "evaluation": {"val_clicks": [1]}}},
        "data": {
            "init_args": {
                **data,
                "patches_per_epoch": 4,
                "batch_size": 2,
                "sampling": {"minimum_foreground": 20, "size": 32, "objects": 2},
            }
        },
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(training))
    return folder


def fit(small: Path, *more: str) -> int:
    return main(["fit", "--config", str(EXPERIMENTS / "lora.yaml"), "--config", str(small / "train.yaml"), *more])


@pytest.fixture
def own_wandb_run(monkeypatch) -> Iterator[None]:
    """W&B keeps a run open until its process ends, and other tests log in this one."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.finish()
    yield
    wandb.finish()


@pytest.fixture(params=["in this process", pytest.param("programs", marks=pytest.mark.slow)])
def tests_run(request, monkeypatch) -> None:
    """How the tests after a training are run; as programs of their own it takes seconds for each to begin."""
    if request.param == "in this process":
        monkeypatch.setattr("uscl.cli.follow_up.subprocess.run", in_process)


@pytest.mark.usefixtures("own_wandb_run", "tests_run")
def test_one_command_trains_tests_and_tells_the_cost(small, tmp_path):
    run = tmp_path / "run"
    also = tmp_path / "again.yaml"  # the same data under another name
    also.write_text((EXPERIMENTS / "eval_us.yaml").read_text())
    overlay = f"--config {small / 'test.yaml'}"
    tests = json.dumps([f"{EXPERIMENTS / 'eval_us.yaml'} {overlay}", f"{also} {overlay} --data.classes '[liver]'"])
    assert (
        fit(
            small,
            "--trainer.default_root_dir",
            str(run),
            "--test_with",
            tests,
            "--trainer.logger",
            "WandbLogger",
            "--trainer.logger.offline",
            "true",
        )
        == 0
    )
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    everything, livers = (read_rows(run / "tests" / name / "rows.csv") for name in ("eval_us", "again"))
    assert {row.class_name for row in livers} == {"liver"} < {row.class_name for row in everything}
    of_livers = [row.dice for row in everything if row.class_name == "liver"]
    assert [row.dice for row in livers] == of_livers, "the adapter that was trained, and the same clicks"
    assert {row.method for row in everything} == {"SAM-Med3D + LoRA"}
    # What W&B would upload lies in the run folder, with configuration and rows.
    logged = list((run / "wandb").rglob("*.table.json"))
    assert {path.parent.relative_to(run / "wandb").parts[-2:] for path in logged} == {
        ("test", "eval_us"),
        ("test", "again"),
    }
    drawn = {path.parent.name for path in (run / "wandb").rglob("media/images/test/*/*.png")}
    assert drawn == {"eval_us", "again"}
    tables = [json.loads(path.read_text()) for path in logged]
    assert sorted(len(table["data"]) for table in tables) == sorted([len(everything), len(livers)])
    wandb.finish()  # writes what it still holds
    assert next((run / "wandb").rglob("run-*.wandb")).stat().st_size > 1000
    cost = read_cost(run)
    assert cost.steps == 4
    assert cost.batch_size == 2
    assert 0 < cost.seconds_per_step < 60
    assert cost.samples_per_second == pytest.approx(2 / cost.seconds_per_step)
    assert cost.peak_device_bytes is None
    assert cost.peak_host_bytes > 2**27
    assert set(cost.trainable) == {"image_encoder", "mask_decoder"}
    assert 0 < sum(cost.trainable.values()) < cost.parameters
    assert cost.checkpoint_bytes == (run / "checkpoints/last.ckpt").stat().st_size
    assert cost.artefact_bytes == (run / "adapter.safetensors").stat().st_size
    assert cost.joules is None


@pytest.mark.slow
@pytest.mark.usefixtures("own_wandb_run", "tests_run")
def test_a_cell_of_an_agent_tells_wandb_its_metric(small, tmp_path, monkeypatch):
    """In a folder of its own, whatever other agents run, and without a logger in the experiment."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcd1234")
    monkeypatch.setenv("WANDB_RUN_ID", "efgh5678")
    wandb.teardown()  # it read the environment when it was first used
    also = json.dumps([f"{EXPERIMENTS / 'eval_us.yaml'} --config {small / 'test.yaml'}"])
    assert fit(small, "--trainer.default_root_dir", str(tmp_path / "run"), "--test_with", also) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run-efgh5678"]
    run = tmp_path / "run-efgh5678"
    logged = [path.parent.name.rsplit("-", 1)[-1] for path in run.rglob("run-*.wandb")]
    assert logged == ["efgh5678"], "the test is no W&B run of its own"
    assert list((run / "wandb").rglob("*.table.json"))
    # Beside W&B, for `uscl sweep`.
    assert "val/dice" in (run / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.usefixtures("tests_run")
def test_a_test_that_fails_is_shown_and_leaves_the_run_unfinished(small, tmp_path, capsys):
    run = tmp_path / "run"
    data = "data: {class_path: VolumeDataModule, init_args: {root: nowhere}}\n"
    (tmp_path / "wrong.yaml").write_text(f"{data}model: {{class_path: LoRASegModule, init_args: {{backbone: tiny}}}}\n")
    assert fit(small, "--trainer.default_root_dir", str(run), "--test_with", f"[{tmp_path / 'wrong.yaml'}]") == 2
    assert "wrong.yaml failed" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["status"].startswith("failed: the test with")


def test_what_cannot_be_tested_with_is_reported_before_the_training(small, tmp_path, capsys):
    args = ["--trainer.default_root_dir", str(tmp_path / "run")]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").touch()
    assert fit(small, *args, "--test_with", f"[{tmp_path}/a/x.yaml, {tmp_path}/b/x.yaml]") == 2
    assert "a file name of its own" in capsys.readouterr().err
    assert fit(small, *args, "--test_with", '["x.yaml --data.root \'a b"]') == 2
    assert "no closing quotation" in capsys.readouterr().err
    (tmp_path / "wrong.yaml").write_text("model: {class_path: Nothing}")
    assert fit(small, *args, "--test_with", f"[{tmp_path / 'wrong.yaml'}]") == 2
    assert "wrong.yaml: model: expected the name or dotted path of a class" in capsys.readouterr().err
    assert fit(small, *args, "--test_with", "[nowhere.yaml]") == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["test", "--config", str(EXPERIMENTS / "eval_us.yaml"), "--test_with", "[x.yaml]"]) == 2
    assert "only `uscl fit` leaves something to test" in capsys.readouterr().err


def test_seeds_that_are_null_follow_the_run(monkeypatch):
    """Initial values, patches and clicks: cells of a sweep over seed_everything are trainings of their own."""
    from uscl.data import VolumeDataModule
    from uscl.stages import LoRASegModule, VCLPretrainModule
    from uscl.tuning import LoRA

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    module = LoRASegModule(backbone="tiny", vcl_adapter="rank-{rank}/seed-{seed}.x", tuning=LoRA(rank=16))
    assert (module.seed, module.vcl_adapter_file) == (7, "rank-16/seed-7.x")
    assert LoRASegModule(backbone="tiny", vcl_adapter="", seed=3).seed == 3
    assert LoRASegModule(backbone="tiny", vcl_adapter="").vcl_adapter_file is None
    assert VCLPretrainModule(backbone="tiny", lora=LoRA(modules="encoder")).seed == 7
    data = VolumeDataModule("nowhere")
    assert (data.seed, VolumeDataModule("nowhere", seed=0).seed) == (7, 0)
