import contextlib
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from dicom_files import region, write_dicom
from PIL import Image

from uscl.data.sweeps import ASSUMED_MM, SweepReading, knows_spacing, parse_reading, read_sweep, read_sweep_label
from uscl.data.volume import Volume, write_volume
from uscl.errors import InputError
from uscl.phantom.video import write_frames, write_video

KNOWN = SweepReading((0.5, 0.25), 1.5)


@pytest.fixture
def frames() -> np.ndarray:
    """[frame, depth, lateral], as pictures are stored; no two frames, rows or columns alike."""
    return np.random.default_rng(0).integers(1, 255, (12, 24, 32), dtype=np.uint8)


def test_every_kind_gives_the_same_sweep(tmp_path, frames):
    expected = frames.transpose(2, 1, 0)
    write_frames(tmp_path / "frames", frames, range(12))
    write_dicom(tmp_path / "clip.dcm", frames)
    write_dicom(tmp_path / "colour.dcm", np.repeat(frames[..., None], 3, -1))
    for number, frame in enumerate(frames):  # names in another order than the instances
        write_dicom(tmp_path / "series" / f"x{11 - number:02d}", frame, InstanceNumber=number + 1)
    write_volume(tmp_path / "sweep.nrrd", Volume(expected))
    for name in ("frames", "clip.dcm", "colour.dcm", "series", "sweep.nrrd"):
        sweep = read_sweep(tmp_path / name, KNOWN)
        np.testing.assert_array_equal(sweep.array, expected, err_msg=name)
        assert sweep.spacing == (0.5, 0.25, 1.5)
        assert sweep.path == tmp_path / name


def test_video(tmp_path):
    # Smooth, as compression wants it; every frame has a brightness of its own.
    ramp = (
        np.linspace(40, 120, 64)[None, None, :]
        + np.linspace(0, 40, 48)[None, :, None]
        + 4.0 * np.arange(12)[:, None, None]
    )
    write_video(tmp_path / "clip.mp4", ramp.astype(np.uint8))
    sweep = read_sweep(tmp_path / "clip.mp4", KNOWN)
    assert sweep.shape == (64, 48, 12)
    assert np.abs(sweep.array - ramp.transpose(2, 1, 0)).max() < 6


def test_a_clip_that_was_trimmed_without_coding_it_anew(tmp_path):
    """Its edit list hides frames that the file still holds; a clip that was cut short lacks them."""
    ramp = np.linspace(40, 160, 64 * 48).reshape(1, 48, 64) + 4.0 * np.arange(30)[:, None, None]
    write_video(tmp_path / "whole.mp4", ramp.astype(np.uint8))
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "trimmed.mp4"), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None:
                packet.pts, packet.dts = packet.pts - 10 * packet.duration, packet.dts - 10 * packet.duration
                packet.stream = copied
                target.mux(packet)
    with av.open(str(tmp_path / "trimmed.mp4")) as clip:
        announced = clip.streams.video[0].frames
        shown = sum(1 for _ in clip.decode(video=0))
    assert shown < announced, "as players show it"
    assert read_sweep(tmp_path / "trimmed.mp4", KNOWN).shape == (64, 48, shown)


def test_frames_are_in_natural_order(tmp_path, frames):
    for number, frame in enumerate(frames):
        (tmp_path / "f").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "f" / f"frame_{number + 1}.png")
    np.testing.assert_array_equal(read_sweep(tmp_path / "f", KNOWN).array, frames.transpose(2, 1, 0))
    Image.fromarray(frames[0]).save(tmp_path / "f" / "frame_².png")  # a digit for Python, but no number
    assert read_sweep(tmp_path / "f", KNOWN).shape == (32, 24, 13)


def test_distances_that_nobody_knows_have_to_be_said(tmp_path, frames):
    write_frames(tmp_path / "f", frames, range(12))
    with pytest.raises(InputError, match="between pixels and frames are not known; give spacing and step"):
        read_sweep(tmp_path / "f")
    with pytest.raises(InputError, match="between frames are not known; give step"):
        read_sweep(tmp_path / "f", SweepReading((0.5, 0.25)))
    assumed = read_sweep(tmp_path / "f", SweepReading("assumed", "assumed"))
    assert assumed.spacing == (ASSUMED_MM / 32, ASSUMED_MM / 32, ASSUMED_MM / 12)
    assert not knows_spacing(tmp_path / "f")


