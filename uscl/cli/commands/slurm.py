"""Cells of a sweep as jobs of SLURM, which submitit (the extra ``slurm``) submits and watches."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uscl.errors import InputError

log = logging.getLogger(__name__)
_JOBS = "slurm.json"
_SECONDS_BETWEEN_LOOKS = 10.0


@dataclass(frozen=True)
class Slurm:
    """What each cell asks SLURM for.

    Attributes:
        minutes: after which SLURM may end it; the next call of `uscl sweep` repeats it.
        gpus: of one node.
        cpus: cores.
        memory_gb: of the host.
        partition: null takes SLURM's default.
        account: null takes SLURM's default.
        setup: shell commands that run first, e.g. `[module load cuda]`.
    """

    minutes: int = 240
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 32
    partition: str | None = None
    account: str | None = None
    setup: tuple[str, ...] = ()


def run_on_slurm(
    folder: Path, cells: Mapping[str, Callable[[], object]], options: Slurm, at_once: int
) -> Iterator[str]:
    """Submits cells as one job array and yields each when it has ended, well or not.

    Cells that an earlier, interrupted call submitted and that still wait or run are waited for, not submitted again;
    their numbers stand in ``slurm.json``.

    Args:
        folder: of the sweep; SLURM's own logs go to ``slurm`` in it. All nodes must see it.
        cells: what to call for each.
        options: of every job.
        at_once: cells that may run at the same time.

    Raises:
        InputError: submitit is not installed, or SLURM is not there or refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--slurm needs `pip install uscl[slurm]`") from error
    logs = (folder / "slurm").absolute()
    try:
        executor = submitit.SlurmExecutor(logs)
    except RuntimeError as error:
        raise InputError(f"--slurm: {error}; call this where sbatch and srun are") from error
    earlier = {name: number for name, number in _submitted(folder).items() if name in cells}
    watched: dict[str, Any] = {name: submitit.SlurmJob(logs, number) for name, number in earlier.items()}
    pending = {name: job for name, job in watched.items() if not job.done()}
    new = [name for name in cells if name not in pending]
    executor.update_parameters(
        job_name="uscl-sweep",
        time=options.minutes,
        gpus_per_node=options.gpus,
        cpus_per_task=options.cpus,
        mem=f"{options.memory_gb}GB",
        array_parallelism=at_once,
        setup=list(options.setup),
        use_srun=False,
        **{key: value for key in ("partition", "account") if (value := getattr(options, key))},
    )
    try:
        if new:
            with executor.batch():
                jobs = [executor.submit(cells[name]) for name in new]
            pending |= dict(zip(new, jobs, strict=True))
    except submitit.core.utils.FailedJobError as error:
        raise InputError(f"--slurm: SLURM refused the jobs ({str(error).strip().splitlines()[-1]})") from error
    numbers = {name: str(job.job_id) for name, job in pending.items()}
    (folder / _JOBS).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    log.info(
        "%d cells submitted, %d waited for; this call may be interrupted, the jobs go on",
        len(new),
        len(pending) - len(new),
    )
    while pending:
        for name in [name for name, job in pending.items() if job.done()]:
            del pending[name]
            yield name
        if pending:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _submitted(folder: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((folder / _JOBS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
