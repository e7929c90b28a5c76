"""Every YAML under experiments/ through the command line, on small data and the tiny backbone."""

import csv
import dataclasses
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from uscl.backbone import VARIANTS, build_sam_med3d, save_weights
from uscl.cli import main
from uscl.evaluation import read_rows
from uscl.evaluation.figures import read_slices

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.mark.parametrize("kind", ["ultrasound", "amos", "totalsegmentator", "brats"])
def test_what_is_simulated_by_default_is_what_the_experiments_read(kind, tmp_path, monkeypatch):
    """`uscl simulate KIND` into the folder of an experiment must not make the experiment refuse it."""
    made = []
    monkeypatch.setattr(
        "uscl.cli.commands.simulate.simulate_study", lambda layout, out, study, workers: made.append(study)
    )
    assert main(["simulate", kind, "--out", str(tmp_path)]) == 0
    file = EXPERIMENTS / f"eval_{'us' if kind == 'ultrasound' else kind}.yaml"
    options = yaml.safe_load(file.read_text())["data"]["init_args"].get("study", {})
    assert made == [replace(type(made[0])(), **options)]


VERBS = {"vcl": "fit", "lora": "fit", "eval_us": "test", "predict_us": "predict"}
PRETRAIN = sorted(EXPERIMENTS.glob("pretrain*.yaml"))
SCANS = {"eval_amos": "amos", "eval_totalsegmentator": "totalsegmentator", "eval_brats": "brats"}
DISTILL = EXPERIMENTS / "distill.yaml"
OVERLAYS = {folder: sorted((EXPERIMENTS / folder).glob("*.yaml")) for folder in ("comparators", "protocols")}
CONFIGS = sorted(
    path for path in EXPERIMENTS.rglob("*.yaml") if path.parent.name not in ("sweeps", "ablation", *OVERLAYS)
)
STUDY = [EXPERIMENTS / "ablation" / f"{name}.yaml" for name in ("vcl", "lora")]
SMALL_HEAD = ["--model.head_hidden_dim", "16", "--model.head_out_dim", "16"]
SMALL_VALIDATION = ["--trainer.limit_val_batches", "1", "--trainer.check_val_every_n_epoch", "1"]
SMALL_STEPS = [
    "--data.sampling.size",
    "32",
    "--data.sampling.objects",
    "2",
    "--data.batch_size",
    "2",
    "--model.evaluation.val_clicks",
    "[1, 2]",
    *SMALL_VALIDATION,
]


def small(config: Path, study: Path, folder: Path) -> list[str]:
    """What makes an experiment small: the settings that a user would change too, on the command line."""
    name = config.stem
    args = [
        VERBS[name],
        "--config",
        str(config),
        "--model.backbone",
        "tiny",
        "--model.weights",
        "null",
        "--data.root",
        str(study),
        "--data.preprocessing.patch_size",
        "64",
        "--data.preprocessing.spacing",
        "[3, 3, 3]",
        "--data.num_workers",
        "0",
        "--trainer.default_root_dir",
        str(folder / name),
        "--trainer.accelerator",
        "cpu",
        "--trainer.precision",
        "32-true",
        "--trainer.enable_progress_bar",
        "false",
    ]
    if "paper" not in config.parts:
        args += ["--data.study", json.dumps({"patients": 3, "sweeps_per_patient": 2, "frames": 12, "size": 64})]
    if VERBS[name] == "fit":
        rank = "--model.lora.rank" if name.startswith("vcl") else "--model.tuning.rank"
        args += ["--trainer.max_epochs", "1", "--data.patches_per_epoch", "4", rank, "4"]
        args += ["--data.sampling.minimum_foreground", "20"]
    return args


