"""`uscl comparators`: what a user with the published files runs first."""

import hashlib

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file
from small_sam import SmallSam, SmallSamMed2D
from small_seggpt import SMALL, random_weights

from uscl.cli import main
from uscl.cli.commands import comparators as command
from uscl.comparators import Published
from uscl.pseudo_label.seggpt import SegGptSettings
from uscl.pseudo_label.seggpt_network import SegGpt
from uscl.registry import Registry


class Disc(SmallSam):
    """Segments what is bright; its weights are random and not asked."""

    def build(self):
        model = super().build()
        model.encode = lambda images: images[:, :1]
        model.decode = lambda embeddings, points, labels, masks=None: (
            torch.nn.functional.interpolate(embeddings, (32, 32), mode="bilinear").expand(-1, 3, -1, -1),
            torch.tensor([[0.1, 0.2, 0.3]]).expand(len(embeddings), -1),
        )
        return model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two methods with files in place: one that segments, one that does not; a third whose file is absent."""
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("COLUMNS", "240")
    (tmp_path / "weights/a/b").mkdir(parents=True)
    model = SmallSam().build()
    files = {}
    for name in ("good", "bad"):
        files[name] = tmp_path / "weights/a/b" / f"{name}.pth"
        torch.save(model.sam.state_dict(), files[name])
    sha = hashlib.sha256(files["good"].read_bytes()).hexdigest()
    hashes = {"good": sha, "bad": None, "absent": sha}
    methods = {}
    for name, kind in {"good": Disc, "bad": SmallSam, "absent": SmallSam}.items():
        place = Published(f"hf://a/b/{name}.pth", "nowhere", None, hashes[name], "CC0")
        methods[name] = type(name, (kind,), {"published": property(lambda self, place=place: place)})()
    monkeypatch.setattr(command, "COMPARATORS", Registry("comparator", methods, lambda _: True, ""))
    return files


def test_list_says_what_is_here(here, capsys):
    assert main(["comparators", "list"]) == 0
    text = capsys.readouterr().out
    assert str(here["good"]) in text
    assert "hf://a/b/absent.pth" in text


def test_selftest_checks_hash_load_and_a_slice(here, capsys):
    assert main(["comparators", "selftest", "good"]) == 0
    assert "as published" in capsys.readouterr().out
    assert main(["comparators", "selftest"]) == 2
    out, err = capsys.readouterr()
    assert "weights not found: hf://a/b/absent.pth" in out
    assert "none published" in out
    assert "1 self-tests failed; bad: Dice" in err
    assert main(["comparators", "selftest", "absent"]) == 2
    assert "not on this machine" in capsys.readouterr().err
    # Another file under a published name is told, even if it works.
    assert main(["comparators", "selftest", "absent", "--weights", str(here["bad"])]) == 2
    state = torch.load(here["good"])
    torch.save({**state, "something_else": torch.ones(1)}, here["good"])
    assert main(["comparators", "selftest", "good"]) == 2
    out, err = capsys.readouterr()
    assert "differs: " in out
    assert "is not the published file" in err
    state.pop(next(iter(state)))
    torch.save(state, here["good"])
    assert main(["comparators", "selftest", "good"]) == 2
    assert "1 missing" in capsys.readouterr().err


def test_seggpt_is_listed_and_tested_like_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("USCL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr(command, "_SEGGPT_SETTINGS", SegGptSettings(memory=0, extrapolate=True, size=SMALL))
    assert main(["comparators", "list"]) == 0
    assert "hf://BAAI/seggpt-vit-large/model.safetensors" in capsys.readouterr().out
    assert main(["comparators", "selftest", "seggpt"]) == 2
    assert "not on this machine" in capsys.readouterr().err
    placed = tmp_path / "weights/BAAI/seggpt-vit-large/model.safetensors"
    placed.parent.mkdir(parents=True)
    random_weights(placed)
    assert main(["comparators", "selftest", "seggpt"]) == 2
    assert "seggpt: Dice 0." in capsys.readouterr().err, "random weights paint no disc"
    monkeypatch.setattr(SegGpt, "forward", lambda self, images, masks, queries, prompt_type: 10 * queries)
    assert main(["comparators", "selftest", "seggpt"]) == 0
    out = capsys.readouterr().out
    assert "none published; this file's is" in out.replace("\n", "")
    monkeypatch.setattr(command, "_SEGGPT_SETTINGS", SegGptSettings())
    assert main(["comparators", "selftest", "seggpt", "--weights", "absent.pth"]) == 2
    assert "absent.pth: no such checkpoint file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nonsense"], ["convert", "a.pth"], ["list", "all"], ["selftest", "--weights", "x"]])
def test_what_is_not_understood_is_reported(words, capsys):
    assert main(["comparators", *words]) == 2
    assert "expected `list`" in capsys.readouterr().err


def test_no_such_method(capsys):
    assert main(["comparators", "selftest", "sam_vit_x"]) == 2
    assert "choose of sam_vit_b" in capsys.readouterr().err


def test_a_pickle_is_converted_once_and_nothing_overwritten(tmp_path, capsys):
    model = SmallSamMed2D().build()
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    torch.save({"model": model.state_dict(), "optimizer": optimiser}, tmp_path / "b.pth")
    out = tmp_path / "new" / "b.safetensors"
    assert main(["comparators", "convert", str(tmp_path / "b.pth"), "--out", str(out)]) == 0
    found = load_file(out)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())
    for arguments, message in (
        ([str(tmp_path / "b.pth"), "--out", str(out)], "is there already"),
        ([str(tmp_path / "absent.pth"), "--out", str(tmp_path / "c.safetensors")], "no such checkpoint"),
        ([str(tmp_path / "b.pth"), "--out", str(tmp_path / "c.pth")], "must end in .safetensors"),
    ):
        assert main(["comparators", "convert", *arguments]) == 2
        assert message in capsys.readouterr().err
