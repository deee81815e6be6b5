"""Decoding JPEG files at a reduced scale, and resizing on the device: time, and what changes.

Run: python -m benchmarks.decode --out benchmarks/results/decode.md
Expect: a third of the time for large photographs, cosines above 0.99, and 0 pixels that differ
between Pillow and the device. `--sections time`, `effect` or `device` measures a part of it.
"""

import argparse
import concurrent.futures
import multiprocessing
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
from benchmarks.photographs import as_jpeg, cut_out, scene
from clip_jax import reduced
from clip_jax.preprocess import Preprocess, decode_image

SIZES = [(640, 480), (1600, 1200), (4000, 3000), (6000, 4000)]
# How many pixels a side the reduced picture has at least, for each of the resized one's.
MARGINS = (1, 2)
# Photographs that are cut out of one scene.
OF_SCENE = 100
# Image sizes of ViT-B/32 and of the emoji model.
B32, EMOJI = 224, 48
FRAMES = [(96, 128), (256, 256), (480, 640), (640, 360), (720, 1280), (1080, 1920)]
# Sizes that many pictures have: img2dataset's, and frames of videos.
THUMBNAILS = [(256, 256), (500, 375), (640, 480), (1280, 720)]
REAL = [
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
]


def fast(data: bytes, size: int, margin: int) -> Image.Image:
    """Decodes a file for images of a size, with another margin than the default."""
    preprocess = Preprocess(size, decode="fast")
    if margin == reduced.MARGIN:
        return decode_image(data, preprocess=preprocess)
    with mock.patch.object(reduced, "MARGIN", margin):
        return decode_image(data, preprocess=preprocess)


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
    """The width and height of a photograph, of which one in fifty has 12 million pixels."""
    if rng.random() < 0.02:
        return 4000, 3000
    short = int(np.exp(rng.uniform(np.log(900), np.log(1800))))
    long = int(short * rng.choice([4 / 3, 3 / 2]))
    return (long, short) if rng.random() < 0.7 else (short, long)


def pixels_of_scene(task: tuple[int, int]) -> dict[str, np.ndarray]:
    """Pixels of the photographs of a scene: for each model, decoded in each way."""
    number, count = task
    whole, rng = scene(number), np.random.default_rng((1, number))
    found: dict[str, list] = {"scales": []}
    for _ in range(count):
        data = cut_out(whole, drawn_size(rng), rng)
        exact = decode_image(data)
        for size in (B32, EMOJI):
            plain = Preprocess(size)
            found.setdefault(f"exact {size}", []).append(plain.pixels(exact))
            for margin in MARGINS:
                image = fast(data, size, margin)
                found.setdefault(f"{margin} {size}", []).append(plain.pixels(image))
                if (size, margin) == (B32, 2):
                    found["scales"].append(round(exact.width / image.width))
    return {name: np.stack(values) for name, values in found.items()}


