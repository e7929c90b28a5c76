"""Does it matter for stage 2 whether labels were drawn on every frame or on five?

The training sweeps of a phantom study are labelled from five key frames each, flagged frames left out; the same LoRA is
trained on these and on the full labels, with the same seed and as many steps; both are tested on the test sweeps' own
labels (`experiments/eval_us.yaml`). Interrupted, it goes on.

    python benchmarks/pseudo_label_training.py runs/ablation/data --out runs/pseudo_label_training [--epochs 10]
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from uscl.data.datasets.ultrasound import COLUMNS, read_ultrasound
from uscl.data.volume import read_image, read_label
from uscl.evaluation import read_rows
from uscl.evaluation.statistics import estimate, samples_of
from uscl.pseudo_label.output import write_pairs
from uscl.pseudo_label.propagation import Propagation
from uscl.pseudo_label.sweep import frames_of, label_sweep

KEYS, LEAST_FRAMES, CLICKS = 5, 8, 10


def main() -> None:
    """Labels, trains twice, tests twice, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    out: Path = arguments.out
    write_studies(arguments.root, out)
    rows: dict[str, Path] = {}
    for kind in ("full", "pseudo"):
        data = [
            "--data",
            "VolumeDataModule",
            "--data.dataset",
            "ultrasound",
            "--data.root",
            str(out / kind),
            "--data.split.val_fraction",
            "0",
        ]
        fit, test = (out / f"{verb}-{kind}-{arguments.epochs}" for verb in ("fit", "test"))
        _run(
            fit,
            "fit",
            "--config",
            "experiments/ablation/lora.yaml",
            *data,
            "--trainer.max_epochs",
            str(arguments.epochs),
            "--trainer.limit_val_batches",
            "0",
            "--test_with",
            "[]",
        )
        _run(
            test,
            "test",
            "--config",
            "experiments/eval_us.yaml",
            *data,
            "--model.adapter",
            str(fit / "adapter.safetensors"),
        )
        rows[kind] = test / "rows.csv"
    named = [f"{kind} labels={path}" for kind, path in rows.items()]
    subprocess.run([sys.executable, "benchmarks/compare.py", *named, "--out", str(out / "table.md")], check=True)
    full, pseudo = (estimate(samples_of(read_rows(path), CLICKS)).mean for path in rows.values())
    print(f"Dice at {CLICKS} clicks with pseudo-labels over that with full labels: {pseudo / full:.3f}")


def write_studies(root: Path, out: Path) -> None:
    """Writes two manifests with the same test sweeps: training sweeps with full labels, and with pseudo-labels."""
    data_set = read_ultrasound(root)
    training = [case for case in data_set.cases if case.split == "train"]
    others = [
        _row(case.name, case.patient, case.image, case.label, "test") for case in data_set.cases if case.split == "test"
    ]
    full, pseudo = list(others), list(others)
    for case in track(training, "Labelling training sweeps"):
        assert case.label is not None
        full.append(_row(case.name, case.patient, case.image, case.label, "train"))
        folder = out / "labelled" / case.name
        if not (folder / "pairs.json").is_file():
            volume, truth = read_image(case.image), read_label(case.label).array.transpose(2, 1, 0)
            frames = frames_of(volume)
            keys = np.unique(np.linspace(0, len(frames) - 1, KEYS).round().astype(int)).tolist()
            made = label_sweep(
                frames, {t: truth[t] for t in keys}, data_set.label_names, Propagation(), volume.spacing[1::-1]
            )
            folder.mkdir(parents=True, exist_ok=True)
            pairs = write_pairs(folder, volume, made, case.name, False, LEAST_FRAMES)
            (folder / "pairs.json").write_text(json.dumps([[name, str(i), str(k)] for name, i, k in pairs]))
        for name, image, label in json.loads((folder / "pairs.json").read_text()):
            pseudo.append(_row(name, case.patient, Path(image), Path(label), "train"))
    for kind, rows in (("full", full), ("pseudo", pseudo)):
        (out / kind).mkdir(parents=True, exist_ok=True)
        with (out / kind / "sweeps.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        labels = {"background": 0} | {name: number for number, name in data_set.label_names.items()}
        (out / kind / "dataset.json").write_text(json.dumps({"name": data_set.name, "labels": labels}))
    frames = sum(read_image(row["image"]).shape[2] for row in pseudo if row["split"] == "train")
    print(f"{len(training)} training sweeps; with pseudo-labels {len(pseudo) - len(others)} pairs of {frames} frames")


def _row(name: str, patient: str, image: Path, label: Path | None, split: str) -> dict[str, str]:
    places = {"image": str(image.resolve()), "label": str(label.resolve()) if label else ""}
    return {**dict.fromkeys(COLUMNS, ""), "patient": patient, "sweep": name, "split": split, **places}


def _run(folder: Path, *arguments: str | Sequence[str]) -> None:
    record = folder / "run.json"
    if record.is_file() and json.loads(record.read_text()).get("status") == "finished":
        return
    command = [sys.executable, "-m", "uscl", *map(str, arguments), "--trainer.default_root_dir", str(folder)]
    subprocess.run([*command, "--overwrite"], check=True)


if __name__ == "__main__":
    main()
