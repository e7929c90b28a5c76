"""Tuning methods of one's own: what an adapter can hold comes back, what it cannot is refused before training."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from uscl.errors import InputError
from uscl.stages import LoRASegModule
from uscl.tuning import AdaptFormer, FullTuning, LoRA, TuningMethod, check_method
from uscl.tuning.settings import restore_method, settings_of


@dataclass(frozen=True)
class Part:
    width: int = 3
    names: tuple[str, ...] = ("a",)


class Own(TuningMethod):
    title: ClassVar[str] = "Own"

    def insert(self, model, part):
        """Nothing."""

    def owns(self, name):
        return False


@dataclass(frozen=True)
class Nested(Own):
    modules: str = "both"
    rank: int = 2
    part: Part = Part()
    other: Part | None = None
    sizes: tuple[tuple[int, ...], ...] = ((1, 2), (3,))
    parts: tuple[Part, ...] = (Part(5),)


METHODS = [
    LoRA(3, projections=("k", "mlp"), dropout=0.5),
    AdaptFormer(7),
    FullTuning("decoder"),
    Nested(part=Part(4, ("b", "c")), other=Part()),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_settings_survive_json(method):
    check_method(method)
    settings = json.loads(json.dumps(settings_of(method)))
    assert settings.pop("method") == f"{type(method).__module__}.{type(method).__name__}"
    assert restore_method(type(method), settings) == method


class Renamed(LoRA):
    title = "mine"


def test_a_subclass_without_settings_needs_no_decorator():
    check_method(Renamed(3))
    assert restore_method(Renamed, {"rank": 3}) == Renamed(3)


class Plain(Own):
    modules = "both"


@dataclass(frozen=True)
class Untitled(Own):
    title: ClassVar[None] = None
    modules: str = "both"


@dataclass(frozen=True)
class Elsewhere(Own):
    modules: str = "neck"


@dataclass(frozen=True)
class Named(Own):
    modules: str = "both"
    method: str = "mine"


@dataclass(frozen=True)
class Function(Own):
    modules: str = "both"
    act: object = print


@dataclass(frozen=True)
class Keyed(Own):
    modules: str = "both"
    ranks: object = None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Plain(), r"Plain: an adapter would not hold modules, rank, for it is no dataclass; write @dataclass"),
        (Untitled(), "Untitled: has no title"),
        (Elsewhere(), "Elsewhere: needs a field `modules`, one of encoder, decoder, both; found 'neck'"),
        (Named(), "Named: no field may be called `method`"),
        (Function(), "Function: an adapter cannot hold its settings"),
        (Keyed(ranks={1: 2}), "Keyed: an adapter would hold"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Own) else "",
)
def test_what_an_adapter_cannot_hold_is_refused_before_training(method, message):
    with pytest.raises(InputError, match=message):
        LoRASegModule("tiny", tuning=method)
