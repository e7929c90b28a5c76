"""Segmenting whole volumes interactively."""

from uscl.serving.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
