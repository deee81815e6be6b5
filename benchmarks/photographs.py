"""Pictures that have what photographs have, for machines without photographs.

Scenes of opaque things of all sizes, one in front of the other ("dead leaves": Lee, Mumford and
Huang 2001), whose edges and sizes have the statistics of natural images; with textures whose
amplitude falls with their frequency (1/f), gradients of light, blur of a lens and a sensor's noise.
Pictures are cut out of these scenes, turned over and recoloured.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Width and height of a scene, and how many things it shows.
SCENE, THINGS = (4100, 3100), 700


def scene(seed: int, size: tuple[int, int] = SCENE) -> Image.Image:
    """A picture in RGB."""
    rng = np.random.default_rng(seed)
    width, height = size
    textures = [_texture(rng, 1024) for _ in range(3)]
    across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height), copy=False)
    light = (rng.normal() * across + rng.normal() * down)[..., None] * rng.uniform(10, 40, 3)
    ground = np.asarray(_thing(rng, textures[0], max(size)).resize(size)) + light
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    least, most = height / 60, height / 2.5
    for _ in range(THINGS):
        # A density of radii that falls with their third power, as of things at all distances.
        radius = int(least * (1 - rng.uniform() * (1 - (least / most) ** 2)) ** -0.5)
        x, y = rng.integers(0, width), rng.integers(0, height)
        box = (x - radius, y - radius, x + radius, y + radius)
        thing = _thing(rng, textures[rng.integers(3)], 2 * radius)
        mask = Image.new("L", thing.size)
        draw = ImageDraw.Draw(mask)
        if rng.random() < 0.5:
            draw.ellipse((0, radius * rng.uniform(0, 0.8), 2 * radius, 2 * radius), fill=255)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
            corners = radius + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
            draw.polygon([tuple(corner) for corner in corners.tolist()], fill=255)
        picture.paste(thing, box, mask)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2)))
    noise = rng.normal(0, rng.uniform(1, 5), (height // 4, width, 3)).astype(np.float32)
    noisy = np.asarray(picture) + np.tile(noise, (5, 1, 1))[:height]
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def cut_out(whole: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    """A part of a scene as a JPEG file, of a quality that is usual."""
    left, top = (
        int(rng.integers(0, side - part + 1)) for side, part in zip(whole.size, size, strict=True)
    )
    part = whole.crop((left, top, left + size[0], top + size[1]))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    bands = part.split()
    part = Image.merge("RGB", [bands[i] for i in rng.permutation(3)])
    power, gain = rng.uniform(0.7, 1.5), rng.uniform(0.8, 1.2)
    curve = np.clip(gain * 255 * (np.arange(256) / 255) ** power, 0, 255).astype(int).tolist()
    return as_jpeg(part.point(curve * 3), quality=int(rng.integers(80, 96)))


def as_jpeg(picture: Image.Image, **options: object) -> bytes:
    """A picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float32 noise with standard deviation 1, whose amplitude is 1/f."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    waves = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    noise = np.fft.irfft2(waves / frequency, (side, side)).astype(np.float32)
    noise = 0.9 * noise[:1] + 0.4 * noise  # colours go together
    return (noise / noise.std()).transpose(1, 2, 0)


def _thing(rng: np.random.Generator, texture: np.ndarray, side: int) -> Image.Image:
    times = -(-side // len(texture))
    texture = np.roll(texture, rng.integers(0, len(texture), 2), (0, 1))
    texture = np.tile(texture, (times, times, 1))[:side, :side]
    pixels = rng.uniform(20, 235, 3) + texture * rng.uniform(2, 30)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
