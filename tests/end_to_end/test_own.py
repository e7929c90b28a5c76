"""A tuning method, a data set, a 3D comparator and a click protocol of one's own, from a folder outside the package.

Each in at most 40 lines of the files in own/: fit, save, load, sweep, prepare, test, report; all of them in the report.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from end_to_end.running import SMALL_STEPS, TINY, in_process, uscl
from safetensors import safe_open

from uscl.backbone import build_sam_med3d
from uscl.data import read_label, write_volume
from uscl.data.datasets import read_folder
from uscl.errors import InputError
from uscl.evaluation import read_rows
from uscl.serving import Predictor
from uscl.tuning import load_adapter

OWN = Path(__file__).parent / "own"
DATA = "--data VolumeDataModule --data.dataset own_data.read_clinic --data.root clinic"
PROTOCOL = "--model.evaluation.protocol own_protocol.BorderClicks --model.evaluation.protocol.inside_first 1"
TEST = f'{TINY} {DATA} --data.classes "[liver]" --model.evaluation.clicks "[1, 2]" {PROTOCOL}'
STEPS = f"""
    {TINY} {SMALL_STEPS} --data.patches_per_epoch 4 --data.sampling.minimum_foreground 20 --trainer.max_epochs 1
    --model.tuning own_dora.DoRA
"""


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory) -> Path:
    """Somebody's folder: the four files, and sweeps in a layout of its own."""
    folder = tmp_path_factory.mktemp("lab")
    for file in OWN.glob("*.py"):
        shutil.copy(file, folder)
    for case in read_folder(study).cases:
        (folder / "clinic" / case.patient).mkdir(parents=True, exist_ok=True)
        visit = folder / "clinic" / case.patient / case.name.removeprefix(f"{case.patient}_")
        shutil.copy(case.image, f"{visit}.nii.gz")
        label = read_label(case.label)
        kept = label.array * ((label.array == 3) | (label.array == 5))
        write_volume(f"{visit}_mask.nii.gz", label.with_array(kept.astype("uint8")))
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("uscl.cli.follow_up.subprocess.run", in_process)
    return folder


def fit(run: str) -> int:
    """Stage 2 with DoRA, as a user types it: the experiment comes with the package."""
    line = f"fit --config experiments/lora.yaml {DATA} {STEPS} --model.tuning.rank 2"
    tests = json.dumps([f"experiments/eval_us.yaml {TEST}"])
    return uscl(f"{line} --trainer.default_root_dir {run}", "--test_with", tests)


@pytest.fixture
def trained(here) -> Path:
    if not (here / "runs/dora").is_dir():
        assert fit("runs/dora") == 0
    return here / "runs/dora"


@pytest.mark.parametrize("file", sorted(OWN.glob("*.py")), ids=lambda file: file.stem)
def test_nothing_takes_more_than_40_lines(file):
    assert len(file.read_text().splitlines()) <= 40


def test_the_method_changes_nothing_before_it_is_trained(here):
    from own_dora import DoRA

    plain, tuned = (build_sam_med3d("tiny").eval() for _ in range(2))
    tuned.load_state_dict(plain.state_dict())
    DoRA(rank=2).apply(tuned)
    image = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tuned.encode_image(image), plain.encode_image(image))


def test_an_adapter_is_loaded_again_where_its_class_is_named_and_nowhere_else(trained, capsys, caplog):
    from own_dora import DoRA

    file = trained / "adapter.safetensors"
    with safe_open(file, "pt") as stream:
        described = json.loads(stream.metadata()["adapter"])
    assert described["tuning"]["encoder"] == {"method": "own_dora.DoRA", "rank": 2, "modules": "both"}
    with pytest.raises(InputError, match=r"tuning method own_dora\.DoRA, which is none of uscl's"):
        load_adapter(file)
    assert load_adapter(file, [DoRA]).tuning["decoder"] == DoRA(rank=2)
    line = f"test --config experiments/eval_us.yaml {TEST} --model.adapter {file} --trainer.default_root_dir runs/x"
    assert uscl(line) == 2
    assert "--model.tuning own_dora.DoRA" in capsys.readouterr().err
    image = next(path for path in Path("clinic").glob("*/*.nii.gz") if "_mask" not in path.name)
    line = f"segment {image} --points 32,32,6 --out masks/m.nii.gz --adapter {file} --weights null --overwrite"
    assert uscl(line) == 2
    assert uscl(f"{line} --tuning own_dora.DoRA") == 0
    predictor = Predictor(weights=None, adapter=file, tuning=DoRA)
    assert any(".dora_A" in name for name in predictor.trunk.model.state_dict())


