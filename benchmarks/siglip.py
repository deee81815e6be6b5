"""SigLIP on a CPU: ids and pixels against transformers', and the rate of its encoder.

    python -m benchmarks.siglip --out benchmarks/results/siglip.md

Expect: 0 different rows of ids and 0 different pictures, or it exits with 1.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.encode import CORES, Contender, over, take_turns, torch_compiled
from benchmarks.encode_report import COMPILE, EAGER, ENCODER
from clip_jax.parity.reference import import_library, quiet

TEXTS = 20_000
LENGTH = 64
SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (223, 225), (224, 224), (224, 301), (333, 500)]
SIZES += [(501, 335), (640, 480), (31, 199)]
FILTERS = {2: "bilinear", 3: "bicubic"}


def main() -> int:
    """Writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--out", help="a Markdown file")
    parser.add_argument("--rate", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rate:
        print(json.dumps(rates(options.rate, options.rounds)))
        return 0
    ids, pixels = compare_ids(), compare_pixels()
    measured = [(batch, _in_a_process(batch, options.rounds)) for batch in options.batches]
    columns = ["batch", "images/s", "against eager", "against torch.compile"]
    columns += ["features differ by", "other processes' share of the CPU"]
    report.write(
        options.out,
        f"""# SigLIP

{report.header(f"JAX on {CORES} cores of the CPU")}

## Ids

{TEXTS:,} texts of words, several scripts, literals of tokens and any code points in any order, on
vocabularies trained on the settings of the published ones; rows of {LENGTH} ids.

{report.table(ids, ["tokenizer", "texts", "different rows"])}

## Pixels

Pictures of random pixels, squashed to 224 x 224 by a folder's settings, against transformers'
processor that works on Pillow's pictures; the float32 results compared byte by byte.

{report.table(pixels, ["filter", "modes", "pictures", "different"])}

## Rate

Images through the vision tower of B/16 at 224 pixels in float32, the same random weights for all,
from the host to the host. Medians of {options.rounds} rounds in which the contenders take turns;
the ratio is the median of the rounds' ratios.

{report.table(_rows(measured), columns)}
""",
    )
    return 0 if all(row[-1] == 0 for row in ids + pixels) else 1


def compare_ids() -> list[tuple[object, ...]]:
    """Returns how many rows of ids differ, for each generation and each form of its file."""
    from clip_jax import load_tokenizer
    from clip_jax.sentence_piece import SentencePieceTokenizer
    from tests.sentence_pieces import odd_texts, siglip2_model, siglip_model, transformers_folders

    texts = odd_texts(TEXTS, seed=1)
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    models = {
        "siglip": ("SigLIP", "spiece.model", siglip_model(), 1),
        "siglip2": ("SigLIP 2", "tokenizer.model", siglip2_model(), 0),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (folder_of, theirs) in transformers_folders(Path(folder), LENGTH).items():
            title, file, vocabulary, pad = models[name]
            with quiet():
                expected = np.array([theirs(text, **options)["input_ids"] for text in texts])
            own = SentencePieceTokenizer(LENGTH, file, vocabulary, name, pad)
            for ours in {one.file: one for one in (own, load_tokenizer(folder_of))}.values():
                wrong = (ours(texts, truncate=True) != expected).any(axis=1)
                rows.append((f"{title}, by its {ours.file}", len(texts), int(wrong.sum())))
    return rows


def compare_pixels() -> list[tuple[object, ...]]:
    """Returns how many pictures differ, for each filter."""
    from PIL import Image

    import clip_jax
    from clip_jax.convert import to_huggingface
    from tests.models import random_parameters
    from tests.pictures import MODES, random_image
    from tests.siglip import SIGLIP

    vision = dataclasses.replace(SIGLIP.vision, image_size=224)
    config = dataclasses.replace(SIGLIP, vision=vision)
    rows, rng = [], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        to_huggingface(config, random_parameters(config), folder / "model")
        settings = folder / "model" / "preprocessor_config.json"
        document = json.loads(settings.read_text())
        for resample, word in FILTERS.items():
            settings.write_text(json.dumps(document | {"resample": resample}))
            with quiet():
                processor = import_library("transformers").SiglipImageProcessorPil
                theirs = processor.from_pretrained(folder / "model", do_convert_rgb=True)
            _, ours = clip_jax.load(folder / "model", preprocessing="huggingface")
            pictures = different = 0
            for mode in MODES:
                if mode == "La":  # refused by both: Pillow neither resizes it nor makes it RGB
                    continue
                for size in SIZES:
                    image: Image.Image = random_image(mode, size, rng)
                    with quiet():
                        (expected,) = theirs(image, return_tensors="np")["pixel_values"]
                    found, pictures = ours(image), pictures + 1
                    different += found.tobytes() != expected.transpose(1, 2, 0).tobytes()
            rows.append((word, len(MODES) - 1, pictures, different))
    return rows


def rates(batch: int, rounds: int) -> dict[str, Any]:
    """Returns the seconds of each contender for a batch of images, in turns."""
    import clip_jax
    from clip_jax import Encoder

    transformers, torch = import_library("transformers"), import_library("torch")
    torch.set_num_threads(CORES)
    images = np.random.default_rng(0).random((batch, 224, 224, 3), np.float32) * 2 - 1
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    with tempfile.TemporaryDirectory() as folder, quiet():
        # The text tower isn't run: a small one is soon written and read.
        config = transformers.SiglipConfig(
            text_config={
                "num_hidden_layers": 1,
                "vocab_size": 1000,
                "bos_token_id": None,
                "eos_token_id": 1,
            }
        )
        torch.manual_seed(0)
        peer = transformers.SiglipModel(config).eval()
        peer.save_pretrained(folder)
        model, _ = clip_jax.load(folder)
    vision = peer.vision_model

    def network(x: Any) -> Any:
        return vision(x).pooler_output

    def theirs(function: Any) -> Any:
        return lambda: Contender(lambda: over(function)([planes]), batch)

    encoder = Encoder(model, batch_size=batch)
    return take_turns(
        {
            EAGER: theirs(network),
            COMPILE: theirs(torch_compiled(network)),
            ENCODER: lambda: Contender(lambda: encoder.images(images), batch),
        },
        rounds,
    )


def _rows(measured: list[tuple[int, dict[str, Any]]]) -> list[tuple[object, ...]]:
    rows = []
    for batch, answer in measured:
        found = answer["contenders"]
        ours = found[ENCODER]["seconds"]
        rows.append(
            (
                batch,
                batch / statistics.median(ours),
                *(_ratio(found[peer]["seconds"], ours) for peer in (EAGER, COMPILE)),
                f"{found[ENCODER]['difference']:.1e}",
                f"{answer['others']:.0%}",
            )
        )
    return rows


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _in_a_process(batch: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.siglip", "--rate", str(batch)]
    command += ["--rounds", str(rounds)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
