"""W&B sweep files: which cells they ask for, and that W&B's own agent would run the same."""

import copy
import sys

import pytest
import yaml
from end_to_end.running import EXPERIMENTS

from uscl.cli import main
from uscl.cli.commands.sweep_file import cell_command, cell_name, read_sweep_file
from uscl.cli.lightning_cli import resolve
from uscl.errors import InputError

FILES = [
    file
    for folder in ("sweeps", "ablation", "tables", "reproduce")
    for file in sorted((EXPERIMENTS / folder).glob("*.yaml"))
    if "parameters:" in file.read_text()
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_sweep_files_mean_the_same_to_wandb_and_to_our_command_line(file, tmp_path, monkeypatch):
    """W&B's own macro expansion gives the arguments that we give, and our parser takes them."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.chdir(EXPERIMENTS.parent)
    asked = read_sweep_file(file)
    assert len({cell_name(cell) for cell in asked.cells}) == len(asked.cells)
    known = {("val/dice", True), ("train/loss", False), ("val/mse", False), (None, False)}
    assert (asked.metric, asked.maximise) in known
    commands = []
    for cell in asked.cells:
        theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in cell.items()}})["args"]
        ours = cell_command(asked.command, cell, tmp_path)
        expanded = create_sweep_command(copy.copy(list(asked.command)))
        assert expanded[:2] == ["${env}", "uscl"]
        at = expanded.index("${args}")
        filled = [*expanded[2:at], *theirs, *expanded[at + 1 :]]
        assert ours == [
            *(sys.executable, "-m", "uscl", *filled),
            *(f"--trainer.default_root_dir={tmp_path}", "--overwrite"),
        ]
        commands.append(ours[3:])
    config = resolve(commands[-1])
    assert config["seed_everything"] == asked.cells[-1].get("seed_everything", 0)
    assert config["trainer"]["default_root_dir"] == str(tmp_path)


def test_values_reach_the_parser_as_what_they_are(tmp_path, capsys):
    content = {
        "command": ["uscl", "fit", "--config", str(EXPERIMENTS / "lora.yaml"), "${args}"],
        "method": "grid",
        "parameters": {
            "model.vcl_adapter": {"value": None},
            "model.adapter": {"value": "a folder/with space.x"},
            "model.tuning.projections": {"values": [["q", "out"]]},
            "model.clicks.learned": {"value": 1},
            "model.tuning.dropout": {"value": 1e-5},
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    asked = read_sweep_file(tmp_path / "s.yaml")
    with pytest.raises(SystemExit):
        main([*cell_command(asked.command, asked.cells[0], tmp_path / "out")[3:], "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert (options["vcl_adapter"], options["adapter"]) == (None, "a folder/with space.x")
    assert options["clicks"]["init_args"]["learned"] == 1
    assert options["tuning"]["init_args"]["projections"] == ["q", "out"]
    assert options["tuning"]["init_args"]["dropout"] == 1e-5


def test_cells_over_configs_are_called_after_the_files(tmp_path):
    assert cell_name({"config": "experiments/eval_amos.yaml", "model": "A"}) == "config-eval_amos_model-A"
    content = {"method": "grid", "parameters": {"config": {"values": ["a/x.yaml", "b/x.yaml"]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"s\.yaml: two cells would be called config-x; cells are called after"):
        read_sweep_file(tmp_path / "s.yaml")


def test_variables_of_the_environment_are_filled_in(monkeypatch, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    monkeypatch.setenv("LENGTH", "7")
    given = ["uscl", "fit", "--trainer.max_epochs=${envvar:LENGTH}", "--x=${envvar:ABSENT_HERE}", "${args}"]
    ours = cell_command(tuple(given), {"a": 1}, tmp_path)[3:-2]
    assert ours == [*create_sweep_command(copy.copy(given))[1:-1], "--a=1"]


def test_run_cap_holds_for_a_grid_too(tmp_path):
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "grid",
        "run_cap": 2,
        "parameters": {"a": {"values": [1, 2, 3]}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert [cell["a"] for cell in read_sweep_file(tmp_path / "s.yaml").cells] == [1, 2]


def test_random_values_follow_their_probabilities(tmp_path):
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "random",
        "run_cap": 200,
        "parameters": {"a": {"values": ["rare", "often"], "probabilities": [0.1, 0.9]}, "b": {"min": 0.0, "max": 1.0}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    drawn = [cell["a"] for cell in read_sweep_file(tmp_path / "s.yaml").cells]
    assert 5 < drawn.count("rare") < 40


def test_random_cells_are_the_same_every_time_and_can_be_continued(tmp_path):
    file = tmp_path / "random.yaml"
    content = {
        "command": ["uscl", "fit", "${args}"],
        "method": "random",
        "run_cap": 4,
        "parameters": {
            "model.tuning.rank": {"min": 1, "max": 64},
            "lr": {"min": 0.0001, "max": 0.1, "distribution": "log_uniform_values"},
            "x": {"values": ["a", "b"]},
            "y": {"value": 3},
        },
    }
    file.write_text(yaml.safe_dump(content))
    few = read_sweep_file(file).cells
    file.write_text(yaml.safe_dump(content | {"run_cap": 40}))
    many = read_sweep_file(file).cells
    assert many[:4] == few
    assert all(1 <= cell["model.tuning.rank"] <= 64 and 1e-4 <= cell["lr"] <= 0.1 and cell["y"] == 3 for cell in many)
    assert {cell["x"] for cell in many} == {"a", "b"}
    assert sum(cell["lr"] < 10**-2.5 for cell in many) > 10, "evenly in the logarithm"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "bayes"}, "without a server there are grid and random"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs W&B's server"),
        ({"parameters": {}}, "expected the keys"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, "a grid takes value or values"),
        ({"method": "random"}, "needs run_cap"),
        ({"method": "random", "run_cap": 1, "parameters": {"a": {"min": 2, "max": 1}}}, "cannot draw"),
        ({"command": ["uscl", "fit"]}, r"lacks \$\{args\}"),
        ({"command": "uscl fit ${args}"}, "command must be a list"),
        ({"metric": "val/dice"}, "metric have name and goal"),
        ({"metric": {"name": ["a"]}}, "metric have name and goal"),
        ({"metric": {"name": "val/dice", "goal": "maximise"}}, "minimize or maximize, found 'maximise'"),
        ({"run_cap": 0}, "run_cap is the number of cells"),
        ({"program": "train.py", "command": ["${env}", "${program}", "${args}"]}, "program is 'train.py'"),
        ({"parameters": {"a": {"values": [1], "probabilites": [1]}}}, "probabilites is not known here"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [1]}}}, "one number from 0 to 1 for each"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [0.1, 0.1]}}}, "add up to 1"),
        ({"parameters": {"a": 3}}, "parameter a: expected value, values"),
        ({"parameters": {"a": {"values": 3}}}, "values must be a list"),
        ({"parameters": {"a": {"values": []}}}, "values must be a list"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "write it flat"),
        (
            {
                "method": "random",
                "run_cap": 1,
                "parameters": {"a": {"min": 0.1, "max": 0.9, "distribution": "int_uniform"}},
            },
            "cannot draw",
        ),
    ],
)
def test_files_that_cannot_be_run_here(tmp_path, changed, message):
    content = {"command": ["uscl", "fit", "${args}"], "method": "grid", "parameters": {"a": {"values": [1]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | changed))
    with pytest.raises(InputError, match=message):
        read_sweep_file(tmp_path / "s.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="not readable as YAML in UTF-8"):
        read_sweep_file(tmp_path / "s.yaml")


def test_a_cell_that_is_asked_for_twice_is_run_once(tmp_path):
    content = {"command": ["uscl", "fit", "${args}"], "method": "grid", "parameters": {"a": {"values": [1, 1, 2]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    assert [cell["a"] for cell in read_sweep_file(tmp_path / "s.yaml").cells] == [1, 2]


def test_commands_of_something_else_are_not_run(tmp_path):
    with pytest.raises(InputError, match="expected uscl"):
        cell_command(("rm", "${args}"), {"a": 1}, tmp_path)
    for macro in ("${args_no_hyphens}", "--x=${program}"):
        with pytest.raises(InputError, match="macro"):
            cell_command(("uscl", macro, "${args}"), {"a": 1}, tmp_path)
