"""Which runs a report finds, what it averages and what it leaves out, with the reason."""

import json
import shutil

import pytest
import torch
import yaml
from evaluation.report_runs import folders_on, write_run
from safetensors.torch import save_file

from uscl.errors import InputError
from uscl.evaluation.ablation import look_at, table3
from uscl.evaluation.comparison import table1
from uscl.evaluation.rows import read_rows
from uscl.evaluation.runs import Setting, find_runs


def test_rows_that_do_not_say_how_they_were_made_are_not_mixed_with_others(study):
    file = folders_on(study, "BraTS")[0] / "rows.csv"
    lines = [line.rsplit(",", 3)[0] for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    assert {row.inference for row in read_rows(file)} == {"not recorded"}
    with pytest.raises(InputError, match=r"not be compared \(.*not recorded"):
        find_runs([study])


def of_an_earlier_version(test, options: dict, region: str = "label") -> None:
    """Without the columns of words; the settings stood in the configuration alone."""
    file = test / "rows.csv"
    lines = file.read_text().splitlines()
    if lines[0].endswith("distances"):
        file.write_text("\n".join(line.rsplit(",", 3)[0] for line in lines) + "\n")
    config = {"model": {"class_path": "uscl.stages.LoRASegModule", "init_args": options}}
    (test / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"init_args": {"region": region}}}))


def test_tests_of_earlier_versions_have_their_words_in_their_settings(tmp_path):
    tests = [write_run(tmp_path / name, "LoRA", {"sweeps": 0.5}, rank=rank) for name, rank in (("a", 8), ("b", 16))]
    tests = [run / "tests" / "sweeps" for run in tests]
    usual = {"protocol": {"deepest_clicks": 0}, "shifts": 1, "guided_filter": False, "first_twice": None}
    for test in tests:
        of_an_earlier_version(test, usual | {"backbone": "mini"})
    runs = find_runs([tmp_path])
    assert {run.inferences["sweeps"] for run in runs} == {"published"}
    protocol = "patches around the label, clicks drawn from all wrong voxels, the mask after as many clicks scored"
    assert {row.protocol for run in runs for row in run.rows["sweeps"]} == {protocol}
    for other, region, words in (
        ({"shifts": 4, "guided_filter": True, "backbone": "mini_fine"}, "label", "4 shifts, guided filter, first"),
        ({"protocol": {"deepest_clicks": 2}}, "label", "the first 2 clicks in the middle of the largest error"),
        ({}, "first_click", "patches around the first click"),
    ):
        of_an_earlier_version(tests[1], usual | other, region)
        with pytest.raises(InputError, match=f"not be compared.*{words}"):
            find_runs([tmp_path])


def test_settings_of_an_earlier_test_that_cannot_be_read_leave_out_that_run_alone(study, caplog):
    test = study / "a" / "full0" / "tests" / "BraTS"
    of_an_earlier_version(test, {})
    (test / "config.yaml").write_text("a: [")
    assert len(find_runs([study])) == 3 + 18 + 3 + 3 + 1 - 1
    assert "full0: cannot be used" in caplog.text


def test_two_methods_of_one_name_are_not_shown_as_one(tmp_path):
    for name, family in (("a", "own_a.Mine"), ("b", "own_b.Mine")):
        run = write_run(tmp_path / name, "LoRA", {"sweeps": 0.5}, seed=0)
        noted = {"family": family, "modules": "both", "rank": 8, "vcl": False, "label": "Mine"}
        (run / "run.json").write_text(json.dumps({"status": "finished", "setting": noted, "data_set": "sweeps"}))
    with pytest.raises(InputError, match="two methods are shown as 'Mine.*; test one of them again with another"):
        table1(look_at(find_runs([tmp_path])))


def test_runs_that_are_not_finished_or_not_tested_are_reported(study, tmp_path, caplog):
    write_run(study / "killed", "AdaptFormer", {"sweeps": 0.5}, status="running")
    write_run(study / "untested", "AdaptFormer", {}, seed=1)
    runs = find_runs([study])
    assert "AdaptFormer" not in {run.setting.family for run in runs}
    assert "killed: is not finished (running); left out" in caplog.text
    assert "untested: has not been tested" in caplog.text


