"""Runs on disk for reports to read, of figures that are known."""

import csv
import json
import math
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from uscl.evaluation.cost import Cost
from uscl.evaluation.rows import OWN_INFERENCE, ResultRow, read_rows, write_rows

PATIENTS = 6


def untied(folder: Path, patient: int) -> float:
    """Too little to show, and 0 over the patients: with ties Wilcoxon's test takes a hundred times as long."""
    return (zlib.crc32(folder.name.encode()) % 50) * (patient - (PATIENTS - 1) / 2) * 2e-6


def write_run(
    folder: Path,
    method: str | None,
    dice: dict[str, float],
    seed: int = 0,
    modules: str = "both",
    rank: int = 32,
    vcl: bool = False,
    status: str = "finished",
    bytes_: int = 2**30,
    seconds: float = 1.0,
    epochs: int = 5,
) -> Path:
    """A training with tests on some data sets, or the test of an untouched backbone."""
    folder.mkdir(parents=True)
    tuning = (
        None
        if method is None
        else {
            "class_path": f"uscl.tuning.{method}",
            "init_args": {"modules": modules, **({"rank": rank} if method == "LoRA" else {})},
        }
    )
    options = {"tuning": tuning, "vcl_adapter": "stage1.safetensors" if vcl else "", "adapter": None, "seed": None}
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": epochs},
        "model": {"class_path": "uscl.stages.LoRASegModule", "init_args": options},
        "data": {"class_path": "X", "init_args": {"root": "here", "seed": None}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    setting = {"family": "Baseline"}
    if method is not None:
        setting = {"family": method, "modules": modules, "rank": rank if method == "LoRA" else 0, "vcl": vcl}
    (folder / "run.json").write_text(json.dumps({"status": status, "setting": setting, "data_set": "sweeps"}))
    for name, value in dice.items():
        rows = [
            ResultRow(
                name,
                f"case{p}",
                organ,
                "m",
                clicks,
                value + 0.01 * p + 0.001 * seed - 0.2 * (clicks == 1) + untied(folder, p),
                0.5,
                3.0,
                1.0,
                f"p{p}",
                "mini",
                clicks,
                0.1,
                "published",
                distances="measured",
            )
            for p in range(PATIENTS)
            for organ in ("liver", "spleen")
            for clicks in (1, 10)
        ]
        below = folder if method is None else folder / "tests" / name
        below.mkdir(parents=True, exist_ok=True)
        write_rows(below / "rows.csv", rows)
        if method is not None:
            (below / "run.json").write_text(json.dumps({"status": "finished"}))
    if method is not None:
        cost = Cost(
            seconds, 2 / seconds, 40, 2, 1, "H200", "32-true", bytes_, 1, 1000, {"image_encoder": 10}, 5, 3, None
        )
        (folder / "cost.json").write_text(json.dumps(asdict(cost)))
    return folder


def write_study(root: Path) -> Path:
    """Three seeds of the settings that claims rest on: VCL adds 0.1, encoder or decoder alone cost 0.2."""
    for name, value in {"sweeps": 0.3, "AMOS22": 0.7, "BraTS": 0.6}.items():
        write_run(root / "untouched" / name, None, {name: value})
    for seed in range(3):
        for vcl in (True, False):
            for modules in ("encoder", "decoder", "both"):
                dice = {"sweeps": 0.5 + 0.1 * vcl + 0.2 * (modules == "both") - 0.05 * (modules == "decoder")}
                if modules == "both" and vcl:
                    dice |= {"AMOS22": 0.65, "BraTS": 0.6}
                write_run(root / "a" / f"{modules}{vcl}{seed}", "LoRA", dice, seed, modules, vcl=vcl)
        write_run(
            root / "a" / f"full{seed}",
            "FullTuning",
            {"sweeps": 0.9, "AMOS22": 0.4, "BraTS": 0.5},
            seed,
            bytes_=3 * 2**30,
            seconds=1.05,
        )
        write_run(root / "a" / f"rank64{seed}", "LoRA", {"sweeps": 0.81}, seed, rank=64, vcl=True)
    write_run(root / "a" / "rank8", "LoRA", {"sweeps": 0.4}, 0, rank=8, vcl=True)
    return root


def table(file: Path) -> dict[tuple[str, str], dict[str, str]]:
    with file.open() as stream:
        return {(row["row"], row["column"]): row for row in csv.DictReader(stream)}


def write_comparator(folder: Path, method: str, data_set: str, status: str = "finished") -> None:
    folder.mkdir(parents=True)
    config = {
        "seed_everything": 0,
        "model": {"class_path": "uscl.comparators.module.ComparatorModule", "init_args": {}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    noted = {"setting": {"family": method}} if status == "finished" else {"method": method}
    (folder / "run.json").write_text(json.dumps({"status": status, **noted}))
    if status == "finished":
        write_rows(
            folder / "rows.csv",
            [
                ResultRow(
                    data_set,
                    f"case{p}",
                    organ,
                    method,
                    clicks,
                    0.55 + 0.04 * clicks,
                    0.5,
                    math.inf,
                    1.0,
                    f"p{p}",
                    "other",
                    20 * clicks,
                    -0.25,
                    OWN_INFERENCE,
                    distances="measured",
                )
                for p in range(PATIENTS)
                for organ in ("liver", "spleen")
                for clicks in (1, 10)
            ],
        )


def rewrite(test: Path, **words: str) -> None:
    write_rows(test / "rows.csv", [replace(row, **words) for row in read_rows(test / "rows.csv")])


def folders_on(study: Path, data_set: str) -> list[Path]:
    return sorted(path.parent for path in study.rglob("rows.csv") if path.parent.name == data_set)
