"""Sweeps that cannot be used, each named in one line with the remedy."""

from pathlib import Path

import av
import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from uscl.data.sweeps import SweepReading, read_sweep
from uscl.errors import InputError
from uscl.phantom.video import write_frames, write_video

KNOWN = SweepReading((0.5, 0.25), 1.5)


@pytest.fixture
def frames() -> np.ndarray:
    """[frame, depth, lateral], as pictures are stored; no two frames, rows or columns alike."""
    return np.random.default_rng(0).integers(1, 255, (12, 24, 32), dtype=np.uint8)


def break_video(folder: Path) -> Path:
    write_video(folder / "clip.mp4", np.random.default_rng(0).integers(0, 255, (12, 32, 32), dtype=np.uint8))
    whole = (folder / "clip.mp4").read_bytes()
    (folder / "clip.mp4").write_bytes(whole[: len(whole) // 2])
    return folder / "clip.mp4"


def cut_avi(folder: Path) -> Path:
    """A container that announces more frames than it holds and is decoded without complaint."""
    path = folder / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(20):
            frame = np.full((64, 64), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def empty_file(folder: Path) -> Path:
    (folder / "clip.mp4").touch()
    return folder / "clip.mp4"


def broken_picture(folder: Path) -> Path:
    write_frames(folder / "f", np.full((4, 32, 32), 7, np.uint8), range(4))
    whole = (folder / "f" / "0002.png").read_bytes()
    (folder / "f" / "0002.png").write_bytes(whole[: len(whole) // 2])
    return folder / "f"


def other_size(folder: Path) -> Path:
    write_frames(folder / "f", np.full((4, 32, 32), 7, np.uint8), range(4))
    Image.fromarray(np.zeros((32, 30), np.uint8)).save(folder / "f" / "0009.png")
    return folder / "f"


def single_frame(folder: Path) -> Path:
    return write_dicom(folder / "still.dcm", np.full((32, 32), 7, np.uint8))


def constant(folder: Path) -> Path:
    return write_dicom(folder / "grey.dcm", np.full((4, 32, 32), 7, np.uint8))


def no_picture_inside(folder: Path) -> Path:
    (folder / "f").mkdir()
    (folder / "f" / "notes.txt").write_text("nothing here")
    return folder / "f"


def of_another_kind(folder: Path) -> Path:
    (folder / "report.pdf").write_bytes(b"%PDF-1.4" + b"x" * 200)
    return folder / "report.pdf"


def cut_dicom(folder: Path) -> Path:
    path = write_dicom(folder / "cut.dcm", np.full((4, 64, 64), 7, np.uint8))
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def several_in_one(folder: Path) -> Path:
    pages = [Image.fromarray(np.full((8, 8), 9 * n, np.uint8)) for n in range(3)]
    (folder / "f").mkdir()
    pages[0].save(folder / "f" / "0.tif", save_all=True, append_images=pages[1:])
    return folder / "f"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (break_video, "cannot be decoded"),
        (cut_avi, "cut short|cannot be decoded"),
        (empty_file, "is empty"),
        (broken_picture, r"0002\.png: not readable"),
        (other_size, "frame 4 has size"),
        (single_frame, "1 frame"),
        (constant, "every pixel is 7"),
        (several_in_one, "holds 3 pictures"),
        (no_picture_inside, "neither pictures nor DICOM"),
        (of_another_kind, "no sweep that can be read"),
        (cut_dicom, "cut short: 11[0-9]+ of 16384 bytes"),
        (lambda folder: folder / "missing.avi", "no such file"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, broken, message):
    path = broken(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_sweep(path, KNOWN)
    assert str(path) in str(caught.value)
