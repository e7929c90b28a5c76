"""``uscl comparators``: what is published of the 2D methods, whether a file is that, and converting pickles.

SegGPT is among them: no method of the comparison, but published, fetched and tested in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from uscl.backbone.checkpoints import fetch, file_sha256
from uscl.comparators import COMPARATORS, Published, SliceComparator, SliceSegmenter
from uscl.comparators.methods import load_model
from uscl.comparators.pickles import read_pickled_tensors
from uscl.errors import InputError, WeightsNotFoundError
from uscl.prompting import Click
from uscl.pseudo_label.seggpt import SegGptEngine, SegGptSettings
from uscl.pseudo_label.seggpt_network import WEIGHTS

log = logging.getLogger(__name__)
_SEGGPT = Published(
    WEIGHTS,
    "https://huggingface.co/BAAI/seggpt-vit-large (the authors' own file: hf://BAAI/SegGPT/seggpt_vit_large.pth)",
    # 370,723,203 float32 and a header: the network's tensors and nothing else. Of the hash no more is known than that
    # it begins with 809d3b65 and ends with 5c8f.
    1_482_933_564,
    None,
    "Apache-2.0",
)
_SEGGPT_SETTINGS = SegGptSettings(memory=0, extrapolate=True)
_FAIR = 0.8
"""Dice on a bright disc that any trained model should reach."""
Outcome = tuple[float, float, str]
"""Dice, seconds, and how the weights loaded."""


def comparators(action: list[str], weights: str | None = None, out: str | None = None) -> None:
    """Lists the published 2D methods, tests weights that are here, or converts a pickle into safetensors.

    Args:
        action: `list`; `selftest [NAME ...]`, which checks hash, strict load and one prompted picture of each file
            that is here (seggpt, the engine of pseudo-labels, takes a minute of a CPU); or `convert FILE`, which takes
            the weights out of SAM-Med2D's pickle without running it.
        weights: file to test one NAME with; without it the published file is looked for where the list says.
        out: file to convert into.

    Raises:
        InputError: no such action or name, the file cannot be used, or a self-test failed.
    """
    verb, *names = action
    if verb == "list" and not names:
        _list()
    elif verb == "selftest" and (weights is None or len(names) == 1):
        _selftest(names, weights)
    elif verb == "convert" and len(names) == 1 and out:
        _convert(Path(names[0]).expanduser(), Path(out).expanduser())
    else:
        raise InputError(
            "uscl comparators: expected `list`, `selftest [NAME ...]`, `selftest NAME --weights FILE`, "
            f"or `convert FILE --out FILE.safetensors`; found {' '.join(action)!r}"
        )


def _list() -> None:
    table = Table("name", "bytes", "sha256", "licence", "here")
    table.add_column("from", overflow="fold")
    for name, (published, _) in _tests().items():
        try:
            here = str(fetch(published.reference, download=False))
        except WeightsNotFoundError:
            here = "no"
        size, sha256 = (
            (f"{published.size:,}" if published.size else "not published"),
            (published.sha256 or "not published")[:12],
        )
        table.add_row(name, size, sha256, published.licence, escape(here), f"{published.reference}\n{published.source}")
    console = Console()
    console.width = max(console.width, 150)  # addresses are long, and a log file has no width of its own
    console.print(table)


def _tests() -> dict[str, tuple[Published, Callable[[str | None], Outcome]]]:
    """What is published and how it is tried out, given weights or None for the published file, by name."""
    slices = {
        name: (method.published, partial(_one_slice, method))
        for name, method in COMPARATORS.items()
        if isinstance(method, SliceComparator)
    }
    return {**slices, "seggpt": (_SEGGPT, _one_frame)}


def _selftest(names: list[str], weights: str | None) -> None:
    tests = _tests()
    if unknown := set(names) - set(tests):
        raise InputError(f"uscl comparators selftest: no {min(unknown)!r}; choose of {', '.join(tests)}")
    table = Table("name")
    for title in ("file", "hash", "tensors loaded", "Dice on a disc", "seconds"):
        table.add_column(title, overflow="fold")
    tested, failed = 0, []
    for name in names or tests:
        published, test = tests[name]
        try:
            file = fetch(weights or published.reference, download=weights is not None)
        except WeightsNotFoundError as error:
            if names:
                raise
            table.add_row(name, f"weights not found: {error.reference}", "", "", "", "")
            continue
        tested += 1
        hashed = _hash(file, published)
        try:
            dice, seconds, loaded = test(weights)
        except InputError as error:
            failed.append(f"{name}: {error}")
            table.add_row(name, escape(str(file)), hashed, "failed", "", "")
            continue
        if dice < _FAIR:
            failed.append(f"{name}: Dice {dice:.2f} on a bright disc, where a trained model reaches {_FAIR}")
        if hashed.startswith("differs"):
            failed.append(f"{name}: {file} is not the published file")
        table.add_row(name, escape(str(file)), hashed, loaded, f"{dice:.3f}", f"{seconds:.2f}")
    console = Console()
    console.width = max(console.width, 150)  # addresses are long, and a log file has no width of its own
    console.print(table)
    if failed:
        raise InputError(f"{len(failed)} self-tests failed; {'; '.join(failed)}")
    log.info("%d of %d tested, the files of the others are not here", tested, len(names or tests))


def _hash(file: Path, published: Published) -> str:
    found = file_sha256(file)
    if published.sha256 is None:
        return f"none published; this file's is {found}"
    return "as published" if found == published.sha256 else f"differs: {found}"


def _disc(row: int, column: int) -> tuple[Tensor, Tensor]:
    """A bright disc of 30 pixels about a point on a dark picture of 128 x 128, and the same with noise."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = (rows - row) ** 2 + (columns - column) ** 2 < 30**2
    return disc, 4.0 * disc + 0.3 * torch.randn(128, 128, generator=torch.Generator().manual_seed(row))


