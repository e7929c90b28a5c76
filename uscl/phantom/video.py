"""Frames as pictures and as video."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from uscl.data.volume import Array
from uscl.errors import InputError


def write_frames(folder: Path, frames: Array, numbers: Iterable[int]) -> None:
    """Writes frames [number, row, column], uint8, as ``0012.png``: every grey value or label id is kept."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(frames[number]).save(folder / f"{number:04d}.png")


def write_video(path: Path, frames: Array, rate: int = 20) -> None:
    """Writes frames [number, row, column], uint8, as H.264; grey values change a little, as in a machine's export.

    Raises:
        InputError: the extra ``video`` is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError("writing mp4 needs `pip install uscl[video]`; --video frames does without") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (n - n % 2 for n in frames.shape[1:])  # H.264 takes even sizes
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame[:height, :width].copy(), format="gray")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
