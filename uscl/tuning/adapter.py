"""Adapter files: what a stage leaves behind, megabytes instead of the trunk.

An adapter is one safetensors file: the tensors of the tuning methods, whatever else was trained, and in its metadata
how they fit in and on which trunk. ``uscl test``, ``predict``, ``segment`` and ``serve`` take it as ``--model.adapter``
or ``--adapter``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import uscl
from uscl.backbone import SamMed3DConfig, Trunk
from uscl.errors import InputError
from uscl.tuning.method import PARTS, Part, TuningMethod
from uscl.tuning.registry import TUNING_METHODS, is_own
from uscl.tuning.settings import class_path, restore_method, settings_of

FORMAT = "uscl-adapter-3"
_EARLIER = "uscl-adapter-2"
"""Named its methods by class alone, and stage 1 by the name in result rows."""


class UnknownMethodError(InputError):
    """An adapter asks for a tuning method that nobody has named."""


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter file.

    Attributes:
        stage: which stage left it: ``vcl`` or ``lora_seg``.
        method: name for result rows.
        backbone: architecture it was made for.
        trunk_weights: what the trunk's weights were, in words.
        trunk_fingerprint: hash of the trunk's weights; applying to any other trunk is refused.
        tuning: the method of each part that was tuned.
        preprocessing: how volumes were prepared in training, as :class:`uscl.data.Preprocessing` writes itself down.
        tensors: those of the methods, named as in the model, and others that the stage trained under own names.
        vcl: whether the encoder's LoRA began with stage 1.
        version: the version of uscl that wrote it.
    """

    stage: str
    method: str
    backbone: SamMed3DConfig
    trunk_weights: str
    trunk_fingerprint: str
    tuning: dict[Part, TuningMethod]
    preprocessing: dict[str, Any] | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    vcl: bool = False
    version: str = ""

    def apply(self, trunk: Trunk, parts: tuple[Part, ...] = PARTS) -> None:
        """Inserts the methods of ``parts`` into a trunk, loads their tensors and freezes everything.

        Raises:
            InputError: the trunk is not the one the adapter was trained on, or tensors are missing.
        """
        if trunk.fingerprint != self.trunk_fingerprint:
            raise InputError(
                f"this adapter was trained on a trunk with {self.trunk_weights} ({self.trunk_fingerprint}), but the "
                f"model has {trunk.weights} ({trunk.fingerprint}); give the weights it was trained on"
            )
        wanted: list[str] = []
        for part, method in self.tuning.items():
            if part in parts:
                method.insert(trunk.model, part)
                wanted += method.tensors(trunk.model, part)
        if missing := set(wanted) - set(self.tensors):
            raise InputError(
                f"this adapter lacks {len(missing)} tensors of its methods, first {min(missing)}; fetch "
                "it again, or make it again with `uscl fit`"
            )
        try:
            trunk.model.load_state_dict({name: self.tensors[name] for name in wanted}, strict=False)
        except RuntimeError as error:
            raise InputError(
                f"this adapter's tensors do not fit its methods ({str(error).splitlines()[-1].strip()}); "
                "make it again with `uscl fit`"
            ) from error
        trunk.model.requires_grad_(False)


def save_adapter(path: str | os.PathLike[str], adapter: Adapter) -> None:
    """Writes an adapter file in one step: a reader never meets half of it."""
    described = {key: value for key, value in asdict(replace(adapter, tensors={})).items() if key != "tensors"}
    described["tuning"] = {part: settings_of(method) for part, method in adapter.tuning.items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    partial.write_bytes(save(tensors, {"format": FORMAT, "adapter": json.dumps(described, sort_keys=True)}))
    partial.replace(target)


def load_adapter(path: str | os.PathLike[str], named: Sequence[type[TuningMethod]] = ()) -> Adapter:
    """Reads an adapter file.

    Args:
        path: the file.
        named: classes outside ``uscl`` that the user named, which the file may ask for. A file alone never makes Python
            import anything.

    Raises:
        InputError: the file is absent, damaged, not an adapter, or asks for a method that is neither registered in
            :data:`~uscl.tuning.TUNING_METHODS` nor named.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"{file}: no such adapter file; `uscl fit` leaves one as adapter.safetensors in its run folder"
        )
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable adapter file ({error}); make it again with `uscl fit`") from error
    if metadata.get("format") not in (FORMAT, _EARLIER):
        raise InputError(
            f"{file}: found format {metadata.get('format')!r}, expected {FORMAT!r}; whole checkpoints go to --weights"
        )
    try:
        described = json.loads(metadata["adapter"])
        described["backbone"] = SamMed3DConfig(**described["backbone"])
        described["tuning"] = {
            part: restore_method(_class_of(settings.pop("method"), named, file), settings)
            for part, settings in described["tuning"].items()
        }
        if unknown := set(described["tuning"]) - set(PARTS):
            raise ValueError(f"no part {min(unknown)!r}")
        if metadata["format"] == _EARLIER:
            described["vcl"] = described["method"] == "USCL-Med3D"
        return Adapter(tensors=tensors, **described)
    except UnknownMethodError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: its description cannot be used ({error!r}); it may come from a newer uscl than "
            f"{uscl.__version__}, or make it again with `uscl fit`"
        ) from error


def _class_of(wanted: str, named: Sequence[type[TuningMethod]], file: Path) -> type[TuningMethod]:
    """The class that an adapter asks for, of those that may be used."""
    if wanted in TUNING_METHODS:  # format 2
        return TUNING_METHODS[wanted]
    for _, kind in TUNING_METHODS.items():
        if wanted == class_path(kind):
            return kind
    for kind in named:
        # A class of a script is __main__'s while the script runs, and its module's elsewhere.
        scripts = "__main__" in (kind.__module__, wanted.partition(".")[0])
        if not is_own(kind) and (wanted == class_path(kind) or (scripts and wanted.endswith(f".{kind.__qualname__}"))):
            return kind
    raise UnknownMethodError(
        f"{file}: was made with the tuning method {wanted}, which is none of uscl's; if you trust that class, name it: "
        f"--model.tuning {wanted} (`uscl segment`: --tuning {wanted})"
    )