@pytest.fixture(scope="module")
def runs(study, tmp_path_factory):
    """Runs each top-level experiment once, stage 2 and the tests with what the stages before left."""
    folder = tmp_path_factory.mktemp("runs")
    extra = {
        "vcl": [*SMALL_HEAD, "--model.subvolumes.size", "32"],
        "lora": ["--model.vcl_adapter", str(folder / "vcl/adapter.safetensors"), *SMALL_STEPS],
        "eval_us": ["--model.adapter", str(folder / "lora/adapter.safetensors"), "--model.evaluation.clicks", "[1, 3]"],
        "predict_us": ["--model.adapter", str(folder / "lora/adapter.safetensors")],
    }
    for name in VERBS:
        assert main(small(EXPERIMENTS / f"{name}.yaml", study, folder) + extra[name]) == 0
    return folder


def test_every_experiment_is_known_here():
    assert {config.stem for config in CONFIGS} == {*VERBS, *SCANS, *(file.stem for file in PRETRAIN), DISTILL.stem}, (
        "a new experiment needs its run in this file"
    )


@pytest.mark.parametrize("config", PRETRAIN, ids=lambda file: file.stem)
def test_pretraining_leaves_weights_that_the_other_stages_take(config, study, tmp_path):
    args = [
        "fit",
        "--config",
        str(config),
        "--model.backbone",
        "tiny",
        "--model.weights",
        "null",
        "--data.root",
        str(tmp_path / "anatomies"),
        "--data.torsos",
        "1",
        "--data.heads",
        "1",
        "--data.preprocessing.patch_size",
        "64",
        "--data.preprocessing.spacing",
        "[3, 3, 3]",
        "--data.batch_size",
        "2",
        "--data.patches_per_epoch",
        "4",
        "--data.val_patches",
        "2",
        "--data.workers",
        "0",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.check_val_every_n_epoch",
        "1",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",  # warns of bfloat16
        "--trainer.default_root_dir",
        str(tmp_path / "pretrain"),
    ]
    assert main(args) == 0
    header = (tmp_path / "pretrain/metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/loss", "train/dice", "val/dice_1", "val/dice"))
    assert "train/semantic" in header
    weights = tmp_path / "pretrain/weights.safetensors"
    args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path)
    args[args.index("--model.weights") + 1] = str(weights)
    assert main([*args, "--model.evaluation.clicks", "[1]", "--data.classes", "[liver]"]) == 0
    assert {row.weights[:26] for row in read_rows(tmp_path / "eval_us/rows.csv")} == {"weights.safetensors sha256"}


def test_a_distilled_student_is_a_backbone_like_any_other(study, tmp_path):
    fast = json.dumps(
        {
            **dataclasses.asdict(VARIANTS["tiny"]),
            "depth": 2,
            "global_attention_blocks": [],
            "attention_free_blocks": 1,
            "residual_after_norm": True,
        }
    )
    save_weights(build_sam_med3d("tiny"), tmp_path / "teacher.safetensors")
    args = [
        "fit",
        "--config",
        str(DISTILL),
        "--model.backbone",
        fast,
        "--model.teacher",
        "tiny",
        "--model.teacher_weights",
        str(tmp_path / "teacher.safetensors"),
        "--data.root",
        str(tmp_path / "anatomies"),
        "--data.torsos",
        "1",
        "--data.heads",
        "1",
        "--data.preprocessing.patch_size",
        "64",
        "--data.preprocessing.spacing",
        "[3, 3, 3]",
        "--data.patches_per_epoch",
        "4",
        "--data.val_patches",
        "2",
        "--data.workers",
        "0",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.default_root_dir",
        str(tmp_path / "distill"),
    ]
    assert main(args) == 0
    header = (tmp_path / "distill/metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/mse", "val/mse"))
    args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path)
    args[3:3] = ["--config", str(EXPERIMENTS / "comparators" / "fastsam3d.yaml")]
    args[args.index("--model.backbone") + 1] = fast
    args[args.index("--model.weights") + 1] = str(tmp_path / "distill/weights.safetensors")
    assert main([*args, "--model.evaluation.clicks", "[1]", "--data.classes", "[liver]"]) == 0
    assert {row.method for row in read_rows(tmp_path / "eval_us/rows.csv")} == {"FastSAM3D"}


