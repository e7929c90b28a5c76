import matplotlib.pyplot as plt
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from uscl.evaluation.loggers import log_test
from uscl.evaluation.rows import ResultRow, write_rows


def test_tensorboard_shows_the_table_and_the_pictures(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard"
    )
    write_rows(
        tmp_path / "rows.csv",
        [
            ResultRow("sweeps", f"case{i}", "liver", "ours", 10, 0.25 * i, 0.5, 3.0, 1.0, f"p{i}", "w", 10, 0.1)
            for i in range(4)
        ],
    )
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    plt.imsave(tmp_path / "pictures" / "liver.png", picture)
    logger = TensorBoardLogger(tmp_path / "board", name="", version="")
    log_test([CSVLogger(tmp_path / "csv"), logger], "test", tmp_path, 7)
    logger.experiment.flush()
    board = accumulator.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    (event,) = board.Images("test/liver")
    assert (event.step, event.width, event.height) == (7, 60, 40)
    (text,) = board.Tensors("test/table/text_summary")
    assert "37.5" in text.tensor_proto.string_val[0].decode()
    logger.finalize("success")
