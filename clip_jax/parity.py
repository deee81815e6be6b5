"""One model in JAX and in PyTorch on the same pictures and captions, compared stage by stage.

PyTorch's side is the reference package, run as a black box: hooks on its modules catch the hidden
states, under the names that our own forward passes give to `tap`.
"""

import dataclasses
import importlib
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from PIL import Image

from clip_jax.catalog import CATALOG
from clip_jax.convert import to_pytorch, write_pytorch
from clip_jax.convert.reader import state_values
from clip_jax.nn import CLIP
from clip_jax.preprocess import Preprocess
from clip_jax.reference import import_reference, quiet
from clip_jax.tokenizer import tokenize
from clip_jax.weights import archive, native, read_native

Measure = Literal["absolute", "relative"]

# What a stage may differ by, and in which measure. Both sides compute in float32 but add in
# different orders: 1e-5 leaves room for that over the deepest tower and for nothing else. Logits
# are cosines times 100. What is not arithmetic must be the same.
EXACT: tuple[float, Measure] = (0.0, "absolute")
HIDDEN: tuple[float, Measure] = (1e-5, "relative")
FEATURES: tuple[float, Measure] = (1e-5, "relative")
LOGITS: tuple[float, Measure] = (1e-3, "absolute")

CAPTIONS = (
    "a diagram",
    "a photo of a cat.",
    "it's  a DOG's\n life &amp;amp; more",
    "!",  # id 0, which is also what pads
    "wow!!! two dogs! !",
    "naïve café ½ ²",
    "寿司の写真 🍣 на столе",
    "",
    "a very long caption " * 40,  # cut at the context length
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage's difference between the two sides, over all pictures or captions.

    Attributes:
        stage: "preprocessing", "tokens", "image ..." or "text ..." with the module's name in
            official checkpoints, or "logits".
        max_abs: the largest absolute difference of any element.
        rel: L2 norm of the difference over the L2 norm of PyTorch's values.
        tolerance: what `measure` may come to.
        measure: which of the two counts.
    """

    stage: str
    max_abs: float
    rel: float
    tolerance: float
    measure: Measure

    @property
    def ok(self) -> bool:
        """Whether the difference is within tolerance; NaN never is."""
        return (self.max_abs if self.measure == "absolute" else self.rel) <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference's model, in float32 on the CPU, and what goes with it."""

    torch: Any
    clip: Any
    model: Any
    preprocess: Any

    def pixels(self, images: Iterable[Image.Image]) -> Float[np.ndarray, "b n n 3"]:
        """Preprocessed images, in our order of axes."""
        stacked = [self.preprocess(image).numpy() for image in images]
        return np.stack(stacked).transpose(0, 2, 3, 1)

    def tokens(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "b l"]:
        """Token ids; over-long texts are cut."""
        return self.clip.tokenize(list(texts), context_length, truncate=True).numpy()

    def image_stages(
        self, images: Float[np.ndarray, "b n n 3"], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """The vision tower's hidden states that `names` has, in the order of computation."""
        return self._stages("visual.", names, self.model.encode_image, self._images(images))

    def text_stages(
        self, tokens: Int[np.ndarray, "b l"], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """The text tower's hidden states that `names` has, in the order of computation."""
        return self._stages("", names, self.model.encode_text, self._tokens(tokens))

    def logits(
        self, images: Float[np.ndarray, "i n n 3"], tokens: Int[np.ndarray, "t l"]
    ) -> Float[np.ndarray, "i t"]:
        """Logits per image."""
        with self.torch.no_grad():
            return self.model(self._images(images), self._tokens(tokens))[0].numpy()

    def _stages(
        self, tower: str, names: Iterable[str], encode: Any, batch: Any
    ) -> dict[str, np.ndarray]:
        modules = dict(self.model.named_modules())
        stages: dict[str, np.ndarray] = {}

        def keep(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                # A copy: what follows may work in place.
                stages[name] = _in_our_layout(name, np.array(output.numpy()))

            return hook

        wanted = [name for name in names if name != "features"]
        if missing := [name for name in wanted if tower + name not in modules]:
            raise ValueError(
                f"the PyTorch model has no modules {missing}: not the same architecture"
            )
        hooks = [modules[tower + name].register_forward_hook(keep(name)) for name in wanted]
        try:
            with self.torch.no_grad():
                stages["features"] = encode(batch).numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return stages

    def _images(self, images: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def _tokens(self, tokens: np.ndarray) -> Any:
        return self.torch.from_numpy(np.asarray(tokens, np.int64))


def load_reference(name_or_path: str | os.PathLike[str]) -> Reference:
    """Loads what `clip_jax.load` loads in the reference, with PyTorch's own readers.

    Args:
        name_or_path: a name, whose official file is downloaded if need be; a TorchScript archive,
            a state dictionary that `torch.save` wrote, a `.safetensors` file; or a native folder,
            which is exported first, as a bundled model is. The reference has no activation but
            `quick_gelu`.

    Raises:
        ModuleNotFoundError: PyTorch or the reference is missing; says how to install them.
        CheckpointError: a native folder can't be read, or a file holds several sets of weights.
        DownloadError: the file of a name can't be downloaded.
    """
    clip = import_reference()
    torch = importlib.import_module("torch")
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and name_or_path in CATALOG:
        path = (native if CATALOG[name_or_path].is_bundled else archive)(name_or_path)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "state.pt"
        if _is_torchscript(path):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
            bare = path
        elif path.is_dir():
            write_pytorch(to_pytorch(*read_native(path)), bare)
            state = torch.load(bare, weights_only=True)
        else:
            state = _state_dict(torch, path)
            torch.save(state, bare)
        model, preprocess = clip.load(str(bare), device="cpu", jit=False)
        # The reference has rounded the weights to float16 on the way, which changes those of
        # checkpoints that are stored in float32. So they are poured in a second time.
        model = model.float().eval()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    return Reference(torch, clip, model, preprocess)


def compare(
    model: CLIP,
    preprocess: Preprocess,
    reference: Reference,
    images: Sequence[Image.Image] | None = None,
    texts: Sequence[str] = CAPTIONS,
) -> list[Row]:
    """Runs both sides and measures every stage's difference, in the order of computation.

    Each side works on what it made itself of the pictures and captions, so the first row that is
    not `ok` is where the two part. Where the vocabulary is smaller than the tokenizer's, a warning
    says so, and both sides work on ids that are brought into its range.

    Args:
        model: ours, in float32.
        preprocess: what `clip_jax.load` gave with it.
        reference: the same checkpoint, by `load_reference`.
        images: pictures of any modes and sizes; `pictures()` where none are given.
        texts: captions of any length.

    Raises:
        ValueError: the two sides are not the same architecture.
    """
    images = pictures() if images is None else images
    length = model.config.text.context_length
    pixels = np.stack([preprocess(image) for image in images])
    tokens = tokenize(texts, length, truncate=True)
    their_pixels, their_tokens = reference.pixels(images), reference.tokens(texts, length)
    _check_shape("preprocessing", pixels, their_pixels)
    token_row = _Difference.of("tokens", tokens, their_tokens).row("tokens", *EXACT)
    vocab_size = model.config.text.vocab_size
    if max(tokens.max(), their_tokens.max()) >= vocab_size:
        warnings.warn(
            f"the model's vocabulary has {vocab_size:,} ids, too few for those of the captions: "
            f"both sides compute on ids brought into its range",
            stacklevel=2,
        )
        tokens, their_tokens = (_within(ids, vocab_size) for ids in (tokens, their_tokens))

    # Picture by picture, because the hidden states of a large tower fill gigabytes.
    image_differences = _summed(
        [
            _differences(_image_stages(model, ours), theirs, reference.image_stages)
            for ours, theirs in zip(pixels[:, None], their_pixels[:, None], strict=True)
        ]
    )
    text_differences = _differences(
        _text_stages(model, tokens), their_tokens, reference.text_stages
    )
    logits = np.asarray(model(pixels, tokens)[0])
    return [
        _Difference.of("preprocessing", pixels, their_pixels).row("preprocessing", *EXACT),
        token_row,
        *_rows("image", image_differences),
        *_rows("text", text_differences),
        _Difference.of("logits", logits, reference.logits(their_pixels, their_tokens)).row(
            "logits", *LOGITS
        ),
    ]


def pictures() -> list[Image.Image]:
    """Made-up pictures of several modes, sizes and aspects; the same on every machine."""
    rng = np.random.default_rng(0)

    def picture(width: int, height: int, channels: int) -> np.ndarray:
        # Waves that change slowly, as in photographs, and noise, which tests the resizing.
        y, x = np.mgrid[0:height, 0:width, 0:1][:2] / 40
        phase = np.arange(channels)
        waves = np.sin(x * (1 + phase / 3) + phase) + np.cos(y * (1 + phase / 2) - phase)
        noisy = 127 + 55 * waves + rng.normal(0, 15, (height, width, channels))
        return np.clip(noisy, 0, 255).astype(np.uint8)

    return [
        Image.fromarray(picture(640, 427, 3)),
        Image.fromarray(picture(97, 211, 1)[..., 0]),
        Image.fromarray(picture(333, 500, 4)),
        Image.fromarray(picture(480, 360, 3)).quantize(64),
        Image.fromarray(picture(300, 300, 3)).convert("CMYK"),
        Image.fromarray(picture(31, 150, 3)),
    ]


def first_difference(rows: Iterable[Row]) -> Row | None:
    """The first stage past its tolerance."""
    return next((row for row in rows if not row.ok), None)


@dataclasses.dataclass(frozen=True)
class _Difference:
    """What adds up over batches to a row."""

    max_abs: float
    squares: float
    their_squares: float

    @classmethod
    def of(cls, stage: str, ours: np.ndarray, theirs: np.ndarray) -> "_Difference":
        _check_shape(stage, ours, theirs)
        difference = np.asarray(ours, np.float64) - theirs
        return cls(
            float(np.abs(difference).max()),
            float(np.square(difference).sum()),
            float(np.square(theirs, dtype=np.float64).sum()),
        )

    def __add__(self, other: "_Difference") -> "_Difference":
        return _Difference(
            float(np.maximum(self.max_abs, other.max_abs)),  # unlike max, keeps NaN
            self.squares + other.squares,
            self.their_squares + other.their_squares,
        )

    def row(self, stage: str, tolerance: float, measure: Measure) -> Row:
        if self.squares == 0:
            rel = 0.0
        else:
            rel = math.sqrt(self.squares / self.their_squares) if self.their_squares else math.inf
        return Row(stage, self.max_abs, rel, tolerance, measure)


def _differences(
    ours: Mapping[str, Array],
    their_input: np.ndarray,
    their_stages: Callable[[np.ndarray, Iterable[str]], dict[str, np.ndarray]],
) -> dict[str, _Difference]:
    # jit sorts the names; the other side's are in the order of computation.
    theirs = their_stages(their_input, ours)
    return {name: _Difference.of(name, np.asarray(ours[name]), x) for name, x in theirs.items()}


def _within(tokens: Int[np.ndarray, "b l"], vocab_size: int) -> Int[np.ndarray, "b l"]:
    """Ids below `vocab_size`; the largest of a row, which marks its end, stays the largest."""
    is_end = tokens == tokens.max(axis=1, keepdims=True)
    return np.where(is_end, vocab_size - 1, tokens % max(vocab_size - 1, 1))


def _summed(batches: Sequence[Mapping[str, _Difference]]) -> dict[str, _Difference]:
    total = dict(batches[0])
    for batch in batches[1:]:
        total = {name: total[name] + difference for name, difference in batch.items()}
    return total


def _rows(tower: str, differences: Mapping[str, _Difference]) -> list[Row]:
    return [
        difference.row(f"{tower} {name}", *(FEATURES if name == "features" else HIDDEN))
        for name, difference in differences.items()
    ]


@jax.jit
def _image_stages(model: CLIP, images: Array) -> dict[str, Array]:
    stages: dict[str, Array] = {}
    with jax.default_matmul_precision(model.precision):
        stages["features"] = model.image_features(images, stages.__setitem__)
    return stages


@jax.jit
def _text_stages(model: CLIP, tokens: Array) -> dict[str, Array]:
    stages: dict[str, Array] = {}
    with jax.default_matmul_precision(model.precision):
        stages["features"] = model.text_features(tokens, model.dtype, stages.__setitem__)
    return stages


def _in_our_layout(name: str, x: np.ndarray) -> np.ndarray:
    if name.startswith("transformer."):
        return x.swapaxes(0, 1)  # the reference's transformers work on (l, b, w)
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
        # Our patch embedding gives a sequence already.
        return x.reshape(len(x), -1, x.shape[-1]) if name == "conv1" else x
    return x


def _check_shape(stage: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{stage}: JAX gives shape {ours.shape}, PyTorch {theirs.shape}: not the same "
            f"architecture"
        )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _state_dict(torch: Any, path: Path) -> Mapping[str, Any]:
    if zipfile.is_zipfile(path):
        root = torch.load(path, map_location="cpu", weights_only=True)
    else:
        root = importlib.import_module("safetensors.torch").load_file(path)
    return state_values(root, torch.Tensor)
