import csv
import json

import numpy as np
import pytest

from uscl.data.volume import Volume, write_volume
from uscl.errors import InputError
from uscl.phantom.brain import build_brain
from uscl.phantom.ct import PHASES, render_ct
from uscl.phantom.label_maps import LABEL_MAPS, torso_from_labels
from uscl.phantom.machine import MACHINES, draw_machine, draw_pose
from uscl.phantom.medium import Medium
from uscl.phantom.mr import CONTRASTS, render_mr, tissue_signal
from uscl.phantom.structures import ACOUSTICS, Structure
from uscl.phantom.torso import Pathology, build_torso, draw_pathology
from uscl.phantom.ultrasound import simulate_sweep

S = Structure
ML = 2.0**3 / 1000


@pytest.fixture(scope="module")
def torsos():
    kinds = ["pleural", "abdominal"]
    return [build_torso(seed, draw_pathology(np.random.default_rng(seed), kinds[seed % 2])) for seed in range(4)]


def volume(anatomy, *structures) -> float:
    return float(np.isin(anatomy.structure, structures).sum() * ML)


def test_organs_have_the_volumes_of_organs(torsos):
    for anatomy in torsos:
        assert 1000 < volume(anatomy, S.LIVER, S.LIVER_VESSEL) < 2250
        assert 70 < volume(anatomy, S.SPLEEN) < 460
        for side in ("RIGHT", "LEFT"):
            kidney = volume(anatomy, *(S[f"{part}_{side}"] for part in ("KIDNEY", "SINUS", "PYRAMID")))
            assert 90 < kidney < 270
        assert volume(anatomy, S.LUNG_RIGHT) > 500
        assert volume(anatomy, S.VERTEBRA) > 100
        assert volume(anatomy, S.RIB) > 100
        assert volume(anatomy, S.PANCREAS) > 5


def test_organs_lie_where_they_belong(torsos):
    for anatomy in torsos:
        middle = {}
        for structure in (S.LIVER, S.SPLEEN, S.KIDNEY_RIGHT, S.KIDNEY_LEFT, S.VERTEBRA, S.LUNG_RIGHT, S.HEART):
            voxels = np.argwhere(anatomy.structure == structure)
            middle[structure] = voxels.mean(0) * 2 + anatomy.origin
        assert middle[S.LIVER][0] < 0 < middle[S.SPLEEN][0], "x grows to the patient's left"
        assert middle[S.KIDNEY_RIGHT][0] < 0 < middle[S.KIDNEY_LEFT][0]
        assert middle[S.VERTEBRA][1] > middle[S.LIVER][1], "y grows to the back"
        assert middle[S.LUNG_RIGHT][2] > middle[S.LIVER][2] > middle[S.KIDNEY_RIGHT][2], "z grows to the head"


@pytest.mark.slow
def test_fluid_has_the_volume_that_was_asked_for():
    dry, wet = (build_torso(5, Pathology({"right": ml} if ml else {}, atelectasis=0.2)) for ml in (0, 800))
    assert volume(dry, S.EFFUSION) == 0
    assert volume(wet, S.EFFUSION) == pytest.approx(800, rel=0.05)
    assert volume(wet, S.ATELECTASIS) > 50
    septa = build_torso(5, Pathology({"right": 800}, complex_effusion=True))
    assert volume(septa, S.SEPTUM) > 5
    ascites = build_torso(5, Pathology({}, ascites_mm=10))
    assert volume(ascites, S.ASCITES) > 100


@pytest.mark.slow
def test_the_same_seed_is_the_same_patient(torsos):
    again = build_torso(0, draw_pathology(np.random.default_rng(0), "pleural"))
    assert np.array_equal(again.structure, torsos[0].structure)
    assert not np.array_equal(build_torso(1, Pathology({})).structure, build_torso(2, Pathology({})).structure)