def test_calibration_of_dicom(tmp_path, frames):
    known = write_dicom(
        tmp_path / "known.dcm", frames, SequenceOfUltrasoundRegions=region(), SpacingBetweenSlices="0.75"
    )
    assert read_sweep(known).spacing == pytest.approx((0.5, 0.25, 0.75))
    assert knows_spacing(known)
    # What the file knows is not assumed; what the user says wins.
    assert read_sweep(known, SweepReading("assumed", "assumed")).spacing == pytest.approx((0.5, 0.25, 0.75))
    assert read_sweep(known, SweepReading((1.0, 2.0), 3.0)).spacing == (1.0, 2.0, 3.0)
    # A region of the picture before it was scaled down, and one in seconds, say nothing of these pixels.
    for changed in ({"RegionLocationMaxX1": 600}, {"PhysicalUnitsXDirection": 4}):
        path = write_dicom(tmp_path / "other.dcm", frames, SequenceOfUltrasoundRegions=region(**changed))
        with pytest.raises(InputError, match="not known"):
            read_sweep(path, SweepReading(step=1.0))
        assert not knows_spacing(path)


def test_series_in_space(tmp_path, frames):
    # Slices along patient z, named so that names are in another order than places.
    for number, frame in enumerate(frames[:6]):
        tags = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [-10, 5, 2.5 * number]}
        tags |= {"PixelSpacing": [0.25, 0.5], "InstanceNumber": 9 - number}
        write_dicom(tmp_path / "s" / f"{(number * 5) % 6}.dcm", frame, **tags)
    volume = read_sweep(tmp_path / "s")
    np.testing.assert_array_equal(volume.array, frames[:6].transpose(2, 1, 0))
    assert volume.spacing == pytest.approx((0.5, 0.25, 2.5))
    assert volume.origin == (-10, 5, 0)
    assert knows_spacing(tmp_path / "s")
    (tmp_path / "s" / f"{(2 * 5) % 6}.dcm").unlink()
    with pytest.raises(InputError, match="slices are missing or there twice"):
        read_sweep(tmp_path / "s")


def in_space(folder: Path, frames: np.ndarray, places: list[list[float]], **tags) -> Path:
    for number, (frame, place) in enumerate(zip(frames, places, strict=True)):
        write_dicom(
            folder / f"{number}.dcm",
            frame,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=place,
            PixelSpacing=[0.25, 0.5],
            InstanceNumber=number,
            **tags,
        )
    return folder


def test_slices_that_lie_askew_are_not_straightened_silently(tmp_path, frames):
    in_space(tmp_path / "s", frames[:6], [[0, 0.7 * n, 2.5 * n] for n in range(6)])
    with pytest.raises(InputError, match="lie askew"):
        read_sweep(tmp_path / "s")
    in_space(tmp_path / "t", frames[:6], [[0, 0.01 * n, 2.5 * n] for n in range(6)])
    assert read_sweep(tmp_path / "t").shape == (32, 24, 6)


def test_the_directory_of_a_disc_is_no_slice(tmp_path, frames):
    in_space(tmp_path / "s", frames[:6], [[0, 0, 2.5 * n] for n in range(6)])
    write_dicom(tmp_path / "s" / "DICOMDIR", frames[0], SeriesInstanceUID="9.9")
    assert read_sweep(tmp_path / "s").shape == (32, 24, 6)


def test_frames_of_a_scan_need_their_places(tmp_path, frames):
    with pytest.raises(InputError, match=r"frames of a scan \(CT\)"):
        read_sweep(write_dicom(tmp_path / "ct.dcm", frames, Modality="CT"), KNOWN)