@pytest.mark.parametrize(
    "overlay", [path for path in OVERLAYS["comparators"] if path.stem != "fastsam3d"], ids=lambda path: path.stem
)
def test_comparators_without_their_weights(study, tmp_path, overlay, capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path))
    args = comparator_run(study, tmp_path, overlay)
    assert main(args) == 2
    assert "weights not found: hf://" in capsys.readouterr().err
    record = json.loads((tmp_path / "eval_us/run.json").read_text())
    assert record["status"].startswith("weights not found: hf://")
    assert not (tmp_path / "eval_us/rows.csv").exists()


def comparator_run(study: Path, folder: Path, overlay: Path) -> list[str]:
    args = small(EXPERIMENTS / "eval_us.yaml", study, folder)
    args[3:3] = ["--config", str(overlay)]
    for option in ("--model.backbone", "--model.weights"):
        del args[args.index(option) : args.index(option) + 2]
    return args


def test_a_2d_method_meets_the_objects_that_ours_meets(runs, study, tmp_path):
    pytest.importorskip("transformers")
    from small_sam import SmallSam

    weights = tmp_path / "sam.safetensors"
    save_weights(SmallSam().build().sam, weights)
    args = comparator_run(study, tmp_path, EXPERIMENTS / "comparators" / "sam.yaml")
    args += ["--model.comparator", "small_sam.SmallSam", "--model.comparator.weights", str(weights)]
    assert main([*args, "--model.evaluation.clicks", "[1, 3]"]) == 0
    theirs, ours = (read_rows(folder / "eval_us/rows.csv") for folder in (tmp_path, runs))
    assert {row.method for row in theirs} == {"SAM"}
    assert [(r.case, r.class_name, r.clicks) for r in theirs] == [(r.case, r.class_name, r.clicks) for r in ours]
    assert all(row.points == row.clicks for row in ours)
    slices = {(row.case, row.class_name): row.points for row in theirs if row.clicks == 1}
    assert max(slices.values()) > 5
    assert all(row.points == row.clicks * slices[row.case, row.class_name] for row in theirs)


def test_protocols_and_what_they_change(runs, study, tmp_path):
    """The default spelt out changes no digit; the older script, patches around the first click, other inference do."""
    found = {}
    for overlay in OVERLAYS["protocols"]:
        args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path / overlay.stem)
        args[3:3] = ["--config", str(overlay)]
        args += ["--model.adapter", str(runs / "lora/adapter.safetensors"), "--model.evaluation.clicks", "[1, 3]"]
        assert main(args) == 0
        found[overlay.stem] = read_rows(tmp_path / overlay.stem / "eval_us/rows.csv")
    digits = {name: [(r.case, r.class_name, r.clicks, r.dice, r.hd95) for r in rows] for name, rows in found.items()}
    ours = [(r.case, r.class_name, r.clicks, r.dice, r.hd95) for r in read_rows(runs / "eval_us/rows.csv")]
    assert digits["sam_med3d_infer"] == ours
    assert digits["sam_med3d_paper"] != ours
    assert digits["first_click"] != ours
    assert digits["shifts"] != ours
    assert {row.method for row in found["shifts"]} == {"USCL-Med3D, 4 shifts"}
    assert digits["guided_filter"] != ours
    assert {row.method for row in found["guided_filter"]} == {"USCL-Med3D, guided filter"}
    assert digits["first_twice"] != ours
    assert {row.method for row in found["first_twice"]} == {"USCL-Med3D, first click twice"}
    best = {(r.case, r.class_name, r.clicks): r.dice for r in found["sam_med3d_paper"]}
    assert all(best[case, name, 3] >= best[case, name, 1] - 0.05 for case, name, _ in best), "the best of more masks"


