"""The plot of a run's metrics."""

import numpy as np
import pytest
from PIL import Image

from clip_jax.train.metrics import Metrics

pytest.importorskip("matplotlib")


def test_a_run_that_is_noted_once_has_a_point_in_its_plot(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.add({"step": 3, "loss": 0.5, "accuracy": 0.4, "learning_rate": 1e-5})
    metrics.plot()
    pixels = np.array(Image.open(tmp_path / "training.png").convert("RGB"))
    drawn = np.all(pixels == (0xD1, 0x49, 0x5B), axis=-1)
    for panel in np.array_split(drawn[:690], (310, 600)):
        assert panel.sum() > 20
