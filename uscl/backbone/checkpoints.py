"""Loading trained weights, with every key accounted for.

Accepted: the published wrapper of SAM-Med3D (``model_state_dict`` beside optimiser state and an argparse namespace), a
bare state dict, a Lightning checkpoint, safetensors, and ``hf://owner/repo/file`` references to any of them. Pickles
are read with ``weights_only`` always.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uscl.backbone.config import VARIANTS
from uscl.backbone.sam_med3d import SamMed3D, build_sam_med3d
from uscl.errors import InputError, WeightsNotFoundError

log = logging.getLogger(__name__)

# Any key that every SAM-Med3D has; what stands before it in a file is a wrapper's prefix ("module.", "model.", "net.").
_LANDMARK = "image_encoder.patch_embed.proj.weight"
_WRAPPER_KEYS = ("model_state_dict", "state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of a checkpoint.

    Attributes:
        source: the file or reference as it was given.
        sha256: hash of the file's bytes.
        matched: keys that were loaded.
        missing: keys of the model that the file lacks; they keep their values.
        unexpected: keys of the file that the model lacks; they were left out.
    """

    source: str
    sha256: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {len(self.matched)} tensors loaded"
        for title, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                text += f"; {len(keys)} {title}: {_some(keys)}"
        return text

    def require_complete(self) -> LoadReport:
        """Returns the report itself if no key of the model is missing.

        Raises:
            InputError: part of the model would stay random.
        """
        if self.missing:
            raise InputError(f"{self}. A partly random model gives wrong masks: use a complete checkpoint")
        return self


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    read: Callable[[Path], dict[str, Tensor]] | None = None,
) -> LoadReport:
    """Copies trained weights into a model.

    Args:
        model: a SAM-Med3D (or any module whose keys the file holds). Float16 weights are cast to the model's type.
        path: a file, or ``hf://owner/repo/file`` (needs the extra ``hub`` unless the file was put in place by hand).
        translate: renames the file's tensors to the model's keys; None takes them as they are.
        read: reads the file's tensors; None is :func:`read_tensors`.

    Returns:
        The report; ask it to :meth:`~LoadReport.require_complete` where a partly random model must not pass.

    Raises:
        InputError: the file is absent, unreadable, holds no key of the model, a tensor of another shape, or values that
            are not finite. The model is then unchanged.
    """
    file = fetch(str(path))
    found = _strip_prefix((read or read_tensors)(file))
    if translate is not None:
        found = translate(found)
    wanted = model.state_dict()
    matched = [key for key in wanted if key in found]
    if not matched and _LANDMARK.removeprefix("image_encoder.") in found:
        raise InputError(
            f"{file}: holds an image encoder alone, as FastSAM3D publishes its distilled student; the model needs a "
            "prompt encoder and a mask decoder besides: take the combined checkpoint"
        )
    if not matched:
        raise InputError(
            f"{file}: none of its {len(found)} tensors belongs to this model (first keys: {_some(tuple(found))}); "
            f"expected a checkpoint of {_title(model)} (an adapter file is given as the adapter, not as the weights)"
        )
    wrong = [key for key in matched if found[key].shape != wanted[key].shape]
    if wrong:
        key = wrong[0]
        raise InputError(
            f"{file}: {len(wrong)} tensors have another shape, first {key}: found {list(found[key].shape)}, "
            f"expected {list(wanted[key].shape)}{_fitting_variant(model, found)}"
        )
    broken = [key for key in matched if found[key].is_floating_point() and not found[key].isfinite().all()]
    if broken:
        raise InputError(f"{file}: values that are not finite in {_some(tuple(broken))}; fetch the file again")
    model.load_state_dict({key: found[key] for key in matched}, strict=False)
    report = LoadReport(
        source=str(path),
        sha256=file_sha256(file),
        matched=tuple(matched),
        missing=tuple(key for key in wanted if key not in found),
        unexpected=tuple(key for key in found if key not in wanted),
    )
    (log.warning if report.missing or report.unexpected else log.info)("%s", report)
    return report


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes all weights of a model as safetensors; :func:`load_checkpoint` reads them back.

    Args:
        model: a SAM-Med3D.
        path: the file.
        dtype: of the tensors; half precision halves the file.
        metadata: what else to write into the file's header.
    """
    from safetensors.torch import save_file

    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in model.state_dict().items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata or {}))


def fetch(reference: str, download: bool = True) -> Path:
    """Returns the local path of a file or of an ``hf://owner/repo/file`` reference, downloading it if need be.

    A referenced file that was put at ``$USCL_WEIGHTS/owner/repo/file`` (default ``~/.cache/uscl/weights``) by hand is
    used without any network.

    Args:
        reference: the file or ``hf://`` reference.
        download: False looks on this machine alone.

    Raises:
        InputError: the reference cannot be read as one.
        WeightsNotFoundError: there is no such file, or it cannot be downloaded; the message says what to fetch and
            where to put it.
    """
    if not reference.startswith("hf://"):
        path = Path(reference).expanduser()
        if not path.is_file():
            raise WeightsNotFoundError(reference, f"{path}: no such checkpoint file")
        return path
    owner, repo, file = ([*reference.removeprefix("hf://").split("/", 2), "", ""])[:3]
    if not (owner and repo and file):
        raise InputError(f"{reference}: expected hf://owner/repo/file")
    folder = Path(os.environ.get("USCL_WEIGHTS", "~/.cache/uscl/weights")).expanduser()
    placed = folder / owner / repo / file
    if placed.is_file():
        return placed
    by_hand = f"fetch https://huggingface.co/{owner}/{repo}/resolve/main/{file} by hand and put it at {placed}"
    if not download:
        raise WeightsNotFoundError(
            reference, f"{reference}: not on this machine; name it as weights to have it downloaded, or {by_hand}"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise WeightsNotFoundError(reference, f"{reference}: needs `pip install uscl[hub]`; or {by_hand}") from error
    try:
        return Path(hf_hub_download(repo_id=f"{owner}/{repo}", filename=file))
    except Exception as error:  # the hub client raises a family of its own and of its HTTP library
        reason = f"{reference}: the download failed ({type(error).__name__}); {by_hand}"
        raise WeightsNotFoundError(reference, reason) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file, out of its wrapper if it has one; pickles with ``weights_only``.

    Raises:
        InputError: the file cannot be read safely or holds no state dict.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(
            f"{file}: not a checkpoint that can be read safely ({reason}); fetch it again, or convert it to safetensors"
        ) from error
    for key in _WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, expected a state dict")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for key in tensors:
        if key.endswith(_LANDMARK) and key != _LANDMARK:
            prefix = key.removesuffix(_LANDMARK)
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _title(model: nn.Module) -> str:
    return "SAM-Med3D" if isinstance(model, SamMed3D) else type(model).__name__


def _fitting_variant(model: nn.Module, found: Mapping[str, Tensor]) -> str:
    if not isinstance(model, SamMed3D):
        return ""
    for name in VARIANTS:
        with torch.device("meta"):
            variant: SamMed3D = build_sam_med3d(name)
        shapes = {key: value.shape for key, value in variant.state_dict().items()}
        if all(key in found and found[key].shape == shape for key, shape in shapes.items()):
            return f"; the file fits the variant {name!r}"
    return "; it fits none of the variants " + ", ".join(VARIANTS)


def _some(keys: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