def test_a_killed_test_is_resumed_and_redoes_nothing(runs, study, tmp_path, monkeypatch, capsys):
    from uscl.callbacks import scoring

    whole = read_rows(runs / "eval_us/rows.csv")
    objects = len(whole) // 2
    args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path)
    args += ["--model.adapter", str(runs / "lora/adapter.safetensors"), "--model.evaluation.clicks", "[1, 3]"]

    def killed_while_drawing(*_):
        raise RuntimeError("killed")

    scored, score = [], scoring.Reference.score

    def killed(*given):
        if len(scored) == 5:  # in the third object, between its two scores
            raise RuntimeError("killed")
        scored.append(given)
        return score(*given)

    monkeypatch.setattr(scoring.Reference, "score", killed)
    with pytest.raises(RuntimeError, match="killed"):
        main(args)
    folder = tmp_path / "eval_us"
    partial = folder / "rows.partial-0.csv"
    assert len(partial.read_text().splitlines()) == 4
    with partial.open("a") as stream:
        stream.write("phantom-ultrasound,a line that was cut")
    assert len(list(folder.glob("pictures/slices.partial-*.npz"))) == 2
    monkeypatch.setattr(scoring.Reference, "score", lambda *given: scored.append(given) or score(*given))
    assert main([*args, "--resume", "--data.classes", "[liver]"]) == 2
    assert "began with another data.init_args.classes" in capsys.readouterr().err
    scored.clear()
    assert main([*args, "--resume"]) == 0
    assert len(scored) == 2 * (objects - 1), "of the two that were done one is done again"
    assert [replace(row, seconds=0) for row in read_rows(folder / "rows.csv")] == [
        replace(row, seconds=0) for row in whole
    ]
    assert not partial.exists()
    assert not list(folder.glob("pictures/slices.partial-*.npz"))
    kept, wanted = (read_slices(of / "pictures/slices.npz") for of in (folder, runs / "eval_us"))
    assert kept.keys() == wanted.keys(), "pictures show what was scored before, too"
    assert all(np.array_equal(kept[title].predictions[3], wanted[title].predictions[3]) for title in wanted)
    assert main([*args, "--resume"]) == 2
    assert "has finished" in capsys.readouterr().err
    # Killed after everything was scored, before anything was written.
    args[args.index("--trainer.default_root_dir") + 1] = str(tmp_path / "late")
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "save_panels", killed_while_drawing)
        with pytest.raises(RuntimeError, match="killed"):
            main(args)
    scored.clear()
    assert main([*args, "--resume"]) == 0
    assert len(scored) == 2
    assert [replace(row, seconds=0) for row in read_rows(tmp_path / "late/rows.csv")] == [
        replace(row, seconds=0) for row in whole
    ]
    args[args.index("--trainer.default_root_dir") + 1] = str(tmp_path / "nothing")
    assert main([*args, "--resume"]) == 2
    assert "holds no run to go on with" in capsys.readouterr().err
    assert main([*small(EXPERIMENTS / "vcl.yaml", study, tmp_path), "--resume"]) == 2
    assert "resumed with --ckpt_path" in capsys.readouterr().err


