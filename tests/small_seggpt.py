"""SegGPT small enough for tests, on the loading path of the published one."""

from pathlib import Path

from safetensors.torch import save_file

from uscl.pseudo_label.seggpt import SegGptEngine, SegGptSettings
from uscl.pseudo_label.seggpt_network import SegGpt, SegGptSize

SMALL = SegGptSize(
    dim=16, depth=4, heads=2, image_size=64, pretrain_size=48, decoder_dim=4, merge_after=1, features=(2, 3)
)
"""Four blocks; random weights."""
FIXTURE = SegGptSize(dim=16, heads=2, image_size=64, pretrain_size=48, decoder_dim=4)
"""Of the parity fixture: as deep as the published one."""


def random_weights(file: Path) -> Path:
    """Writes weights of the small network in the library's layout."""
    save_file({key: value.contiguous() for key, value in SegGpt(SMALL).seggpt.state_dict().items()}, file)
    return file


def small_engine(weights: Path, kept: Path | None = None, extrapolate: bool = True, **settings) -> SegGptEngine:
    """An engine with the small network, which also paints beyond the outermost key frames unless told otherwise."""
    return SegGptEngine(SegGptSettings(weights=str(weights), size=SMALL, extrapolate=extrapolate, **settings), kept)
