"""The arrows of the house: a room imports only rooms below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import uscl

ROOT = Path(uscl.__file__).parent
GROUND = {"errors", "registry", "seeds", "types"}
# What each room may import besides itself and the ground.
ARROWS = {
    "backbone": set(),
    "data": set(),
    "optim": set(),
    "vcl": set(),
    "tuning": {"backbone"},
    "prompting": {"backbone", "data"},
    "phantom": {"data"},
    "pseudo_label": {"backbone", "data"},
    "evaluation": {"backbone", "prompting", "data"},
    "comparators": {"backbone", "prompting", "data", "evaluation"},
    "stages": {"backbone", "optim", "tuning", "prompting", "vcl", "data", "evaluation"},
    "serving": {"backbone", "tuning", "prompting", "data"},
    "callbacks": {"backbone", "data", "evaluation", "stages", "tuning"},
    "cli": {
        "backbone",
        "callbacks",
        "comparators",
        "data",
        "evaluation",
        "phantom",
        "prompting",
        "pseudo_label",
        "serving",
        "stages",
        "tuning",
    },
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
        "uscl.Predictor; import uscl.cli.commands.segment; "
        "assert not {'lightning', 'monai', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_transformers_is_imported_where_a_2d_model_is_built_and_nowhere_else():
    """MONAI and torchmetrics import it by themselves where it is installed; without it everything else must work."""
    for file in FILES:
        tree = ast.parse(file.read_text())
        everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
        named = [node for node in everywhere if "transformers" in ast.unparse(node)]
        typed = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
        assert not [node for node in named if node in tree.body], f"{file}: imports transformers at once"
        if named and not all(node in typed for node in named):
            assert file.relative_to(ROOT) in {Path("comparators/sam.py"), Path("pseudo_label/seggpt_network.py")}


def test_no_file_is_a_house_of_its_own():
    long = {str(file.relative_to(ROOT)): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long