def _dice(mask: Tensor, disc: Tensor) -> float:
    return float(2 * (mask & disc).sum() / (mask.sum() + disc.sum()))


def _one_slice(method: SliceComparator, weights: str | None) -> Outcome:
    """One click on a disc."""
    model, report = load_model(replace(method, weights=weights))
    disc, picture = _disc(60, 70)
    segmenter = SliceSegmenter(model)
    segmenter.set_image(picture[None, None, :, :, None])
    begin = perf_counter()
    found = segmenter.segment([Click((60, 70, 0))])[..., 0]
    seconds = perf_counter() - begin
    if not found.isfinite().all():
        raise InputError("gives values that are not finite")
    unexpected = f", {len(report.unexpected)} left out" if report.unexpected else ""
    return _dice(found > 0, disc), seconds, f"{len(report.matched)}{unexpected}"


def _one_frame(weights: str | None) -> Outcome:
    """A disc after the example of another one, in another place."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = SegGptEngine(replace(_SEGGPT_SETTINGS, weights=weights, device=device))
    shown, wanted = _disc(50, 80), _disc(75, 55)
    frames = torch.stack([shown[1], wanted[1]]).add(1).mul(40).clamp(0, 255).byte().numpy()
    begin = perf_counter()
    found = engine.scores(frames, {0: shown[0].numpy()}, [1]).scores[0]
    return _dice(torch.from_numpy(found) > 0.5, wanted[0]), perf_counter() - begin, str(len(engine.report.matched))


def _convert(file: Path, out: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint file")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: --out must end in .safetensors")
    if out.exists():
        raise InputError(f"{out}: is there already; choose another --out")
    tensors = read_pickled_tensors(file)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, out)
    log.info(
        "%s: %d tensors, %.0f MB of %.0f MB", out, len(tensors), out.stat().st_size / 1e6, file.stat().st_size / 1e6
    )