def test_a_test_by_itself_belongs_to_the_run_that_left_its_adapter(tmp_path):
    training = write_run(tmp_path / "training", "LoRA", {}, seed=2, rank=16, vcl=True)
    test = write_run(tmp_path / "test", None, {"sweeps": 0.5})
    config = yaml.safe_load((test / "config.yaml").read_text())
    config["model"]["init_args"]["adapter"] = str(training / "adapter.safetensors")
    (test / "config.yaml").write_text(yaml.safe_dump(config))
    noted = {"family": "LoRA", "modules": "both", "rank": 16, "vcl": True}
    (test / "run.json").write_text(json.dumps({"status": "finished", "setting": noted, "data_set": "sweeps"}))
    run = find_runs([test])[0]
    assert (run.setting, run.seed) == (Setting("LoRA", "both", 16, vcl=True), 2)
    # Trained anew since, with other settings perhaps: whose figures these are is not known any more.
    (test / "run.json").write_text(json.dumps({"status": "finished", "started": "2026-01-01T00:00:00+00:00"}))
    (training / "run.json").write_text(json.dumps({"status": "finished", "started": "2026-01-02T00:00:00+00:00"}))
    with pytest.raises(InputError, match="no finished run with rows"):
        find_runs([test])


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "x" * 500])
def test_damaged_rows_are_reported(study, caplog, content):
    (study / "a" / "full0" / "tests" / "BraTS" / "rows.csv").write_text(content)
    assert len(find_runs([study])) == 3 + 18 + 3 + 3 + 1 - 1
    assert "full0: cannot be used" in caplog.text


def test_runs_that_must_not_be_averaged(study, tmp_path):
    write_run(study / "again", "FullTuning", {"sweeps": 0.5}, seed=0)
    with pytest.raises(InputError, match="give one of them"):
        find_runs([study])
    write_run(tmp_path / "x" / "1", "LoRA", {"sweeps": 0.5}, seed=0)
    write_run(tmp_path / "x" / "2", "LoRA", {"sweeps": 0.5}, seed=1, epochs=50)
    with pytest.raises(InputError, match="differ in data, clicks, optimiser or length"):
        find_runs([tmp_path / "x"])


def test_which_data_set_was_tuned_on(tmp_path):
    write_run(tmp_path / "1", "LoRA", {"pleura": 0.5, "liver": 0.4, "AMOS22": 0.3})
    runs = find_runs([tmp_path])
    with pytest.raises(InputError, match="which data set was tuned on"):
        look_at(runs)
    with pytest.raises(InputError, match="no run was tested on 'spleen'"):
        look_at(runs, data_set="spleen")
    found = look_at(runs, data_set="pleura")
    assert found.scans == ("AMOS22",)
    assert found.others == ("liver", "AMOS22")
    assert "pleura: 12 objects" in table3(found).note


def test_two_tests_of_one_data_set_are_not_mixed(study):
    """By another protocol, or of another site with a folder of the same name."""
    run = study / "a" / "bothTrue0"
    shutil.copytree(run / "tests" / "sweeps", run / "tests" / "bedside")
    with pytest.raises(InputError, match="both tested on sweeps; a report shows one"):
        find_runs([study])


def test_a_training_that_went_on_is_known_by_its_adapter(tmp_path):
    run = write_run(tmp_path / "on", "LoRA", {"sweeps": 0.5}, rank=32)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["adapter"] = "runs/first/adapter.safetensors"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    part = {"method": "LoRA", "rank": 8, "modules": "both"}
    described = {"method": "USCL-Med3D", "tuning": {"encoder": part, "decoder": part}}
    save_file({"x": torch.zeros(1)}, run / "adapter.safetensors", {"adapter": json.dumps(described)})
    (run / "run.json").write_text('{"status": "finished"}')  # as an earlier version left it
    (found,) = find_runs([tmp_path])
    assert found.setting == Setting("LoRA", "both", 8, vcl=True)


def test_a_training_costs_once_however_many_tests_it_has(tmp_path):
    run = write_run(tmp_path / "training", "LoRA", {"sweeps": 0.5})
    for name in ("AMOS22", "BraTS"):
        test = write_run(tmp_path / name, None, {name: 0.5})
        config = yaml.safe_load((test / "config.yaml").read_text())
        config["model"]["init_args"]["adapter"] = str(run / "adapter.safetensors")
        (test / "config.yaml").write_text(yaml.safe_dump(config))
    runs = find_runs([tmp_path])
    assert len(runs) == 3
    ablation = look_at(runs)
    assert len(ablation.costs(Setting("LoRA", "both", 32))) == 1
