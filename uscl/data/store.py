"""Prepared cases on disk: compressed in chunks, so that a patch is read without its volume.

::

    OUT/data_set.json                 cases, label names and regions, as the reader of the download found them
    OUT/<key of the preprocessing>/
      CASE/image.b2nd, label.b2nd     on the prepared grid
      CASE/case.json, voxels.npy      grid, units of the image, where every label id lies

The key is a hash of what shapes the arrays (spacing, clamp): settings that were not prepared are not found, rather than
read by mistake. A case appears under its name at once, when all of it is written. The format is that of Blosc2
(https://www.blosc.org/python-blosc2), the extra ``store``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uscl.data.datasets.cases import Case, DataSet, check_unique
from uscl.data.patches import Grid, Preprocessing
from uscl.data.sweeps import SweepReading
from uscl.data.volume import Array, Distances, Index
from uscl.errors import InputError
from uscl.seeds import derive_seed

Sources = dict[str, tuple[int, int]]
"""Size in bytes and time of the last change in ns of each file."""
VERSION = 1
DATA_SET = "data_set.json"
_CHUNK, _BLOCK = 64, 16
_SAMPLED = 1000
"""Voxels remembered of every label id, to centre patches on."""


@dataclass(frozen=True)
class LabelSummary:
    """What is known of one label id in one case.

    Attributes:
        count: voxels.
        low: first voxel of the bounding box.
        high: the one after its last.
        voxels: some of them, int32 [n, 3].
    """

    count: int
    low: Index
    high: Index
    voxels: NDArray[np.int32]


class StoredArray:
    """An array on disk that is decoded where it is sliced.

    Args:
        stored: Blosc2 array.
        scale: of the stored values; None leaves them alone.
        offset: added to them.

    Attributes:
        shape: voxels along x, y, z.
        dtype: of what slicing gives.
    """

    def __init__(self, stored: Any, scale: float | None = None, offset: float = 0.0) -> None:
        self._stored, self._scale, self._offset = stored, scale, offset
        x, y, z = (int(n) for n in stored.shape)
        self.shape: Index = (x, y, z)
        self.dtype = np.dtype(stored.dtype if scale is None else np.float32)

    def __getitem__(self, slices: Any) -> Array:
        values: Array = self._stored[slices]
        if self._scale is None:
            return values
        decoded: Array = values.astype(np.float32)
        if self._scale != 1:
            decoded *= np.float32(self._scale)
        decoded += np.float32(self._offset)
        return decoded


def summarise(label: Array) -> dict[int, LabelSummary]:
    """Counts, boxes and some voxels of every label id above 0; the same voxels for the same map."""
    found = {}
    for label_id, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        voxels = np.argwhere(label[box] == label_id).astype(np.int32)
        count, low, high = len(voxels), [int(s.start) for s in box], [int(s.stop) for s in box]
        if count > _SAMPLED:
            random = np.random.default_rng(derive_seed("label voxels", label_id, count, *low))
            voxels = voxels[np.sort(random.choice(count, _SAMPLED, replace=False))]
        voxels += np.array(low, np.int32)
        found[label_id] = LabelSummary(count, (low[0], low[1], low[2]), (high[0], high[1], high[2]), voxels)
    return found


def vanished_ids(label: Array, prepared: Array) -> tuple[int, ...]:
    """Ids of a label map of which resampling left no voxel; nobody clicks on them any more, which is reported."""
    return tuple(sorted({*np.unique(label).tolist()} - {*np.unique(prepared).tolist()} - {0}))


def key_of(preprocessing: Preprocessing) -> str:
    """Name of the folder for a preprocessing; patch size and normalisation act later and do not count."""
    settings = json.dumps({"version": VERSION, "spacing": preprocessing.spacing, "clamp": preprocessing.clamp})
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def write_case(
    folder: Path,
    preprocessing: Preprocessing,
    name: str,
    image: Array,
    label: Array | None,
    grid: Grid,
    whole: bool,
    sources: Sources,
    vanished: tuple[int, ...] = (),
    distances: Distances = "measured",
) -> None:
    """Writes a prepared case, whole or not at all; another process that writes the same one does no harm.

    Args:
        folder: of the store.
        preprocessing: how the case was prepared.
        name: of the case.
        image: [x, y, z], float32.
        label: label ids, or None.
        grid: the way back to the volume.
        whole: the scan holds whole numbers (Hounsfield units, grey values). They are stored as such, so that
            interpolation is rounded to half a unit; others are stored in 65536 steps over their range.
        sources: the files it was made from; once they change it counts as missing.
        vanished: of :func:`vanished_ids`.
        distances: where the millimetres of the volume come from.
    """
    blosc2 = require_blosc2()
    low, high = float(image.min()), float(image.max())
    by_units = whole and high - low < 65535
    scale = 1.0 if by_units else max(high - low, 1e-30) / 65535
    offset = float(np.floor(low)) if by_units else low
    steps = np.rint((image.astype(np.float64) - offset) / scale)
    arrays = {"image": steps.astype(np.uint8 if steps.max() <= 255 else np.uint16)}
    if label is not None:
        arrays["label"] = label.astype(np.min_scalar_type(int(label.max())))
    target = folder / key_of(preprocessing) / name
    partial = target.with_name(f".{name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for kind, array in arrays.items():
        chunks = tuple(min(_CHUNK, n) for n in array.shape)
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(partial / f"{kind}.b2nd"),
            mode="w",
            chunks=chunks,
            blocks=tuple(min(_BLOCK, n) for n in chunks),
            cparams={"codec": blosc2.Codec.LZ4, "clevel": 5},
        )
    summary = {} if label is None else summarise(label)
    note = {
        "grid": asdict(grid),
        "scale": scale,
        "offset": offset,
        "labelled": label is not None,
        "sources": sources,
        "vanished": vanished,
        "distances": distances,
        "summary": {
            str(i): {"count": s.count, "low": s.low, "high": s.high, "voxels": len(s.voxels)}
            for i, s in summary.items()
        },
    }
    voxels = [s.voxels for s in summary.values()]
    np.save(partial / "voxels.npy", np.concatenate(voxels) if voxels else np.zeros((0, 3), np.int32))
    (partial / "case.json").write_text(json.dumps(note), encoding="utf-8")
    if is_written(folder, preprocessing, name, sources):  # by another process, whose readers have begun
        shutil.rmtree(partial)
        return
    if target.exists():  # made from files that have changed since
        target.rename(outdated := target.with_name(f".{name}.{os.getpid()}.old"))
        shutil.rmtree(outdated)
    try:
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial)
        if not (target / "case.json").is_file():  # else another process was first
            raise


def stored_bytes(folder: Path, preprocessing: Preprocessing, name: str) -> int:
    """Bytes that a case takes on disk."""
    return sum(file.stat().st_size for file in (folder / key_of(preprocessing) / name).iterdir())


def is_written(folder: Path, preprocessing: Preprocessing, name: str, sources: Sources) -> bool:
    """Whether a case lies there, made from these very files."""
    note = folder / key_of(preprocessing) / name / "case.json"
    try:
        found = json.loads(note.read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, KeyError):
        return False
    return {file: tuple(stat) for file, stat in found.items()} == sources


def open_case(
    folder: Path, preprocessing: Preprocessing, name: str
) -> tuple[StoredArray, StoredArray | None, Grid, dict[int, LabelSummary], tuple[int, ...], Distances]:
    """Image, label map, grid, summary, vanished ids, and where the millimetres of a case come from.

    Raises:
        InputError: it was not prepared with these settings, its files cannot be read, or the extra ``store`` is not
            installed.
    """
    where = folder / key_of(preprocessing) / name
    if not (where / "case.json").is_file():
        raise InputError(
            f"{folder}: case {name} was not prepared with spacing {list(preprocessing.spacing)} and clamp "
            f"{preprocessing.clamp}; run uscl prepare with these settings"
        )
    blosc2 = require_blosc2()
    try:
        note = json.loads((where / "case.json").read_text(encoding="utf-8"))
        image = StoredArray(blosc2.open(str(where / "image.b2nd"), mode="r"), note["scale"], note["offset"])
        label = StoredArray(blosc2.open(str(where / "label.b2nd"), mode="r")) if note["labelled"] else None
        grid = Grid(**{key: tuple(value) for key, value in note["grid"].items()})
        ends = np.cumsum([s["voxels"] for s in note["summary"].values()])
        voxels = np.split(np.load(where / "voxels.npy"), ends[:-1])
        summary = {
            int(i): LabelSummary(s["count"], tuple(s["low"]), tuple(s["high"]), own)
            for (i, s), own in zip(note["summary"].items(), voxels, strict=False)
        }
        vanished = tuple(note.get("vanished", ()))
        distances: Distances = note.get("distances", "measured")
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: cannot be read ({error}); delete it and run uscl prepare again") from error
    return image, label, grid, summary, vanished, distances


def require_blosc2() -> Any:
    """The module, or what to install.

    Raises:
        InputError: the extra ``store`` is not installed.
    """
    try:
        import blosc2
    except ImportError as error:
        raise InputError("a prepared data set needs `pip install uscl[store]`") from error
    blosc2.set_nthreads(1)
    return blosc2


def write_data_set(folder: Path, data_set: DataSet, origin: dict[str, Any]) -> None:
    """Writes what :func:`read_prepared` reads, last of all.

    Args:
        folder: of the store.
        data_set: with the cases that were written.
        origin: which download it was made from; kept for the reader of the file.
    """
    content = {
        "version": VERSION,
        "name": data_set.name,
        "label_names": data_set.label_names,
        "regions": data_set.regions,
        "origin": origin,
        "cases": [
            {
                "name": c.name,
                "image": str(c.image.resolve()),
                "label": c.label and str(c.label.resolve()),
                "patient": c.patient,
                "split": c.split,
                "reading": c.reading and asdict(c.reading),
            }
            for c in data_set.cases
        ],
    }
    partial = folder / f".{DATA_SET}.{os.getpid()}"
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / DATA_SET)


def _reading(note: dict[str, Any] | None) -> SweepReading | None:
    if note is None:
        return None
    spacing = tuple(note["spacing"]) if isinstance(note["spacing"], list) else note["spacing"]
    return SweepReading(spacing, note["step"], tuple(note["mask"]))


def read_prepared(root: Path, modality: str | None = None) -> DataSet:
    """Lists the cases that ``uscl prepare`` has written.

    Args:
        root: its ``--out``.
        modality: was chosen when preparing; must be left open here.

    Raises:
        InputError: there is no complete prepared data set.
    """
    file = Path(root).expanduser() / DATA_SET
    if modality is not None:
        raise InputError("data.modality: was chosen by uscl prepare; leave it out")
    if not file.is_file():
        raise InputError(f"{file}: not there; run uscl prepare DATASET --root DOWNLOAD --out {root} (to its end)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        cases = tuple(
            Case(
                c["name"],
                Path(c["image"]),
                Path(c["label"]) if c["label"] else None,
                c["patient"],
                c["split"],
                _reading(c.get("reading")),
            )
            for c in content["cases"]
        )
        names = {int(i): name for i, name in content["label_names"].items()}
        regions = {name: tuple(ids) for name, ids in content["regions"].items()}
        return check_unique(DataSet(content["name"], cases, names, regions, store=file.parent))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not what uscl prepare writes ({error}); run it again") from error