def test_the_adapter_that_is_tested_is_the_one_that_was_trained(trained):
    rows = read_rows(trained / "tests/eval_us/rows.csv")
    assert {row.method for row in rows} == {"SAM-Med3D + DoRA"}
    assert {row.data_set for row in rows} == {"clinic"}
    assert {"clicks by own_protocol.BorderClicks(inside_first=1)" in row.protocol for row in rows} == {True}
    record = json.loads((trained / "run.json").read_text())
    wanted = {"family": "DoRA", "modules": "both", "rank": 2, "vcl": False, "label": "SAM-Med3D + DoRA"}
    assert (record["setting"], record["data_set"]) == (wanted, "clinic")


def test_a_sweep_over_the_ranks_of_the_method(here, monkeypatch):
    monkeypatch.setattr("uscl.cli.commands.sweep.subprocess.run", in_process)
    content = {
        "command": ["uscl", "fit", "--config", "experiments/lora.yaml", "--model.tuning=own_dora.DoRA", "${args}"],
        "method": "grid",
        "metric": {"name": "val/dice", "goal": "maximize"},
        "parameters": {"model.tuning.rank": {"values": [3, 4]}},
    }
    Path("ranks.yaml").write_text(yaml.safe_dump(content))
    small = STEPS.replace("--model.tuning own_dora.DoRA", "")
    assert uscl(f"sweep ranks.yaml --out runs/ranks {DATA} {small}") == 0
    ranks = {load_rank(here / f"runs/ranks/rank-{rank}/adapter.safetensors") for rank in (3, 4)}
    assert ranks == {3, 4}


def load_rank(file: Path) -> int:
    from own_dora import DoRA

    return load_adapter(file, [DoRA]).tuning["encoder"].rank


def test_the_data_set_is_prepared_and_trained_on(here):
    pytest.importorskip("blosc2")
    small = '--preprocessing.spacing "[3, 3, 3]" --preprocessing.patch_size 64'
    assert uscl(f"prepare own_data.read_clinic --root clinic --out store {small}") == 0
    line = f"fit --config experiments/lora.yaml --config experiments/data/prepared.yaml --data.root store {STEPS}"
    assert uscl(f"{line} --model.tuning.rank 2 --trainer.default_root_dir runs/prepared") == 0
    assert json.loads(Path("runs/prepared/run.json").read_text())["data_set"] == "clinic"


def test_a_comparator_that_takes_volumes_gets_them_with_their_geometry(here):
    line = f"test --config experiments/eval_us.yaml --model ComparatorModule {TEST}".replace(
        "--model.backbone tiny --model.weights null", "--model.comparator own_comparator.Growing"
    )
    assert uscl(f"{line} --trainer.default_root_dir runs/growing") == 0
    rows = read_rows(Path("runs/growing/rows.csv"))
    assert {row.method for row in rows} == {"Region growing"}
    assert all(0 < row.dice < 1 for row in rows), "it grows over speckle, on the grid of the file"


def test_all_of_them_are_in_the_report(trained):
    if not Path("runs/growing").is_dir():
        test_a_comparator_that_takes_volumes_gets_them_with_their_geometry(trained)
    line = f"test --config experiments/eval_us.yaml {TEST} --trainer.default_root_dir runs/untouched --overwrite"
    assert uscl(line) == 0
    assert uscl("report runs/dora runs/growing runs/untouched --out report --clicks 2") == 0
    text = Path("report/report.md").read_text()
    tables = {part.partition("\n")[0]: part for part in text.split("## ")[1:]}
    for name in ("Table 1", "Table 3", "Table 4", "Cost"):
        part = next(part for title, part in tables.items() if title.startswith(name))
        assert "SAM-Med3D + DoRA (encoder and decoder, rank 2)" in part, name
    first = next(part for title, part in tables.items() if title.startswith("Table 1"))
    assert "| Region growing | 2 |" in first
    assert "| SAM-Med3D | 2 |" in first
    assert "clicks by own_protocol.BorderClicks(inside_first=1)" in first
    assert "classes of clinic" in first
    assert "| 2, SAM-Med3D + DoRA |" in next(part for title, part in tables.items() if title.startswith("Table 5"))