def test_every_structure_of_the_trunk_can_be_insonated(torsos):
    found = set().union(*(np.unique(anatomy.structure).tolist() for anatomy in torsos))
    assert {S(i) for i in found} <= set(ACOUSTICS)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_head_has_a_brain_and_a_tumour_of_the_drawn_size(seed):
    head = build_brain(seed)
    ml = {s: (head.structure == s).sum() / 1000 for s in S}
    assert 900 < ml[S.GREY_MATTER] + ml[S.WHITE_MATTER] + ml[S.DEEP_GREY_MATTER] < 1900
    assert ml[S.GREY_MATTER] > 200
    assert 5 < ml[S.VENTRICLE] < 90
    assert ml[S.TUMOUR_RIM] + ml[S.TUMOUR_CORE] == pytest.approx(head.parameters["tumour_ml"], rel=0.02)
    assert ml[S.TUMOUR_CORE] == pytest.approx(head.parameters["core_ml"], rel=0.02)
    assert ml[S.OEDEMA] > 0.5 * head.parameters["oedema_ml"]


def test_a_head_without_a_tumour():
    healthy = build_brain(0, tumour=False)
    assert not np.isin(healthy.structure, (S.TUMOUR_CORE, S.TUMOUR_RIM, S.OEDEMA)).any()


def test_hounsfield_units_and_contrast_phases(torsos):
    means = {}
    for phase in PHASES:
        image, _ = render_ct(torsos[0], phase, np.random.default_rng(0))
        means[phase] = {s: image[torsos[0].structure == s].mean() for s in (S.LIVER, S.AORTA, S.FAT, S.LUNG_RIGHT)}
    assert means["plain"][S.LIVER] == pytest.approx(57, abs=20)
    assert means["portal"][S.LIVER] > means["plain"][S.LIVER] + 25
    assert means["arterial"][S.AORTA] > 200 > means["portal"][S.AORTA] > means["plain"][S.AORTA] + 60
    assert means["plain"][S.FAT] < -60
    assert means["plain"][S.LUNG_RIGHT] < -700


def test_mr_contrasts_are_what_radiologists_expect():
    signal = {contrast: tissue_signal(contrast) for contrast in CONTRASTS}
    assert signal["t1"][S.WHITE_MATTER] > signal["t1"][S.GREY_MATTER] > signal["t1"][S.CSF]
    assert signal["t2"][S.CSF] > signal["t2"][S.GREY_MATTER] > signal["t2"][S.WHITE_MATTER]
    assert signal["flair"][S.OEDEMA] > 1.3 * signal["flair"][S.WHITE_MATTER]
    assert signal["flair"][S.CSF] < 0.15 * signal["flair"][S.OEDEMA], "FLAIR suppresses fluid"
    assert signal["t1c"][S.TUMOUR_RIM] > 1.5 * signal["t1"][S.TUMOUR_RIM]
    assert signal["t1"][S.FAT] > signal["t1"][S.LIVER] > signal["t1"][S.SPLEEN]


def test_mr_noise_is_rician_and_the_bias_field_smooth():
    head = build_brain(1)
    image, drawn = render_mr(head, "t2", np.random.default_rng(0))
    air = image[head.structure == S.OUTSIDE].astype(float)
    assert air.mean() == pytest.approx(drawn["noise"] * np.sqrt(np.pi / 2), rel=0.05), "Rayleigh in air"
    assert air.std() == pytest.approx(drawn["noise"] * np.sqrt(2 - np.pi / 2), rel=0.08)


@pytest.mark.parametrize("name", MACHINES)
def test_machines_differ_in_what_they_show(name):
    random = np.random.default_rng(0)
    drawn = [draw_machine(random, name) for _ in range(30)]
    low, high = MACHINES[name].frequency
    assert all(low <= machine.frequency <= high for machine in drawn)
    assert len({machine.gain for machine in drawn}) == 30


def test_unknown_machine():
    with pytest.raises(InputError, match="no machine 'toaster'; choose one of any, handheld"):
        draw_machine(np.random.default_rng(0), "toaster")


