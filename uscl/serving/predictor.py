"""From a volume and clicks to a mask on the volume's own grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from uscl.backbone import EMBEDDED, SamMed3DConfig, Trunk, load_trunk
from uscl.data.evaluation_patches import place_patch
from uscl.data.patches import Preprocessing
from uscl.data.prompts import Point
from uscl.data.sweeps import SweepReading, read_sweep
from uscl.data.volume import Volume
from uscl.errors import InputError
from uscl.prompting import Click, Inference, Preset, SamMed3DSegmenter, resolve_inference
from uscl.tuning import TUNING_METHODS, TuningMethod, load_adapter


@dataclass(frozen=True)
class Prediction:
    """What :meth:`Predictor.segment` returns.

    Attributes:
        mask: uint8, 1 where the object is, on the grid of the volume that was given.
        volume_ml: volume of the mask, millilitres; None where the distances of a sweep were assumed.
        cut_short: the mask reaches a face of the patch inside the volume, so the object may go on beyond it.
    """

    mask: Volume
    volume_ml: float | None
    cut_short: bool


class Predictor:
    """A model ready to segment whole volumes from clicks.

    Args:
        backbone: configuration or variant name; an adapter brings its own.
        weights: checkpoint of the trunk, a file or ``hf://`` reference; ``embedded`` are those of ``mini`` and
            ``mini_fine`` that come with the package; None leaves random weights.
        adapter: adapter file that ``uscl fit`` left, or None for the untouched backbone.
        preprocessing: how volumes are prepared; None takes the adapter's, or the default.
        device: where to compute.
        inference: how masks are made: ``published``, ``refined``, or an :class:`~uscl.prompting.Inference`. None is
            refined for the backbones that this was measured on (``mini`` and ``mini_fine``, tuned or not), published
            for others.
        tuning: class of the adapter's tuning method where it is none of ``uscl``'s, or its dotted path; it is imported,
            so name none that you do not trust.

    Attributes:
        trunk: the model and what its weights were.
        inference: how masks are made.

    Raises:
        InputError: a file cannot be used, or the patch size does not fit the backbone.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "mini_fine",
        weights: str | os.PathLike[str] | None = EMBEDDED,
        adapter: str | os.PathLike[str] | None = None,
        preprocessing: Preprocessing | None = None,
        device: str = "cpu",
        inference: Inference | Preset | None = None,
        tuning: type[TuningMethod] | str | None = None,
    ) -> None:
        named = TUNING_METHODS.find(tuning) if isinstance(tuning, str) else tuning
        if named is not None and not (isinstance(named, type) and issubclass(named, TuningMethod)):
            raise InputError(f"tuning is {named!r}; expected a class on uscl.tuning.TuningMethod, or its dotted path")
        found = load_adapter(adapter, () if named is None else (named,)) if adapter is not None else None
        self.trunk: Trunk = load_trunk(found.backbone if found else backbone, weights)
        if found is not None:
            found.apply(self.trunk)
        size = self.trunk.model.config.image_size
        if preprocessing is None:
            trained = found.preprocessing if found else None
            preprocessing = Preprocessing(**trained) if trained else replace(Preprocessing(), patch_size=size)
        if preprocessing.patch_size != size:
            raise InputError(f"preprocessing.patch_size is {preprocessing.patch_size}, but the backbone takes {size}")
        self.preprocessing = preprocessing
        self.device = device
        model = self.trunk.model.to(device).eval()
        self.inference = resolve_inference(inference, model.config)
        self._segmenter = SamMed3DSegmenter(model, self.inference)
        self._volume: Volume | None = None
        self._encoded: tuple[int, int, int] | None = None

    def set_image(self, image: Volume | str | os.PathLike[str], reading: SweepReading = SweepReading()) -> None:
        """Takes the volume to segment.

        Args:
            image: a volume, or the file or folder of a volume or sweep.
            reading: what the file of a sweep does not know.

        Raises:
            InputError: the file cannot be used (see :func:`uscl.data.read_sweep`).
        """
        self._volume = image if isinstance(image, Volume) else read_sweep(image, reading)
        self._encoded = None

    def segment(self, points: Sequence[Point]) -> Prediction:
        """Segments one object from all its clicks, in the order in which they were set.

        The patch is centred on the box that holds the foreground clicks, never on a label; it is encoded again only
        if it moves.

        Args:
            points: voxel index (x, y, z) in the volume as the file counts them, and whether it is foreground.

        Raises:
            InputError: no image was set, no foreground click, a click outside the volume, or foreground clicks further
                apart than the patch.
        """
        if self._volume is None:
            raise InputError("set_image comes before segment")
        patch = place_patch(self._volume, points, self.preprocessing)
        if self._encoded != patch.corner:
            self._segmenter.set_image(patch.image.to(self.device))
            self._encoded = patch.corner
        logits = self._segmenter.segment([Click(index, foreground) for index, foreground in patch.points])
        values = logits.float().cpu().numpy()
        mask = patch.grid.restore(values, patch.corner)
        voxel_ml = self._volume.voxel_ml
        return Prediction(
            mask=self._volume.with_array(mask),
            volume_ml=None if voxel_ml is None else float(mask.sum() * voxel_ml),
            cut_short=patch.grid.cut_short(values > 0, patch.corner),
        )
