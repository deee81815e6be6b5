"""Decoding JPEG files at a reduced scale, and resizing on the device: time, and what changes.

Run: python -m benchmarks.decode --out benchmarks/results/decode.md
Expect: a third of the time for large photographs, cosines above 0.99, and 0 pixels that differ
between Pillow and the device.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import clip_jax
from benchmarks import report
from benchmarks.photographs import SCENE, as_jpeg, cut_out, scene
from clip_jax import reduced
from clip_jax.preprocess import Preprocess, decode_image

SIZES = [(640, 480), (1600, 1200), (4000, 3000), (6000, 4000)]
# How many pixels a side the reduced picture has at least, for each of the resized one's.
MARGINS = (1, 2, 4)
# Image sizes of ViT-B/32 and of the emoji model.
B32, EMOJI = 224, 48
FRAMES = [(96, 128), (256, 256), (480, 640), (640, 360), (720, 1280), (1080, 1920)]
REAL = [
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
]


def fast(data: bytes, size: int, margin: int) -> Image.Image:
    """Decodes a file for images of a size, with another margin than the default."""
    with mock.patch.object(reduced, "MARGIN", margin):
        return decode_image(data, preprocess=Preprocess(size, decode="fast"))


def milliseconds(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The medians of the processor's time, which other programs change less than the clock's."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in sorted(contenders, reverse=turn % 2 == 1):
            start = time.process_time()
            contenders[name]()
            found[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in found.items()}


# --- how long decoding takes


def rates(rounds: int) -> str:
    whole, rows = scene(10_000, SIZES[-1]), []
    for size in SIZES:
        for is_progressive in (False, True):
            part = whole.crop((0, 0, *size))
            data = as_jpeg(part, quality=85, progressive=is_progressive)
            rows.append(_rate(data, size, is_progressive, rounds))
    columns = ["JPEG", "bits a pixel", "decoded, ms", "fast, ms", "times"]
    columns += ["with resizing, ms", "fast, ms", "times", "at margin 1, times"]
    return report.table(rows, columns)


def _rate(data: bytes, size: tuple[int, int], is_progressive: bool, rounds: int) -> list[object]:
    plain = Preprocess(B32)

    def ready(margin: int) -> Callable[[], object]:
        return lambda: plain.pixels(fast(data, B32, margin))

    took = milliseconds(
        {
            "exact": lambda: decode_image(data),
            "fast": lambda: fast(data, B32, 2),
            "exact, ready": lambda: plain.pixels(decode_image(data)),
            "fast, ready": ready(2),
            "1, ready": ready(1),
        },
        rounds,
    )
    kind = f"{size[0]} x {size[1]}{', progressive' if is_progressive else ''}"
    exact, quick = took["exact, ready"], took["fast, ready"]
    return [
        *(kind, 8 * len(data) / (size[0] * size[1])),
        *(took["exact"], took["fast"], took["exact"] / took["fast"]),
        *(exact, quick, exact / quick, exact / took["1, ready"]),
    ]


# --- what it does to embeddings


def drawn_size(rng: np.random.Generator) -> tuple[int, int]:
    """The width and height of a photograph, of which one in twenty has 12 million pixels."""
    if rng.random() < 0.05:
        return 4000, 3000
    short = np.exp(rng.uniform(np.log(900), np.log(2400)))
    sides = int(short * rng.choice([4 / 3, 3 / 2])), int(short)
    return sides if rng.random() < 0.7 and sides[0] <= SCENE[0] else (sides[1], sides[1] * 4 // 3)


def photographs(count: int) -> Iterator[bytes]:
    scenes = max(count // 80, 1)
    for number in range(scenes):
        whole, rng = scene(number), np.random.default_rng((1, number))
        for _ in range(number, count, scenes):
            size = drawn_size(rng)
            yield cut_out(whole, size if size[1] <= SCENE[1] else size[::-1], rng)
        print(f"scene {number + 1} of {scenes}", file=sys.stderr, flush=True)


def made_pixels(count: int, cache: Path) -> dict[str, np.ndarray]:
    """Pixels of each picture for both models, and of each way of decoding; kept in a file."""
    if cache.exists():
        return dict(np.load(cache))
    found: dict[str, list] = {"scales": []}
    for data in photographs(count):
        whole = decode_image(data)
        for size in (B32, EMOJI):
            plain = Preprocess(size)
            found.setdefault(f"exact {size}", []).append(plain.pixels(whole))
            for margin in MARGINS:
                image = fast(data, size, margin)
                found.setdefault(f"{margin} {size}", []).append(plain.pixels(image))
                if (size, margin) == (B32, 2):
                    found["scales"].append(round(whole.width / image.width))
    arrays = {name: np.stack(values) for name, values in found.items()}
    np.savez(cache, **arrays)
    return arrays


def effect(count: int, cache: Path) -> str:
    pixels, rows = made_pixels(count, cache), []
    for name, model, size in models():
        encoder = clip_jax.Encoder(model, normalize=True)
        exact = encoder.images(pixels[f"exact {size}"])
        others = np.percentile(exact @ exact.T, [50, 99])
        for margin in MARGINS:
            embeddings = encoder.images(pixels[f"{margin} {size}"])
            cosines = (exact * embeddings).sum(-1)
            nearest = (embeddings @ exact.T).argmax(-1) == np.arange(len(exact))
            difference = pixels[f"{margin} {size}"].astype(int) - pixels[f"exact {size}"]
            rows.append(
                [
                    *(name, margin, float(np.abs(difference).mean())),
                    *(f"{value:.5f}" for value in np.percentile(cosines, [50, 1, 0])),
                    f"{nearest.mean():.2%}",
                    f"{others[0]:.3f}, {others[1]:.3f}",
                ]
            )
    scales = np.bincount(pixels["scales"])
    shares = ", ".join(f"{n:,} at 1/{s}" for s, n in enumerate(scales) if n)
    columns = ["model", "margin", "pixels differ by", "cosine: median", "1st percentile", "least"]
    columns += ["nearest is itself", "cosine of two pictures: median, 99th percentile"]
    return f"Of {len(pixels['scales']):,}, ViT-B/32 with margin 2 takes {shares}.\n\n" + (
        report.table(rows, columns)
    )


def models() -> Iterator[tuple[str, clip_jax.nn.CLIP, int]]:
    from flax import nnx

    yield "emoji, trained on drawings", clip_jax.load("emoji")[0], EMOJI
    config = clip_jax.catalog.config_of("ViT-B/32")
    yield "ViT-B/32 of random weights", clip_jax.nn.build(config, rngs=nnx.Rngs(0)), B32


def real() -> str:
    """Cosines of the few real photographs that come with Python packages."""
    import sysconfig

    model, rows = clip_jax.load("emoji")[0], []
    encoder, plain = clip_jax.Encoder(model, normalize=True), Preprocess(EMOJI)
    for name in REAL:
        path = Path(sysconfig.get_path("purelib")) / name
        if not path.exists():
            continue
        data = path.read_bytes()
        whole = decode_image(data)
        images = [whole, *(fast(data, EMOJI, margin) for margin in MARGINS)]
        embeddings = encoder.images(np.stack([plain.pixels(image) for image in images]))
        cosines = [f"{value:.5f}" for value in embeddings[1:] @ embeddings[0]]
        rows.append([path.name, f"{whole.width} x {whole.height}", *cosines])
    columns = ["photograph", "size", *(f"cosine at margin {margin}" for margin in MARGINS)]
    return report.table(rows, columns)


# --- on the device


def device(rounds: int) -> str:
    import jax

    rows = []
    for height, width in FRAMES:
        preprocess, count = Preprocess(B32), 16
        frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
        images = [Image.fromarray(frame) for frame in frames]
        product = jax.jit(by_product(preprocess, height, width))
        resize = jax.jit(preprocess.on_device(height, width))
        expected = np.stack([preprocess.pixels(image) for image in images])
        different = [int((np.asarray(f(frames)) != expected).sum()) for f in (resize, product)]
        took = milliseconds(
            {
                "Pillow": lambda x=images, f=preprocess.pixels: [f(image) for image in x],
                "ours": lambda f=resize, x=frames: f(x).block_until_ready(),
                "product": lambda f=product, x=frames: f(x).block_until_ready(),
            },
            rounds,
        )
        each = [took[name] / count for name in ("Pillow", "ours", "product")]
        rows.append([f"{height} x {width}", *each, each[0] / each[1], *different])
    columns = ["frames", "Pillow, ms", "on_device, ms", "matrix product, ms", "times Pillow"]
    return report.table(rows, [*columns, "pixels that differ", "by the product"])


def by_product(preprocess: Preprocess, height: int, width: int) -> Callable:
    """The same by products with matrices of weights: exact in float32 in two parts of 11 bits."""
    import jax.numpy as jnp

    from clip_jax.frames import _window
    from clip_jax.resample import PRECISION

    place, size = preprocess.geometry(width, height), preprocess.image_size
    low_bits = 10

    def parts(length: int, resized: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
        end, bicubic = begin + size, Image.Resampling.BICUBIC
        places, weights = _window(length, resized, begin, end, bicubic)
        matrix = np.zeros((size, length), np.int64)
        np.add.at(matrix, (np.arange(size)[:, None], places), weights)
        high = (matrix + (1 << (low_bits - 1))) >> low_bits
        low = matrix - (high << low_bits)
        assert all(255 * np.abs(part).sum(1).max() < 1 << 24 for part in (high, low))
        return high.astype(np.float32), low.astype(np.float32)

    across, down = parts(width, place.width, place.left), parts(height, place.height, place.top)

    def product(letters: str, pixels: jnp.ndarray, matrices: tuple) -> jnp.ndarray:
        high, low = (
            jnp.einsum(letters, pixels, matrix, precision="highest").astype(jnp.int32)
            for matrix in matrices
        )
        total = (high << low_bits) + low + (1 << (PRECISION - 1))
        return jnp.clip(total >> PRECISION, 0, 255).astype(jnp.float32)

    def resize(frames: jnp.ndarray) -> jnp.ndarray:
        rows = product("bhwc,nw->bhnc", frames.astype(jnp.float32), across)
        return product("bhwc,nh->bnwc", rows, down).astype(jnp.uint8)

    return resize


def equal_sizes(count: int) -> str:
    """How many pixels differ over sizes of frames, each a program of its own."""
    import jax

    rng, different, larger = np.random.default_rng(3), 0, 0
    for _ in range(count):
        height, width = np.exp(rng.uniform(np.log(16), np.log(1200), 2)).astype(int).tolist()
        preprocess = Preprocess(int(rng.integers(32, 337)))
        frames = rng.integers(0, 256, (1, height, width, 3), np.uint8)
        found = np.asarray(jax.jit(preprocess.on_device(height, width))(frames))[0]
        different += int((found != preprocess.pixels(Image.fromarray(frames[0]))).sum())
        larger += preprocess.geometry(width, height).height > height
    return f"Of {count} pairs of sizes, of which {larger} enlarge, {different} pixels differ."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=2000, help="pictures that are embedded")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/clip_jax_decode.npz"))
    parser.add_argument("--out")
    options = parser.parse_args()
    report.write(
        options.out,
        f"""# Decoding fast, and resizing on the device

