"""A sweep of a dark disc that moves slowly through speckle, small enough to label and train on in a test."""

import numpy as np

COUNT, HEIGHT, WIDTH = 24, 40, 56


def clip() -> tuple[np.ndarray, np.ndarray]:
    """Frames and labels; the disc is gone on the last six frames."""
    random = np.random.default_rng(0)
    rows, columns = np.indices((HEIGHT, WIDTH))
    frames, labels = [], []
    for t in range(COUNT):
        disc = (rows - 20) ** 2 + (columns - 15 - t) ** 2 <= 81 if t < 18 else np.zeros((HEIGHT, WIDTH), bool)
        frame = random.rayleigh(60, (HEIGHT, WIDTH)) * np.where(disc, 0.2, 1)
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
        labels.append(np.where(disc, 3, 0).astype(np.uint8))
    return np.stack(frames), np.stack(labels)
