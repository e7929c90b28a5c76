"""Every `uscl` command that the documentation shows is one that the command line takes."""

import re
import shlex
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pytest

from uscl.cli import command_line

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "data/README.md", "docs/numbers.md")


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split(" #")[0].strip() for line in lines if line.startswith("uscl ")]
    for config in (ROOT / "experiments").rglob("*.yaml"):
        text = re.sub(r"\\\n# +", "", config.read_text())
        found += [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   uscl ")]
    return found


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_command_parses(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    args = shlex.split(command)[1:]
    if args[0] in ("fit", "test", "predict", "validate"):
        with pytest.raises(SystemExit) as left:
            command_line.main([*args, "--print_config"])
        assert left.value.code == 0
        return
    called = {}
    name = args[0].replace("-", "_")
    module = import_module(f"uscl.cli.commands.{name}")
    original = getattr(module, name)

    def stand_in(**options):
        called.update(options)

    stand_in.__doc__, stand_in.__annotations__ = original.__doc__, get_type_hints(original)
    stand_in.__signature__ = signature(original)
    monkeypatch.setattr(module, name, stand_in)
    assert command_line.main(args) == 0
    assert called


def test_the_documentation_shows_commands():
    assert len(commands()) >= 15
