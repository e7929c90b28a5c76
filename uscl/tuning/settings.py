"""The settings of tuning methods as adapters keep them: JSON, and back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

from uscl.errors import InputError
from uscl.registry import hidden_settings
from uscl.tuning.method import Modules, TuningMethod


def class_path(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def settings_of(method: TuningMethod) -> dict[str, Any]:
    """The class of a tuning method, as ``method``, and its fields."""
    return {"method": class_path(type(method)), **asdict(cast("Any", method))}


def restore_method(kind: type[TuningMethod], settings: dict[str, Any]) -> TuningMethod:
    """A tuning method from what JSON kept of its fields."""
    return cast("TuningMethod", _restored(kind, settings))


def _restored(hint: Any, value: Any) -> Any:
    """A value as its annotation has it: JSON knows neither tuples nor dataclasses."""
    if isinstance(value, list):
        inner = next((get_args(one) for one in (hint, *get_args(hint)) if get_origin(one) is tuple), ())
        return tuple(_restored(next(iter(inner), None), entry) for entry in value)
    nested = next((one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one)), None)
    if isinstance(value, dict) and nested is not None:
        try:
            hints = get_type_hints(nested)
        except NameError:  # of what is imported for type checkers alone
            hints = {}
        return nested(**{name: _restored(hints.get(name), entry) for name, entry in value.items()})
    return value


def check_method(method: TuningMethod) -> None:
    """Checks that a tuning method can be saved and loaded again, before anything is trained.

    Raises:
        InputError: it is no dataclass, lacks ``title`` or ``modules``, or has settings that an adapter cannot hold.
    """
    kind, parts = class_path(type(method)), get_args(Modules)
    if hidden := hidden_settings(type(method)):
        raise InputError(
            f"tuning method {kind}: an adapter would not hold {', '.join(hidden)}, for it is no dataclass; write "
            "@dataclass(frozen=True) above it"
        )
    if not isinstance(getattr(method, "title", None), str):
        raise InputError(f"tuning method {kind}: has no title; give it the name that tables show")
    if getattr(method, "modules", None) not in parts:
        found = getattr(method, "modules", None)
        raise InputError(f"tuning method {kind}: needs a field `modules`, one of {', '.join(parts)}; found {found!r}")
    if any(entry.name == "method" for entry in fields(cast("Any", method))):
        raise InputError(f"tuning method {kind}: no field may be called `method`, which names the class in adapters")
    kept = "use numbers, texts, tuples and dataclasses of these"
    try:
        again = restore_method(type(method), json.loads(json.dumps(asdict(cast("Any", method)))))
    except (TypeError, ValueError) as error:
        raise InputError(f"tuning method {kind}: an adapter cannot hold its settings ({error}); {kept}") from error
    if again != method:
        raise InputError(f"tuning method {kind}: an adapter would hold {again} instead of {method}; {kept}")