@pytest.mark.parametrize("view", ["pleural", "abdominal"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_probes_touch_the_skin_and_look_inwards(torsos, view, side):
    anatomy = torsos[0]
    pose = draw_pose(np.random.default_rng(3), anatomy, side, view, 30)
    for origin, axis, lateral in zip(pose.origin, pose.axis, pose.lateral, strict=True):
        radius = float(origin[:2].norm())
        skin = anatomy.trunk.skin_distance(*(origin[:2] / radius).tolist())
        assert 0 < skin - radius < 8
        assert (axis[:2] @ origin[:2]) < 0
        assert abs(axis @ lateral) < 1e-4
        assert lateral[2] < -0.8, "the first beam points to the head"
        assert (origin[0] < 0) == (side == "right")
    steps = (pose.origin[1:] - pose.origin[:-1]).norm(dim=1)
    assert 0.4 < steps.mean() < 1.7


def fake_organs(tmp_path, mirrored: bool, label_map: str = "btcv"):
    """A liver, a spleen and kidneys as boxes, in a layout of its own, liver on the right unless mirrored."""
    names = {structure: i for i, structure in LABEL_MAPS[label_map].items()}
    array = np.zeros((90, 70, 60), np.uint8)
    array[10:45, 15:50, 25:50] = names[S.LIVER]
    array[65:80, 35:55, 28:48] = names[S.SPLEEN]
    array[28:40, 45:58, 5:24] = names[S.KIDNEY_RIGHT]
    array[55:64, 45:58, 5:24] = names[S.KIDNEY_LEFT]
    if mirrored:
        array = array[::-1]
    # Stored with other axes: z first, and x to the right.
    stored = np.ascontiguousarray(array.transpose(2, 0, 1)[:, ::-1])
    direction = np.array([[0, -1.0, 0], [0, 0, 1], [1, 0, 0]])
    path = tmp_path / f"{label_map}{mirrored}.nii.gz"
    return write_volume(path, Volume(stored, (3.0, 3.0, 3.0), (0, 0, 0), direction))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("label_map", LABEL_MAPS)
def test_real_label_maps_whatever_their_orientation(tmp_path, mirrored, label_map):
    anatomy = torso_from_labels(fake_organs(tmp_path, mirrored, label_map), label_map, 0, Pathology({"right": 400}, 0))
    middle = {
        s: (np.argwhere(anatomy.structure == s).mean(0) * 2 + anatomy.origin).tolist()
        for s in (S.LIVER, S.SPLEEN, S.KIDNEY_RIGHT, S.KIDNEY_LEFT)
    }
    assert middle[S.LIVER][0] < middle[S.SPLEEN][0]
    assert middle[S.KIDNEY_RIGHT][0] < middle[S.KIDNEY_LEFT][0]
    assert middle[S.LIVER][2] > middle[S.KIDNEY_RIGHT][2]
    assert volume(anatomy, S.LIVER) == pytest.approx(35 * 35 * 25 * 27 / 1000, rel=0.1)
    assert volume(anatomy, S.EFFUSION) > 100
    for structure in (S.RIB, S.SKIN, S.DIAPHRAGM, S.LUNG_RIGHT, S.VERTEBRA):
        assert volume(anatomy, structure) > 5


def test_a_map_without_organs_is_refused(tmp_path):
    array = np.zeros((30, 30, 30), np.uint8)
    array[5:20, 5:20, 5:20] = 40
    path = write_volume(tmp_path / "map.nii.gz", Volume(array, (3.0,) * 3))
    with pytest.raises(InputError, match=r"map\.nii\.gz: no liver.*btcv"):
        torso_from_labels(path, "btcv", 0, Pathology({}))


REAL_MAPS = [
    ("labels_btcv_l2r/*.nii.gz", "btcv"),
    ("ct_mr_totalseg/example_seg_fast_force_split.nii.gz", "totalsegmentator"),
]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("pattern", "label_map"), REAL_MAPS)
def test_every_real_label_map_gives_a_sweep_of_an_organ_and_a_kidney(shared_data, pattern, label_map):
    files = sorted(shared_data.glob(pattern))
    assert files
    for number, file in enumerate(files[:: 1 if len(files) == 1 else 4]):
        random = np.random.default_rng(number)
        anatomy = torso_from_labels(file, label_map, number, draw_pathology(random, "abdominal"))
        medium, seen = Medium.of(anatomy), []
        for side in ("right", "left"):
            pose = draw_pose(random, anatomy, side, "abdominal", 16)
            sweep = simulate_sweep(medium, pose, draw_machine(random, "cart"), (96, 96), number)
            shown = sweep.label[sweep.visible > 0]
            seen.append(((shown == 3).sum() + (shown == 4).sum() > 500) and (shown == 5).sum() > 200)
        assert any(seen), file.name


def test_manifest_matches_what_is_on_disk(study):
    with (study / "sweeps.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    for row in rows:
        assert all((study / row[kind]).is_file() for kind in ("image", "label", "visible"))
        assert row["sweep"].startswith(row["patient"])
        assert json.loads((study / "parameters" / f"{row['sweep']}.json").read_text())["view"] == row["site"]