def test_instance_numbers_that_stand_twice(tmp_path, frames):
    for number in range(4):
        write_dicom(tmp_path / "s" / f"{number}.dcm", frames[number], InstanceNumber=number // 2)
    with pytest.raises(InputError, match="same instance number"):
        read_sweep(tmp_path / "s", KNOWN)


def test_frames_that_are_missing_are_not_passed_over(tmp_path, frames):
    for number in range(8):
        write_dicom(tmp_path / "s" / f"{number}.dcm", frames[number], InstanceNumber=2 * number + 1)
    assert read_sweep(tmp_path / "s", KNOWN).shape == (32, 24, 8)
    (tmp_path / "s" / "3.dcm").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"3\.dcm: is no DICOM file"):
        read_sweep(tmp_path / "s", KNOWN)
    (tmp_path / "s" / "3.dcm").unlink()
    with pytest.raises(InputError, match="instance 5 is followed by 9"):
        read_sweep(tmp_path / "s", KNOWN)


def test_slices_of_several_orientations_are_not_frames(tmp_path, frames):
    in_space(tmp_path / "s", frames[:3], [[0, 0, 2.5 * n] for n in range(3)], Modality="MR")
    write_dicom(
        tmp_path / "s" / "9.dcm",
        frames[3],
        ImageOrientationPatient=[0, 1, 0, 0, 0, 1],
        Modality="MR",
        ImagePositionPatient=[0, 0, 0],
        PixelSpacing=[0.25, 0.5],
        InstanceNumber=3,
    )
    with pytest.raises(InputError, match="slices of several orientations"):
        read_sweep(tmp_path / "s", KNOWN)


def test_white_is_white_where_0_is_white(tmp_path, frames):
    inverted = write_dicom(tmp_path / "i.dcm", 255 - frames, PhotometricInterpretation="MONOCHROME1")
    sweep = read_sweep(inverted, KNOWN).array.astype(int)
    assert np.ptp(sweep - frames.transpose(2, 1, 0).astype(int)) == 0


