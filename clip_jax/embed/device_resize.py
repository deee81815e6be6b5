"""Pictures of sizes that repeat, resized on the device that embeds them, to the bits of Pillow.

Of what a host does for a JPEG of 640 x 480, resizing is two thirds. An accelerator whose host can't
keep up does it in passing; a CPU that embeds gains little, as it would have resized, too.
"""

import collections
import dataclasses
import threading
from typing import Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from clip_jax.image_size import sides_of
from clip_jax.preprocess import Preprocess
from clip_jax.progress import announce_compilation
from clip_jax.reduced import full_size

Resizing = Literal["host", "device"]

# Pictures of a size that are resized by Pillow before it counts as one that repeats: a program for
# it costs some tenths of a second.
REPEATS = 32
# Sizes that have a program; further ones go on by Pillow.
MOST_SIZES = 8
# The largest picture: they wait in memory as they are.
MOST_AREA = 1 << 20
# Rows of a program, on each device.
ROWS = 32
# The longest side over the shortest; beyond, Pillow's pass over the part that is kept is better.
LONGEST = 4

Size = tuple[int, int]


@dataclasses.dataclass
class _Group:
    """Pictures of one size that are resized together."""

    frames: list[np.ndarray]
    resized: Array | None = None
    fetched: np.ndarray | None = None

    def row(self, number: int) -> np.ndarray:
        if self.fetched is None:
            assert self.resized is not None, "not started"
            self.fetched, self.resized = np.asarray(self.resized), None
        return self.fetched[number]


@dataclasses.dataclass(frozen=True)
class Resized:
    """A picture that is being resized on the device."""

    group: _Group
    number: int

    def pixels(self) -> np.ndarray:
        """Waits for it, and returns its (n, m, 3) uint8 pixels."""
        return self.group.row(self.number)


class DeviceResizer:
    """Resizes pictures of sizes that repeat on the devices of this process."""

    def __init__(self, preprocess: Preprocess):
        """Compiles nothing yet.

        Args:
            preprocess: what makes the pixels.
        """
        self._preprocess = preprocess
        self._target = sides_of(preprocess.image_size)
        mesh = Mesh(np.array(jax.local_devices()), ("batch",))
        self._sharding = NamedSharding(mesh, PartitionSpec("batch"))
        self._rows = ROWS * mesh.size
        self._seen: collections.Counter[Size] = collections.Counter()
        self._taken: set[Size] = set()
        self._counting = threading.Lock()
        self._programs: dict[Size, jax.stages.Compiled] = {}
        self._groups: dict[Size, _Group] = {}

    def takes(self, image: Image.Image) -> bool:
        """Whether a decoded picture is one that the device resizes; called by several threads."""
        width, height = image.size
        size = height, width
        plain = image.mode == "RGB" and "transparency" not in image.info
        if not plain or size == self._target or full_size(image) != image.size:
            return False
        if not 0 < width * height <= MOST_AREA or max(size) > LONGEST * min(size):
            return False
        with self._counting:
            self._seen[size] += 1
            if self._seen[size] > REPEATS and len(self._taken) < MOST_SIZES:
                self._taken.add(size)
            return size in self._taken

    def is_taken(self, pixels: np.ndarray) -> bool:
        """Whether an array of pixels is a picture that is still to be resized."""
        return pixels.shape[:2] != self._target

    def add(self, frame: np.ndarray) -> Resized:
        """Begins to resize a picture, once there are enough of its size; called by one thread."""
        size = frame.shape[0], frame.shape[1]
        group = self._groups.setdefault(size, _Group([]))
        group.frames.append(frame)
        resized = Resized(group, len(group.frames) - 1)
        if len(group.frames) == self._rows:
            self._start(size)
        return resized

    def flush(self) -> None:
        """Begins to resize all pictures that have been added."""
        for size in list(self._groups):
            self._start(size)

    def _start(self, size: Size) -> None:
        group = self._groups.pop(size)
        frames = np.zeros((self._rows, *size, 3), np.uint8)
        np.stack(group.frames, out=frames[: len(group.frames)])
        group.frames.clear()
        rows = jax.device_put(frames, self._sharding)
        if size not in self._programs:
            height, width = size
            announce_compilation(f"the resizing of pictures of {width} x {height}")
            resize = jax.jit(self._preprocess.on_device(height, width))
            self._programs[size] = resize.lower(rows).compile()
        group.resized = self._programs[size](rows)  # computed while the next are gathered
