"""The arrows of the house: a room imports only rooms below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import uscl

ROOT = Path(uscl.__file__).parent
GROUND = {"errors", "seeds", "types"}
# What each room may import besides itself and the ground.
ARROWS = {
    "backbone": set(),
    "tuning": {"backbone"},
    "prompting": {"backbone"},
    "vcl": set(),
    "stages": {"backbone", "tuning", "prompting", "vcl"},
    "data": set(),
    "phantom": {"data"},
    "evaluation": {"backbone", "prompting", "data"},
    "serving": {"backbone", "tuning", "prompting", "data"},
    "commands": {"backbone", "tuning", "prompting", "data", "phantom", "evaluation", "serving", "run_folder"},
    "run_folder": set(),
    "lightning_cli": {"data", "phantom", "evaluation", "stages", "run_folder"},
    "cli": {"commands", "lightning_cli"},
    "__main__": {"cli"},
}


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            names = [node.module]
        rooms |= {name.split(".")[1] for name in names if name.startswith("uscl.")}
    return rooms


def room_of(file: Path) -> str:
    part = file.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


FILES = sorted(file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downwards(file):
    room = room_of(file)
    if room in GROUND:
        assert imported_rooms(file) <= GROUND
    else:
        assert imported_rooms(file) - GROUND - {room} <= ARROWS[room]


def test_the_backbone_imports_torch_and_nothing_heavier():
    allowed = {"torch", "uscl", "safetensors", "huggingface_hub"}
    for file in (ROOT / "backbone").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                top = name.split(".")[0]
                assert top in allowed | set(sys.stdlib_module_names), f"{file.name} imports {name}"


def test_importing_uscl_is_free_and_segmenting_needs_no_lightning():
    script = (
        "import sys, uscl; heavy = {'torch', 'lightning', 'monai', 'transformers', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; import uscl.cli; assert 'torch' not in sys.modules; "
        "uscl.Predictor; import uscl.commands.segment; assert 'lightning' not in sys.modules; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_file_is_a_house_of_its_own():
    long = {str(file.relative_to(ROOT)): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long
