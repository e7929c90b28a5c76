"""Frames of a sweep from pictures and videos, as one grey array.

Everything here is indexed [lateral, depth, frame], as sweeps are everywhere in this package. Colour becomes luma (ITU-R
BT.601); nothing else is done to the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uscl.data.volume import Array
from uscl.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mpeg", ".mpg", ".mov", ".mkv", ".m4v", ".wmv", ".webm")
_LARGEST = 2 << 30
"""Bytes of frames that are held in memory at most."""
_COLOURED = 40
"""Difference of the colour channels from which a pixel is said to be coloured; compression alone reaches about 20."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_LOSSY = (".jpg", ".jpeg")
_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")  # modes of Pillow with one value per pixel


@dataclass(frozen=True, eq=False)
class Frames:
    """What the files of a sweep hold.

    Attributes:
        array: grey values [lateral, depth, frame].
        spacing: of the pixels along lateral and depth, mm; None where the files do not say.
        step: from frame to frame, mm; None where the files do not say.
    """

    array: Array
    spacing: tuple[float, float] | None = None
    step: float | None = None


_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_EXPORTED = re.compile(r"_(png|jpe?g|bmp|tiff?)\.rf\.[0-9A-Za-z]+$")
"""What Roboflow puts behind a name: the former ending and a hash."""


def frame_number(path: Path) -> int:
    """The last number in a file's name: ``sweep3_frame0012.png`` is frame 12.

    Raises:
        InputError: there is none.
    """
    match = _NUMBER.search(_EXPORTED.sub("", path.stem))
    if match is None:
        raise InputError(f"{path}: says in its name not which frame it is of; expected a number such as 0012.png")
    return int(match.group(1))


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted so that frame 2 comes before frame 10."""
    return sorted(paths, key=lambda path: [(int(digits or 0), text) for text, digits in _PARTS.findall(path.name)])


_PARTS = re.compile(r"([^0-9]*)([0-9]*)")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order; hidden files do not count."""
    return natural_order(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))


def read_pictures(folder: Path, without_colour: bool) -> Frames:
    """A folder of frames, in natural order of their names.

    Args:
        folder: of PNG, JPEG, BMP or TIFF files, all of one size.
        without_colour: blacken coloured pixels.

    Raises:
        InputError: a picture cannot be read, holds several, or has another size than the first.
    """

    def grey(mode: str, values: Array) -> Array:
        return values if mode in _GREY else luma(values, without_colour)

    return Frames(stack((grey(*_open(file, as_colour=True)) for file in pictures_in(folder)), folder))


def read_label_pictures(folder: Path) -> Array:
    """Label ids of a folder of frames [lateral, depth, frame], int32; see :func:`read_label_picture`.

    Raises:
        InputError: a picture cannot be used.
    """
    return stack((read_label_picture(file) for file in pictures_in(folder)), folder)


def read_label_picture(file: Path) -> Array:
    """Label ids of one picture [row, column], int32: grey values, or indices of a palette.

    Raises:
        InputError: it is in colour, was compressed with loss, or cannot be read.
    """
    if file.suffix.lower() in _LOSSY:
        raise InputError(f"{file}: JPEG changes label ids; export masks as PNG")
    mode, values = _open(file, as_colour=False)
    if mode not in (*_GREY, "P") or values.dtype.kind == "f":
        raise InputError(
            f"{file}: is in colour or holds fractions ({mode}); a mask holds label ids, as whole grey "
            "values or a palette"
        )
    return values.astype(np.int32)


def _open(file: Path, as_colour: bool) -> tuple[str, Array]:
    """Mode and values of a picture; what has colours or a palette as RGB if ``as_colour``."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            count, mode = getattr(picture, "n_frames", 1), picture.mode
            shown = picture.convert("RGB") if as_colour and mode not in _GREY else picture
            values = np.asarray(shown)
    except Exception as error:  # Pillow raises whatever a damaged file makes it
        raise InputError(f"{file}: not readable as a picture ({error}); export it again") from error
    if count > 1:
        raise InputError(f"{file}: holds {count} pictures; export each frame as a file of its own")
    return mode, values.astype(np.uint8) if mode == "1" else values


def read_video(path: Path, without_colour: bool) -> Frames:
    """All frames of a video; the time between them says nothing about millimetres.

    Args:
        path: anything that FFmpeg decodes.
        without_colour: blacken coloured pixels.

    Raises:
        InputError: the extra ``video`` is not installed, the file cannot be decoded, or ends before the number of
            frames that it announces.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: reading videos needs `pip install uscl[video]`") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video")
            announced = container.streams.video[0].frames
            pictures = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
            array = stack((luma(np.asarray(picture, np.uint8), without_colour) for picture in pictures), path)
    except InputError:
        raise
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}); export the clip again") from error
    # A clip that was trimmed without coding it anew still holds frames that its edit list hides.
    if array.shape[2] < announced and (held := _frames_held(path)) < announced:
        raise InputError(f"{path}: cut short: {held} of {announced} frames; fetch it again")
    return Frames(array)


def _frames_held(path: Path) -> int:
    """Frames of a video that lie in its file, shown or not."""
    import av

    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def luma(picture: Array, without_colour: bool) -> Array:
    """Luma of whole numbers [depth, lateral, 3]; pixels that are not grey become 0 if that is wanted."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    if np.array_equal(red, green) and np.array_equal(red, blue):
        grey: Array = red.copy()
        return grey
    luma: Array = (picture @ _LUMA).round().astype(picture.dtype)
    if without_colour:
        spread = picture.max(-1).astype(np.int64) - picture.min(-1)
        luma[spread > _COLOURED * np.iinfo(picture.dtype).max / 255] = 0
    return luma


def stack(frames: Iterable[Array], source: Path) -> Array:
    """Frames [depth, lateral] as [lateral, depth, frame]."""
    kept: list[Array] = []
    size = 0
    for frame in frames:
        if kept and frame.shape != kept[0].shape:
            raise InputError(
                f"{source}: frame {len(kept)} has size {frame.shape[::-1]}, the first {kept[0].shape[::-1]}"
            )
        kept.append(frame)
        size += frame.nbytes
        if size > _LARGEST:
            raise InputError(f"{source}: holds more than {_LARGEST >> 30} GiB of frames; cut the clip into sweeps")
    if not kept:
        raise InputError(f"{source}: holds no frame")
    return np.ascontiguousarray(np.stack(kept).transpose(2, 1, 0))
