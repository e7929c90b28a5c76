"""Seeds derived from names and numbers, so that a draw depends on what it is for and on nothing else.

Draws keyed this way are the same whatever the order of the cases, the number of workers or processes, and whether the
run was interrupted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Draw = Callable[[int], int]
"""Draws an integer from [0, n), e.g. which of n wrong voxels is clicked."""


def run_seed(seed: int | None) -> int:
    """A seed that was given, or else the run's: ``seed_everything``, which Lightning leaves in ``PL_GLOBAL_SEED``; 0.

    Seeds that are null follow the run, so that a sweep over ``seed_everything`` changes all that is drawn in training:
    initial values, patches and clicks.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


@contextmanager
def fixed_initial_values() -> Iterator[None]:
    """Random weights made within are the same in every process and on every device; the run's own draws go on after.

    They are drawn on the CPU, whatever device is the default: a GPU draws others, and to reset its generator here would
    give every seed the same initial values afterwards.
    """
    import torch  # here, so that importing this module stays free

    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def derive_seed(*parts: int | str) -> int:
    """Mixes parts into a seed in [0, 2^32), which every generator of numpy and torch accepts.

    Args:
        parts: what the draw is for, e.g. ``derive_seed("click", data_set, case, class_name, number)``. The type
            counts: 1 and "1" differ.

    Returns:
        The first four bytes of the BLAKE2b hash of the parts.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def seeded_draw(*key: int | str) -> Draw:
    """A draw that depends on its key alone, e.g. ``seeded_draw("click", data_set, case, class_name, 1)``."""
    import numpy as np  # here, so that importing this module stays free

    generator = np.random.default_rng(derive_seed(*key))
    return lambda n: int(generator.integers(n))
