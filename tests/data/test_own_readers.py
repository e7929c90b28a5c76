"""Readers of one's own: what they return is checked before anything is prepared or trained on."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from uscl.data.datasets import Case, DataSet
from uscl.data.registry import read_data_set
from uscl.errors import InputError

CASE = Case("a", Path("a.nii.gz"), Path("b.nii.gz"), "p")


@pytest.fixture
def read(monkeypatch):
    def read(*cases):
        module = ModuleType("own_reader")
        module.read = lambda root, modality: cases[0] if cases and cases[0] is None else DataSet("own", cases, {1: "x"})
        monkeypatch.setitem(sys.modules, "own_reader", module)
        return read_data_set("own_reader.read", Path())

    return read


def test_a_data_set_of_ones_own(read):
    other = replace(CASE, name="b", label=None, split="test")
    assert read(CASE, other).cases == (CASE, other)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ((None,), "its reader returned None; expected a uscl.data.datasets.DataSet"),
        (("a.nii.gz",), "its reader listed 'a.nii.gz'; expected a uscl.data.datasets.Case"),
        ((replace(CASE, name=3),), "expected a uscl.data.datasets.Case"),
        ((replace(CASE, image="a.nii.gz"),), "case a: image and label must be paths"),
        ((replace(CASE, label="b.nii.gz"),), "case a: image and label must be paths"),
        ((replace(CASE, split="training"),), "case a: split is 'training'; expected train, val, test or None"),
        ((replace(CASE, name="../a"),), "'../a' is no name for a case"),
        ((replace(CASE, name=""),), "'' is no name for a case"),
        ((replace(CASE, name=".a"),), "'.a' is no name for a case"),
        ((CASE, replace(CASE, image=Path("c.nii.gz"))), "own: several cases are called a"),
    ],
)
def test_what_cannot_be_used_is_refused(read, cases, message):
    with pytest.raises(InputError, match=message):
        read(*cases)