def test_every_run_leaves_its_record(runs):
    for name, verb in VERBS.items():
        record = json.loads((runs / name / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["seed"] == 0
        assert record["uscl"]
        config = yaml.safe_load((runs / name / "config.yaml").read_text())
        assert config["model"]["init_args"]["backbone"] == "tiny"
        assert config["trainer"]["default_root_dir"] == str(runs / name)
        if verb != "predict":
            with (runs / name / "splits.csv").open() as stream:
                split = list(csv.DictReader(stream))
            assert Counter(row["split"] for row in split) == {"train": 2, "val": 2, "test": 2}
            assert len({(row["patient"], row["split"]) for row in split}) == 3
        assert (runs / name / "adapter.safetensors").exists() == (verb == "fit")
        assert (runs / name / "checkpoints" / "last.ckpt").exists() == (verb == "fit")


def test_metrics_are_logged(runs):
    header = (runs / "vcl/metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/prediction", "train/region_accuracy", "train/dead_positives"))
    header = (runs / "lora/metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("train/loss_epoch", "val/dice_1", "val/dice_2", "val/dice"))


def test_rows_table_and_pictures(runs):
    rows = read_rows(runs / "eval_us/rows.csv")
    assert {row.clicks for row in rows} == {1, 3}
    assert {row.method for row in rows} == {"USCL-Med3D"}
    assert {row.weights for row in rows} == {"random weights"}
    objects = {(row.case, row.class_name) for row in rows}
    assert len(rows) == 2 * len(objects) > 0
    pictures = {path.stem.replace("_", " ") for path in (runs / "eval_us/pictures").glob("*.png")}
    assert pictures == {row.class_name for row in rows} | {"worst"}
    assert "| USCL-Med3D |" in (runs / "eval_us/table.md").read_text()


def test_masks_lie_on_the_grid_of_their_image(runs, study):
    from uscl.data import read_image, read_label

    lines = (study / "prompts.csv").read_text().splitlines()[1:]
    masks = sorted((runs / "predict_us/masks").glob("*.nii.gz"))
    assert len(masks) == len(lines)
    for mask in masks:
        image = read_image(study / "imagesTs" / f"{mask.name.split('__')[0]}.nii.gz")
        assert read_label(mask).same_grid(image) is None


def test_order_changes_no_digit_and_every_method_meets_the_same_first_click(runs, study, tmp_path, monkeypatch):
    from uscl.data import VolumeDataModule
    from uscl.stages import lora_seg

    rollout, listed = lora_seg.evaluation_rollout, VolumeDataModule._list_objects
    met: dict[tuple[str, ...], list[object]] = {}

    def noted(segmenter, image, target, count, draw_for, *more):
        for step in rollout(segmenter, image, target, count, draw_for, *more):
            if step.number == 1:
                met.setdefault(draw_for.args, []).append(step.clicks[0])
            yield step

    monkeypatch.setattr(lora_seg, "evaluation_rollout", noted)
    monkeypatch.setattr(VolumeDataModule, "_list_objects", lambda *given: listed(*given)[::-1])
    found = {}
    for name, more in {"ours": ["--model.adapter", str(runs / "lora/adapter.safetensors")], "untouched": []}.items():
        args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path / name)
        assert main([*args, *more, "--model.evaluation.clicks", "[1, 3]"]) == 0
        found[name] = read_rows(tmp_path / name / "eval_us/rows.csv")
    before = read_rows(runs / "eval_us/rows.csv")
    assert [replace(row, seconds=0) for row in found["ours"]] == [replace(row, seconds=0) for row in before]
    assert {row.method for row in found["untouched"]} == {"SAM-Med3D"}
    assert {(row.case, row.class_name) for row in found["untouched"]} == {key[2:] for key in met}
    assert all(len(clicks) == 2 and clicks[0] == clicks[1] for clicks in met.values())


def test_workers_change_no_digit_of_the_rows(runs, study, tmp_path):
    args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path)
    args[args.index("--data.num_workers") + 1] = "2"
    adapter = str(runs / "lora/adapter.safetensors")
    assert main([*args, "--model.adapter", adapter, "--model.evaluation.clicks", "[1, 3]"]) == 0

    def without_seconds(folder: Path):
        rows = read_rows(folder / "eval_us/rows.csv")
        return [(r.case, r.class_name, r.clicks, r.dice, r.nsd, r.hd95) for r in rows]

    assert without_seconds(tmp_path) == without_seconds(runs)


