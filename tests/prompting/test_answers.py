"""What a method of somebody else answers is read as what it is, or refused."""

import numpy as np
import pytest
import torch

from uscl.errors import InputError
from uscl.prompting.answers import as_logits

SHAPE = (2, 3, 4)
MASK = torch.arange(24).reshape(SHAPE) % 5 == 0


@pytest.mark.parametrize(
    "answer",
    [
        MASK,
        MASK.numpy(),
        MASK.numpy().astype(np.uint8) * 255,
        MASK.to(torch.int64),
        MASK.float(),
        MASK.double().numpy(),
        MASK.float() * 255,
        MASK.float() * 0.5,
        (MASK * torch.arange(24).reshape(SHAPE)).float() + MASK,
        MASK.to(torch.uint16),
    ],
    ids=["bool", "array", "uint8", "int64", "float", "double", "float 255", "halves", "float labels", "uint16"],
)
def test_a_mask_is_one_whatever_its_type(answer):
    assert torch.equal(as_logits(answer, SHAPE, METHOD), torch.where(MASK, 1.0, -1.0))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_logits_stay_what_they_are(kind):
    logits = np.random.default_rng(0).normal(size=SHAPE).astype(kind)
    assert np.allclose(as_logits(logits, SHAPE, METHOD).numpy(), logits)
    assert np.array_equal(as_logits(torch.from_numpy(logits), SHAPE, METHOD).numpy(), logits)


@pytest.mark.parametrize("value", [0, 1])
def test_nothing_and_everything_are_masks(value):
    for kind in (np.bool_, np.uint8, np.float32):
        assert ((as_logits(np.full(SHAPE, value, kind), SHAPE, METHOD) > 0) == bool(value)).all()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.rand(SHAPE), "look like probabilities"),
        (torch.zeros(4, 3, 2), r"answered \(4, 3, 2\) voxels, expected a mask or logits of \(2, 3, 4\)"),
        (torch.full(SHAPE, torch.nan), "not finite"),
        (np.where(MASK, np.inf, -1.0), "not finite"),
        (torch.zeros(SHAPE, dtype=torch.complex64), "complex64"),
        (None, "answered NoneType of object"),
        (np.full(SHAPE, "a"), "answered ndarray of <U1"),
    ],
    ids=["probabilities", "shape", "nan", "inf", "complex", "none", "text"],
)
def test_what_is_neither_is_refused(answer, message):
    with pytest.raises(InputError, match=f"^Method: .*{message}"):
        as_logits(answer, SHAPE, METHOD)


class Method:
    """Names the method in messages."""


METHOD = Method()