def test_colours_that_two_pixels_share_are_not_missing(tmp_path, frames):
    """YBR_FULL_422 has two bytes for a pixel of three samples: not a file that was cut short."""
    shared = np.full((12, 24, 16, 4), 128, np.uint8)  # luma of two pixels, then their two colours
    shared[..., 0], shared[..., 1] = frames[..., ::2], frames[..., 1::2]
    tags = {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": shared.tobytes()}
    path = write_dicom(tmp_path / "c.dcm", np.repeat(frames[..., None], 3, -1), **tags)
    np.testing.assert_array_equal(read_sweep(path, KNOWN).array, frames.transpose(2, 1, 0))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cut short"):
        read_sweep(path, KNOWN)


@pytest.mark.parametrize("kind", ["dicom", "picture"])
def test_damaged_files_are_reported_and_nothing_else(tmp_path, frames, kind):
    """Some bytes are changed at random: what cannot be read is an InputError, never another exception."""
    if kind == "dicom":
        path = read = write_dicom(tmp_path / "clip.dcm", frames, SequenceOfUltrasoundRegions=region())
    else:
        write_frames(tmp_path / "f", frames, range(12))
        path, read = tmp_path / "f" / "0003.png", tmp_path / "f"
    whole, random = path.read_bytes(), np.random.default_rng(0)
    readable = 0
    for _ in range(60):
        changed = bytearray(whole)
        for place in random.integers(min(1000, len(whole)), size=4):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(InputError):
            read_sweep(read, KNOWN)
            readable += 1
    assert readable < 50


def test_nan_is_refused(tmp_path):
    (tmp_path / "f").mkdir()
    for number in range(4):
        values = np.full((8, 8), float(number), np.float32)
        values[0, 0] = np.nan
        Image.fromarray(values).save(tmp_path / "f" / f"{number}.tif")
    with pytest.raises(InputError, match="NaN"):
        read_sweep(tmp_path / "f", KNOWN)


def test_two_series_are_not_mixed(tmp_path, frames):
    write_dicom(tmp_path / "s" / "a.dcm", frames[0])
    write_dicom(tmp_path / "s" / "b.dcm", frames[1], SeriesInstanceUID="1.2.4")
    with pytest.raises(InputError, match="holds 2 DICOM series"):
        read_sweep(tmp_path / "s", KNOWN)


def sector_clip() -> tuple[np.ndarray, np.ndarray]:
    """Frames [frame, depth, lateral, 3] with speckle in a sector, text and a coloured mark outside; and the sector."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    sector = (np.abs(x - 64) < 4 + 0.6 * y) & (np.hypot(x - 64, y) < 90) & (y > 6)
    fluid = np.hypot(x - 64, y - 50) < 12
    frames = np.zeros((16, 96, 128), np.uint8)
    for frame in frames:
        frame[:] = np.where(sector & ~fluid, random.integers(20, 200, sector.shape), 0)
        frame[2:8, 2:22] = 255
    return np.repeat(frames[..., None], 3, -1), sector


def test_overlay_is_blackened_and_the_sector_kept(tmp_path):
    clip, sector = sector_clip()
    for number, frame in enumerate(clip):
        frame[90:94, 2 + number : 4 + number] = 255  # a progress bar moves, but is thin
    path = write_dicom(tmp_path / "clip.dcm", clip)
    plain = read_sweep(path, KNOWN).array
    cleaned = read_sweep(path, SweepReading((0.5, 0.5), 1.0, ("overlay",))).array
    assert (plain[2:22, 2:8] == 255).all()
    assert (cleaned[2:22, 2:8] == 0).all()
    assert (cleaned[2:22, 90:94] == 0).all()
    inside = sector.T
    kept = cleaned[inside] == plain[inside]
    assert kept.mean() > 0.99
    with pytest.raises(InputError, match="too few"):
        read_sweep(write_dicom(tmp_path / "short.dcm", clip[:4]), SweepReading((0.5, 0.5), 1.0, ("overlay",)))


def test_still_clip_has_no_sector(tmp_path):
    path = write_dicom(tmp_path / "still.dcm", np.repeat(sector_clip()[0][:1], 10, 0))
    with pytest.raises(InputError, match="too little changes"):
        read_sweep(path, SweepReading((0.5, 0.5), 1.0, ("overlay",)))


def test_doppler_is_blackened(tmp_path):
    clip, _ = sector_clip()
    clip[:, 40:44, 60:68] = (220, 40, 30)
    path = write_dicom(tmp_path / "clip.dcm", clip)
    plain, without = (read_sweep(path, SweepReading((1.0, 1.0), 1.0, mask)).array for mask in ((), ("doppler",)))
    assert (without[60:68, 40:44] == 0).all()
    assert (plain[60:68, 40:44] == round(0.299 * 220 + 0.587 * 40 + 0.114 * 30)).all()
    grey = np.ones(plain.shape, bool)
    grey[60:68, 40:44] = False
    np.testing.assert_array_equal(plain[grey], without[grey])


def test_labels_of_a_clip(tmp_path, frames):
    write_frames(tmp_path / "f", frames, range(12))
    sweep = read_sweep(tmp_path / "f", KNOWN)
    ids = (frames > 128).astype(np.uint8) * 3
    write_frames(tmp_path / "masks", ids, range(12))
    write_volume(tmp_path / "mask.nii.gz", Volume(ids.transpose(2, 1, 0)))
    palette = tmp_path / "palette"
    palette.mkdir()
    for number, frame in enumerate(ids):
        picture = Image.fromarray(frame).convert("P")
        picture.putdata(frame.ravel().tolist())
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture.save(palette / f"{number}.png")
    for name in ("masks", "mask.nii.gz", "palette"):
        label = read_sweep_label(tmp_path / name, sweep)
        np.testing.assert_array_equal(label.array, ids.transpose(2, 1, 0), err_msg=name)
        assert label.same_grid(sweep) is None
    (tmp_path / "masks" / "0003.png").unlink()
    with pytest.raises(InputError, match="the sweep's own frames, all of them"):
        read_sweep_label(tmp_path / "masks", sweep)


def test_label_volume_must_lie_on_the_grid_of_an_image_volume(tmp_path, frames):
    array = frames.transpose(2, 1, 0)
    write_volume(tmp_path / "image.nii.gz", Volume(array, (1.0, 1.0, 2.0)))
    write_volume(tmp_path / "label.nii.gz", Volume((array > 99).astype(np.uint8), (1.0, 1.0, 2.0)))
    write_volume(tmp_path / "moved.nii.gz", Volume((array > 99).astype(np.uint8), (1.0, 1.0, 2.0), (9.0, 0.0, 0.0)))
    sweep = read_sweep(tmp_path / "image.nii.gz", SweepReading(step=0.5))
    assert read_sweep_label(tmp_path / "label.nii.gz", sweep).spacing == (1.0, 1.0, 0.5)
    with pytest.raises(InputError, match="does not lie on the grid"):
        read_sweep_label(tmp_path / "moved.nii.gz", sweep)


def test_label_volume_must_lie_on_the_grid_of_a_series_in_space(tmp_path, frames):
    """As after a conversion that stores rows the other way: the same shape, another place."""
    in_space(tmp_path / "s", frames[:6], [[0, 0, 2.5 * n] for n in range(6)])
    series = read_sweep(tmp_path / "s")
    array = (series.array > 99).astype(np.uint8)
    write_volume(tmp_path / "label.nii.gz", series.with_array(array))
    assert np.array_equal(read_sweep_label(tmp_path / "label.nii.gz", series).array, array)
    apart = read_sweep(tmp_path / "s", SweepReading(step=0.5))
    assert read_sweep_label(tmp_path / "label.nii.gz", apart).spacing[2] == 0.5
    write_volume(
        tmp_path / "turned.nii.gz",
        Volume(array[:, ::-1], series.spacing, (0.0, 23 * 0.25, 0.0), np.diag([1.0, -1.0, 1.0])),
    )
    with pytest.raises(InputError, match="does not lie on the grid"):
        read_sweep_label(tmp_path / "turned.nii.gz", series)


def test_coloured_masks_are_refused(tmp_path, frames):
    write_frames(tmp_path / "f", frames, range(12))
    Image.fromarray(np.repeat(frames[0, ..., None], 3, -1)).save(tmp_path / "f" / "0004.png")
    with pytest.raises(InputError, match=r"0004\.png: is in colour"):
        read_sweep_label(tmp_path / "f", Volume(frames.transpose(2, 1, 0)))


@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_masks_that_lost_their_ids_are_refused(tmp_path, frames, ending):
    sweep = Volume(frames.transpose(2, 1, 0))
    (tmp_path / "m").mkdir()
    for number in range(12):
        ids = np.zeros((24, 32), np.float32 if ending == ".tif" else np.uint8)
        Image.fromarray(ids).save(tmp_path / "m" / f"{number}{ending}")
    with pytest.raises(InputError, match="JPEG changes label ids|holds fractions"):
        read_sweep_label(tmp_path / "m", sweep)


def test_black_and_white_masks_are_labels(tmp_path, frames):
    (tmp_path / "m").mkdir()
    for number in range(12):
        Image.fromarray(frames[number] > 100).save(tmp_path / "m" / f"{number}.png")
    label = read_sweep_label(tmp_path / "m", Volume(frames.transpose(2, 1, 0)))
    np.testing.assert_array_equal(label.array, frames.transpose(2, 1, 0) > 100)


def test_readings_in_tables():
    assert parse_reading() == SweepReading()
    assert parse_reading("0.3", "1", "overlay doppler") == SweepReading((0.3, 0.3), 1.0, ("overlay", "doppler"))
    assert parse_reading("0.3 0.2", "assumed") == SweepReading((0.3, 0.2), "assumed")
    for wrong in (("a",), ("1 2 3",), ("", "1 2"), ("0",), ("", "-1"), ("inf",), ("", "nan"), ("", "", "everything")):
        with pytest.raises(InputError):
            parse_reading(*wrong)


@pytest.mark.shared
def test_real_clips(shared_data, tmp_path):
    for name, shape in [
        ("us_pocus/Pneu_northumbria_0409_set3_vid1.avi", (481, 481, 90)),
        ("us_pocus/Reg_pat1Image_132943.mpeg", (370, 370, 280)),
        ("us_pydicom/examples_ybr_color.dcm", (320, 240, 30)),
        ("us_plus/Prostate10_video.igs.mhd", (640, 480, 10)),
    ]:
        sweep = read_sweep(shared_data / name, SweepReading("assumed", "assumed"))
        assert sweep.shape == shape
        assert np.percentile(sweep.array, 99) > 60
    shutil.copy(shared_data / "us_pydicom" / "examples_ybr_color.dcm", tmp_path / "clip.dcm")
    cleaned = read_sweep(tmp_path / "clip.dcm", SweepReading("assumed", "assumed", ("overlay", "doppler")))
    assert (cleaned.array[:30, :20] == 0).all()  # the maker's name