def made_pixels(count: int) -> dict[str, np.ndarray]:
    """The same of all photographs, made in processes."""
    scenes = -(-count // OF_SCENE)
    tasks = [(n, len(range(n, count, scenes))) for n in range(scenes)]
    spawning = multiprocessing.get_context("spawn")  # JAX's threads don't survive a fork
    with concurrent.futures.ProcessPoolExecutor(4, spawning) as pool:
        found = []
        for number, pixels in enumerate(pool.map(pixels_of_scene, tasks), start=1):
            found.append(pixels)
            print(f"scene {number} of {scenes}", file=sys.stderr, flush=True)
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def kept_pixels(count: int, cache: Path | None) -> dict[str, np.ndarray]:
    """The same, of a file if there is one: they take half an hour."""
    if cache is None or not cache.exists():
        pixels = made_pixels(count)
        if cache is not None:
            np.savez(cache, **pixels)
        return pixels
    return dict(np.load(cache))


def effect(options: argparse.Namespace) -> str:
    pixels, rows = kept_pixels(options.count, options.cache), []
    for name, model, size, count in models(options):
        encoder = clip_jax.Encoder(model, normalize=True)
        exact = encoder.images(pixels[f"exact {size}"][:count])
        others = np.percentile(exact @ exact.T, [50, 99])
        for margin in MARGINS:
            embeddings = encoder.images(pixels[f"{margin} {size}"][:count])
            cosines = (exact * embeddings).sum(-1)
            nearest = (embeddings @ exact.T).argmax(-1) == np.arange(len(exact))
            changed = pixels[f"{margin} {size}"][:count].astype(np.int16)
            changed -= pixels[f"exact {size}"][:count]
            rows.append(
                [
                    *(name, len(exact), margin, float(np.abs(changed).mean())),
                    *(f"{value:.5f}" for value in np.percentile(cosines, [50, 1, 0])),
                    f"{nearest.mean():.2%}",
                    f"{others[0]:.3f}, {others[1]:.3f}",
                ]
            )
    scales = np.bincount(pixels["scales"])
    shares = ", ".join(f"{n:,} at 1/{s}" for s, n in enumerate(scales) if n)
    columns = [
        "model",
        "pictures",
        "margin",
        "pixels differ by",
        "cosine: median",
        "1st percentile",
        "least",
    ]
    columns += ["nearest is itself", "cosine of two pictures: median, 99th percentile"]
    return f"Of {len(pixels['scales']):,}, ViT-B/32 with margin 2 takes {shares}.\n\n" + (
        report.table(rows, columns)
    )


def models(options: argparse.Namespace) -> Iterator[tuple[str, clip_jax.nn.CLIP, int, int]]:
    """Models with the sides of their images, and how many pictures each embeds."""
    from flax import nnx

    yield "emoji, trained on drawings", clip_jax.load("emoji")[0], EMOJI, options.count
    config = clip_jax.config_of("ViT-B/32")
    model = clip_jax.nn.build(config, rngs=nnx.Rngs(0))
    yield "ViT-B/32 of random weights", model, B32, options.full_size


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


def host(rounds: int) -> str:
    """What a thread of an embedding job's host does for a row, with resizing and without."""
    from clip_jax.loading import Loader
    from clip_jax.sources import Record

    whole, rows = scene(10_000, (1400, 1000)), []
    for width, height in THUMBNAILS:
        data = as_jpeg(whole.crop((0, 0, width, height)), quality=85)
        record = Record("a", lambda data=data: data)
        how = {"preprocess": Preprocess(B32), "context_length": None, "exif_transpose": False}
        loaders = {
            "host": Loader(**how),
            "device": Loader(**how, for_device=lambda image: True),
        }
        took = milliseconds(
            {
                name: lambda load=load, record=record: [load(None, 0, record) for _ in range(50)]
                for name, load in loaders.items()
            },
            rounds,
        )
        each = [took[name] / 50 for name in ("host", "device")]
        rows.append([f"{width} x {height}", *each, each[0] / each[1]])
    columns = ["JPEG", 'resize="host", ms', 'resize="device", ms', "times"]
    return report.table(rows, columns)


def time_report(options: argparse.Namespace) -> str:
    return f"""# Decoding fast: time

{report.header()}

The processor's time, of one thread: medians of {options.rounds} rounds in which the contenders take
turns at being first. Other programs ran on the same cores. `decode="fast"` for ViT-B/32, whose
images have 224 pixels a side; JPEGs of quality 85, cut out of one picture
(`benchmarks/photographs.py`).

{rates(options.rounds)}

"Margin" is how many pixels a side are left, at least, for each of the resized picture's: `fast`
has 2. Every code of a JPEG has to be read at any scale, and all scans of a progressive one; what is
saved is the rest of decoding, and resizing, which for a large picture takes longer than decoding.

Not measured: photographs.
"""


def effect_report(options: argparse.Namespace) -> str:
    return f"""# Decoding fast: effect on embeddings

{report.header()}

Photograph-like pictures of 900 to 1,800 pixels along the shorter side, one in fifty of 4000 x 3000
(`benchmarks/photographs.py`: there are no photographs on this machine), as JPEGs of quality 80 to
95. No trained weights of a full-size model were at hand either: of random weights, the cosines say
how far the pixels differ for a network of this kind, and no more. The emoji model's images have 48
pixels a side, so that all pictures are decoded at an eighth of their scale with either margin.

{effect(options)}

The few real photographs that come with Python packages, for the emoji model:

{real()}

Not measured: photographs in any number; trained models of full size.
"""


def device_report(options: argparse.Namespace) -> str:
    return f"""# Resizing on the device

{report.header("JAX on the CPU")}

`Preprocess(224).on_device(height, width)`, compiled for the CPU, in batches of 16, against Pillow:
the processor's time a frame, of all cores; medians of {options.rounds} rounds in which the
contenders take turns at being first. The same by two matrix products in float32, whose weights are
in two parts so that sums are exact.

{device(options.rounds)}

{equal_sizes(40)}

What the host of an embedding job does for a row: it reads, decodes, checks, and resizes to 224 or
leaves that to the device. The processor's time of one thread:

{host(options.rounds)}

Where the CPU embeds too, it resizes either way, and the job is no faster.

Not measured: GPUs and TPUs.
"""


SECTIONS = {"time": time_report, "effect": effect_report, "device": device_report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=2000, help="pictures that are embedded")
    parser.add_argument("--full-size", type=int, default=500, help="of them by ViT-B/32")
    parser.add_argument("--cache", type=Path, help="a .npz file that keeps their pixels")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=tuple(SECTIONS))
    parser.add_argument("--out")
    options = parser.parse_args()
    for name in options.sections:
        report.write_section(options.out, SECTIONS[name](options))


if __name__ == "__main__":
    main()
