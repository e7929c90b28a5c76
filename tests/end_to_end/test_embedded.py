"""The weights that come with the package: the file is the card's, and it segments what the card says."""

import json
from pathlib import Path

import pytest

import uscl
from uscl.backbone import EMBEDDED, RANDOM_WEIGHTS, load_trunk
from uscl.backbone.checkpoints import file_sha256
from uscl.backbone.trunk import embedded_weights
from uscl.cli import main
from uscl.errors import InputError
from uscl.evaluation import read_rows

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FOLDER = Path(uscl.__file__).parent / "backbone" / "embedded"
CARDS = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("mini", "mini_fine")}


def test_every_embedded_file_has_its_card():
    assert {file.stem for file in FOLDER.glob("*.safetensors")} == CARDS.keys()


@pytest.mark.parametrize("name", CARDS)
def test_the_file_is_the_one_of_the_card(name):
    file, card = embedded_weights(name), CARDS[name]
    assert file.stat().st_size <= 10_000_000
    assert file_sha256(file) == card["sha256"]
    assert card["licence"] == "Apache-2.0"
    assert "phantoms only" in card["data"]
    trunk = load_trunk(name, EMBEDDED)
    assert trunk.weights == f"{name}.safetensors sha256:{card['sha256'][:12]}"
    assert trunk.fingerprint != load_trunk(name, None).fingerprint


@pytest.mark.parametrize("name", CARDS)
def test_the_card_says_what_was_measured_and_on_how_much(name):
    means = [line for line in CARDS[name]["figures"] if line["class"] == "mean over classes"]
    groups = {(line["group"], line["inference"]): line for line in means}
    phantoms = ("phantom CT", "phantom MR", "phantom tumours", "phantom ultrasound")
    assert {(group, "published") for group in phantoms} <= set(groups)
    assert groups["phantom CT", "published"]["n"] + groups["phantom MR", "published"]["n"] >= 40
    text = (FOLDER / f"{name}.md").read_text()
    for (group, inference), line in groups.items():
        cells = [f"{100 * line[f'dice_{clicks}'][0]:.1f}" for clicks in (1, 3, 5, 10)]
        row = next(row for row in text.splitlines() if row.startswith(f"| {group} | {inference} |"))
        assert all(cell in row for cell in cells), f"{group}: the card's table is not the card's data"


def test_no_weights_for_other_backbones():
    with pytest.raises(InputError, match="no weights are embedded for the backbone vit_b_ori"):
        load_trunk("vit_b_ori", EMBEDDED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_dice_of_the_card_on_a_fixed_case(name, full_scans, tmp_path):
    """A patient that training never met, through the command line with nothing but defaults."""
    card = CARDS[name]
    args = [
        "test",
        "--config",
        str(EXPERIMENTS / "eval_amos.yaml"),
        "--data.root",
        str(full_scans["amos"]),
        "--data.study.patients",
        "4",
        "--data.classes",
        f"[{', '.join(card['checked'])}]",
        "--model.backbone",
        name,
        "--model.evaluation.clicks",
        "[1, 10]",
        "--trainer.default_root_dir",
        str(tmp_path / "run"),
        "--trainer.accelerator",
        "cpu",
        "--data.num_workers",
        "0",
    ]
    assert main(args) == 0
    rows = read_rows(tmp_path / "run" / "rows.csv")
    assert all(row.weights.startswith(f"{name}.safetensors sha256:") and row.weights != RANDOM_WEIGHTS for row in rows)
    found = {(row.class_name, row.clicks): row.dice for row in rows}
    for organ, (at_1, _) in card["checked"].items():
        assert found[organ, 1] == pytest.approx(at_1, abs=0.02), organ
    # A rounding error moves the next click, and with it all that follow: the tenth agrees less closely, and on average.
    first, tenth = (sum(found[organ, clicks] for organ in card["checked"]) / len(card["checked"]) for clicks in (1, 10))
    assert tenth == pytest.approx(sum(at_10 for _, at_10 in card["checked"].values()) / len(card["checked"]), abs=0.15)
    assert tenth > first