@pytest.mark.parametrize("name", SCANS)
def test_scans_in_the_layout_of_their_data_set(name, scans, tmp_path):
    """The same small study through the offline experiment and, as if it were the download, through the paper's."""
    rows = []
    for config in (EXPERIMENTS / f"{name}.yaml", EXPERIMENTS / "paper" / f"{name}.yaml"):
        folder = tmp_path / config.parent.name
        args = [
            "test",
            "--config",
            str(config),
            "--model.backbone",
            "tiny",
            "--model.weights",
            "null",
            "--data.root",
            str(scans[SCANS[name]]),
            "--data.preprocessing.patch_size",
            "64",
            "--data.preprocessing.spacing",
            "[3, 3, 3]",
            "--data.num_workers",
            "0",
            "--model.evaluation.clicks",
            "[1]",
            "--trainer.default_root_dir",
            str(folder),
            "--trainer.accelerator",
            "cpu",
        ]
        one = "whole tumour" if name == "eval_brats" else "liver"
        if config.parent.name == "paper":  # few objects: scoring the scattered masks of random weights takes its time
            args += ["--data.classes", f"[{one}]"]
        else:
            args += ["--data.study.patients", "4"]
            args += [] if name == "eval_brats" else ["--data.classes", "[liver, spleen]"]
        assert main(args) == 0
        rows.append(read_rows(folder / "rows.csv"))
    keys = [[(row.data_set, row.case, row.class_name, row.dice) for row in some] for some in rows]
    assert [key for key in keys[0] if key[2] == one] == keys[1] != []
    classes = {row.class_name for row in rows[0]}
    if name == "eval_brats":
        assert classes == {"whole tumour", "tumour core", "enhancing tumour"}
    else:
        assert classes == {"liver", "spleen"}


@pytest.mark.parametrize(
    ("choice", "title"),
    [
        (["--model.tuning", "AdaptFormer", "--model.tuning.width", "8"], "SAM-Med3D + AdaptFormer"),
        (["--model.tuning", "FullTuning"], "SAM-Med3D, fully tuned"),
        (["--model.tuning.projections", "[q, k, v, out]", "--model.tuning.decoder_rank", "2"], "SAM-Med3D + LoRA"),
    ],
    ids=["adaptformer", "full", "lora"],
)
def test_every_tuning_method_from_the_command_line(choice, title, study, tmp_path):
    args = small(EXPERIMENTS / "lora.yaml", study, tmp_path)
    cut = args.index("--model.tuning.rank")
    args = args[:cut] + args[cut + 2 :]
    assert main(args + SMALL_STEPS + choice) == 0
    adapter = str(tmp_path / "lora/adapter.safetensors")
    args = small(EXPERIMENTS / "eval_us.yaml", study, tmp_path)
    assert (
        main([*args, "--model.adapter", adapter, "--model.evaluation.clicks", "[1]", "--data.classes", "[liver]"]) == 0
    )
    assert {row.method for row in read_rows(tmp_path / "eval_us/rows.csv")} == {title}


