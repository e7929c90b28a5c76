"""Optimisers, learning rates and their schedules."""

from uscl.optim.muon import MATRICES, MuonAdamW, is_hidden_matrix
from uscl.optim.rates import configure_optimizers, learning_rate_factor
from uscl.optim.schedules import Trapezoid

__all__ = [
    "MATRICES",
    "MuonAdamW",
    "Trapezoid",
    "configure_optimizers",
    "is_hidden_matrix",
    "learning_rate_factor",
]
