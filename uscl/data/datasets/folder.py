"""The plain layout: images and label maps in folders, as nnU-Net lays them out.

::

    ROOT/
      dataset.json      {"name": "my sweeps", "labels": {"background": 0, "liver": 1, "kidney": 2}}
      imagesTr/         CASE.nii.gz or CASE_0000.nii.gz, CASE_0001.nii.gz ... (also .nii, .nrrd, .mha)
      labelsTr/         CASE.nii.gz, on the image's grid; may lack for unlabelled images
      imagesTs/         optional: the test side
      labelsTs/
      patients.csv      optional: columns case, patient and, if you like, split (train, val or test)

Without patients.csv every case counts as a patient of its own. An nnU-Net raw data set (``Dataset001_NAME``) is read as
it is: channels, labels as ids or as lists of ids (regions), dataset.json of versions 1 and 2. An imagesTs without any
labels is left alone where there are labelled images to test on.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from uscl.data.datasets.cases import Case, DataSet, Split, check_unique, parse_split
from uscl.data.tables import read_table
from uscl.data.volume import WRITABLE, stem
from uscl.errors import InputError

log = logging.getLogger(__name__)
_EXPECTED = '{"name": "...", "labels": {"background": 0, "liver": 1}}'


def read_folder(root: Path, modality: str | None = None) -> DataSet:
    """Lists the cases of a folder in the plain layout.

    Args:
        root: the folder.
        modality: channel to take, as dataset.json names or numbers it; None for the first.

    Raises:
        InputError: the folder or its imagesTr is missing or empty, dataset.json is missing (where there are labels) or
            not as expected, there is no such channel or a case lacks it, names clash, or patients.csv names a case
            that is not there.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such data folder; data/README.md shows the layout")
    description = read_description(root / "dataset.json")
    channel = description.channel(modality)
    train = _images(root / "imagesTr", channel)
    if not train:
        raise InputError(f"{root / 'imagesTr'}: no volumes ({', '.join(WRITABLE)}); data/README.md shows the layout")
    train_labels, test_labels = volumes(root / "labelsTr"), volumes(root / "labelsTs")
    test: dict[str, Path | None] = {}
    if test_labels or not train_labels:
        test = _images(root / "imagesTs", channel)
    elif volumes(root / "imagesTs"):
        log.info("%s: no labels for the images of imagesTs; they are left out", root)
    sides: list[tuple[dict[str, Path | None], dict[str, Path], Split | None]] = [
        (train, train_labels, None),
        (test, test_labels, "test"),
    ]
    patients = _read_patients(root / "patients.csv")
    cases, problems = [], {}
    for images, labels, side in sides:
        for name, image in images.items():
            if image is None:
                problems[name] = (
                    f"{root}: channel {channel[0]} ({name}_{channel[0]:04d}) of case {name} is missing; "
                    "complete the case or take it away"
                )
                patients.pop(name, None)
                continue
            patient, split = patients.pop(name, (name, side))
            cases.append(Case(name, image, labels.get(name), patient, split))
    if patients:
        raise InputError(f"{root / 'patients.csv'}: no image for case {', '.join(sorted(patients)[:4])}")
    if any(case.label for case in cases) and not description.label_names:
        found = "names no label" if description.file.is_file() else "missing; it names the labels"
        raise InputError(f"{description.file}: {found}; expected {_EXPECTED}")
    name = description.name or root.name
    return check_unique(DataSet(name, tuple(cases), description.label_names, description.regions, problems))


@dataclass(frozen=True)
class Description:
    """What a dataset.json says.

    Attributes:
        file: where it lies, or would.
        name: of the data set.
        label_names: structure of each label id.
        regions: classes made of several ids, if there are any.
        channels: name of each channel.
    """

    file: Path
    name: str = ""
    label_names: dict[int, str] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: dict[int, str] = field(default_factory=dict)

    def channel(self, wanted: str | None) -> tuple[int, int]:
        """Number of the wanted channel, and how many there are."""
        if wanted is None:
            return 0, len(self.channels)
        for number, name in self.channels.items():
            if wanted.lower() in (name.lower(), str(number)):
                return number, len(self.channels)
        raise InputError(f"{self.file}: no channel {wanted!r}; it names {self.channels or 'none'} (data.modality)")


def volumes(folder: Path) -> dict[str, Path]:
    """The volumes of a folder by name without ending, in order; none where there is no such folder.

    Raises:
        InputError: two have the same name and differ in the ending alone.
    """
    files = sorted(path for path in folder.glob("*") if path.name.endswith(WRITABLE) and not path.name.startswith("."))
    found: dict[str, Path] = {}
    for path in files:
        if stem(path) in found:
            raise InputError(f"{path}: {found[stem(path)].name} lies beside it and is of the same case; remove one")
        found[stem(path)] = path
    return found


def _images(folder: Path, channel: tuple[int, int]) -> dict[str, Path | None]:
    """Images of one channel by case, None where it is missing.

    A suffix is a channel only if dataset.json has that many: amos_0017 is a case.
    """
    number, count = channel
    wanted, suffixes = f"_{number:04d}", {f"_{n:04d}" for n in range(max(1, count))}
    found: dict[str, Path | None] = {}
    for name, path in volumes(folder).items():
        suffix = name[-5:] if name[-5:] in suffixes else ""
        case = name.removesuffix(suffix)
        if suffix in ("", wanted):
            if found.get(case):
                raise InputError(f"{path}: {found[case]} is an image of the same case; remove one")
            found[case] = path
        else:
            found.setdefault(case, None)
    return found


def read_description(path: Path) -> Description:
    """Reads a dataset.json; an empty description where there is none.

    Raises:
        InputError: it is not as nnU-Net has it.
    """
    if not path.is_file():
        return Description(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        channels = {
            int(n): str(name) for n, name in (content.get("channel_names") or content.get("modality") or {}).items()
        }
        ids: dict[str, tuple[int, ...]] = {}
        for key, value in content.get("labels", {}).items():
            if isinstance(value, list):
                ids[str(key)] = tuple(int(i) for i in value)
            elif isinstance(value, str) and not value.isdigit():  # version 1: {"1": "liver"}
                ids[value] = (int(key),)
            else:
                ids[str(key)] = (int(value),)
        name = str(content.get("name", ""))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected {_EXPECTED} ({error})") from error
    hidden = ("background", "ignore")
    classes = {label: values for label, values in ids.items() if values != (0,) and label.lower() not in hidden}
    names = {i: f"label {i}" for values in ids.values() for i in values if i}
    names |= {values[0]: label for label, values in ids.items() if len(values) == 1 and values[0]}
    plain = len(names) == len(classes) and all(len(values) == 1 for values in classes.values())
    return Description(path, name, names, {} if plain else classes, channels)


def _read_patients(path: Path) -> dict[str, tuple[str, Split | None]]:
    if not path.is_file():
        return {}
    rows = read_table(path)[1]
    found: dict[str, tuple[str, Split | None]] = {}
    for number, row in enumerate(rows, start=2):
        case, patient = row.get("case"), row.get("patient")
        if not case or not patient:
            raise InputError(f"{path}, line {number}: expected the columns case, patient and optionally split")
        if case in found:
            raise InputError(f"{path}, line {number}: case {case} is listed twice")
        found[case] = (patient, parse_split(row.get("split") or "", f"{path}, line {number}"))
    return found
