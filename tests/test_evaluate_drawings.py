"""The drawings beside a report, whatever the classes are called."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
sparse = pytest.importorskip("scipy.sparse")

from clip_jax.evaluate.confusion import draw_confusion  # noqa: E402

SHORT = ["cat", "dog", "bus"]
LONG = ["a name that goes on and on " * 11, "狗" * 60, 'a <b>\n"bus"</b> and $5 ' * 30]


def matrix_of(names: list[str]) -> np.ndarray:
    """The pixels in which the matrix of two wrong classes has its darkest blue."""
    confusion = sparse.coo_array(np.array([[0, 4, 0], [4, 0, 0], [0, 0, 0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = Image.open(io.BytesIO(draw_confusion(confusion, names))).convert("RGB")
    return np.all(np.array(drawn) == (8, 48, 107), axis=-1)


@pytest.mark.parametrize("name", LONG, ids=["Latin", "Chinese", "markup"])
def test_long_names_leave_the_drawn_confusion_matrix_its_room(name):
    dark = matrix_of([name, *SHORT[1:]])
    assert dark.sum() > 0.5 * matrix_of(SHORT).sum()