@pytest.mark.parametrize("dataset", ["amos", "totalsegmentator", "brats", "ultrasound"])
def test_fine_tuning_on_every_data_set(dataset, scans, study, tmp_path):
    """What data/README.md says of a download: the configuration of the embedded data, another data set and root."""
    root = study if dataset == "ultrasound" else scans[dataset]
    one = {"brats": "whole tumour"}.get(dataset, "liver")
    args = [
        "fit",
        "--config",
        str(EXPERIMENTS / "lora.yaml"),
        "--data",
        "VolumeDataModule",
        "--data.dataset",
        dataset,
        "--data.root",
        str(root),
        "--data.classes",
        f"[{one}]",
        "--data.patches_per_epoch",
        "2",
        "--data.preprocessing.patch_size",
        "64",
        "--data.preprocessing.spacing",
        "[3, 3, 3]",
        "--data.num_workers",
        "0",
        "--data.sampling.minimum_foreground",
        "20",
        "--model.backbone",
        "tiny",
        "--model.weights",
        "null",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.default_root_dir",
        str(tmp_path),
        *SMALL_STEPS,
        "--trainer.check_val_every_n_epoch",
        "2",
    ]
    assert main(args) == 0
    assert (tmp_path / "adapter.safetensors").is_file()
    assert (tmp_path / "checkpoints/last.ckpt").is_file(), "an epoch without validation is lost when a run is cut short"
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]
    assert config["class_path"].endswith("VolumeDataModule")
    assert config["init_args"]["dataset"] == dataset


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c.parent.name == "paper" and c.stem in VERBS], ids=lambda c: c.stem
)
def test_paper_experiments_run_with_a_smaller_backbone(config, runs, study, tmp_path):
    args = small(config, study, tmp_path)
    if config.stem == "vcl":
        args += SMALL_HEAD
    if config.stem == "lora":
        args += [
            "--model.clicks.count",
            "3",
            "--trainer.check_val_every_n_epoch",
            "1",
            "--model.evaluation.val_clicks",
            "[1]",
        ]
    if config.stem == "eval_us":
        args += ["--model.evaluation.clicks", "[1]"]
    assert main(args) == 0


def test_the_study_in_small_trains_as_the_paper_does(study, tmp_path, caplog):
    vcl, lora = STUDY
    assert main(small(vcl, study, tmp_path) + SMALL_HEAD) == 0
    args = small(lora, study, tmp_path) + SMALL_VALIDATION
    args += [
        "--model.vcl_adapter",
        str(tmp_path / "vcl/adapter.safetensors"),
        "--model.evaluation.val_clicks",
        "[1, 2]",
    ]
    assert main(args) == 0
    assert (tmp_path / "lora/adapter.safetensors").is_file()
    assert "model.clicks is not used" not in caplog.text
    assert main([*args, "--model.clicks.most", "3", "--trainer.default_root_dir", str(tmp_path / "both")]) == 0
    assert "model.clicks is not used" in caplog.text


@pytest.mark.parametrize("config", [*CONFIGS, *STUDY], ids=lambda c: "/".join(c.parts[-2:]))
def test_optimizers_are_written_out(config):
    """Defaults of one optimiser leak into another that the command line picks; a full list leaves nothing to leak."""
    optimizer = yaml.safe_load(config.read_text())["model"]["init_args"].get("optimizer")
    if VERBS.get(config.stem) == "fit":
        assert set(optimizer["init_args"]) == {"lr", "betas", "eps", "weight_decay", "amsgrad"}
    if config in PRETRAIN:
        assert set(optimizer["init_args"]) == {"lr", "matrix_lr", "momentum", "betas", "weight_decay"}


def test_a_second_run_gets_a_folder_of_its_own(runs, study, capsys):
    args = [
        *small(EXPERIMENTS / "eval_us.yaml", study, runs),
        "--model.evaluation.clicks",
        "[1]",
        "--data.classes",
        "[liver]",
    ]
    before = (runs / "eval_us/rows.csv").read_bytes()
    assert main(args) == 0
    assert (runs / "eval_us/rows.csv").read_bytes() == before
    assert {row.clicks for row in read_rows(runs / "eval_us-2/rows.csv")} == {1}


def test_overwrite_replaces_a_run_and_nothing_else(runs, study, tmp_path):
    args = [
        *small(EXPERIMENTS / "eval_us.yaml", study, tmp_path),
        "--model.evaluation.clicks",
        "[1]",
        "--data.classes",
        "[liver]",
    ]
    assert main(args) == 0
    (tmp_path / "eval_us" / "notes.txt").write_text("mine")
    assert main([*args, "--overwrite"]) == 0
    assert (tmp_path / "eval_us" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "eval_us-2").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    args[args.index("--trainer.default_root_dir") + 1] = str(tmp_path / "thesis")
    assert main([*args, "--overwrite"]) == 2
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