{report.header()}

Times are the processor's, of one thread where nothing else is said: medians of {options.rounds}
rounds in which the contenders take turns at being first. Other programs ran on the same cores.

## Time

`decode="fast"` for ViT-B/32, whose images have 224 pixels a side; JPEGs of quality 85.

{rates(options.rounds)}

"Margin" is how many pixels a side are left, at least, for each of the resized picture's: `fast`
has 2. Every code of a JPEG has to be read at any scale, and all scans of a progressive one; what is
saved is the rest of decoding, and resizing, which for a large picture takes longer than decoding.

## Effect on embeddings

Photograph-like pictures of 900 to 3,000 pixels along the shorter side (`benchmarks/photographs.py`:
there are no photographs on this machine), as JPEGs of quality 80 to 95. No weights of a full-size
model were at hand either: of random weights, the cosines say how far the pixels differ for a
network of this kind, and no more.

{effect(options.count, options.cache)}

The few real photographs that come with Python packages, for the emoji model:

{real()}

## On the device

`Preprocess(224).on_device(height, width)`, compiled for the CPU, in batches of 16, against Pillow;
the time of all cores. The same by two matrix products in float32, whose weights are in two parts so
that sums are exact.

{device(options.rounds)}

{equal_sizes(40)}

Not measured: GPUs and TPUs; photographs; trained models of full size.
""",
    )


if __name__ == "__main__":
    main()
