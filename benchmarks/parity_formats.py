"""Arrays of full-size models of OpenAI's through the formats of all libraries and back.

Each model is an archive in the official format (partly float16) with random weights of trained
scale, converted from folder to folder by the functions that `clip-jax convert` calls. Hugging
Face's CLIP has no ResNets, which go through OpenCLIP's format alone.

    python -m benchmarks.parity_formats --out benchmarks/results/parity.md
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from clip_jax.catalog import lookup
from clip_jax.config import ViTConfig
from clip_jax.convert import (
    from_huggingface,
    from_open_clip,
    from_pytorch,
    read_checkpoint,
    to_huggingface,
    to_open_clip,
    to_pytorch,
)
from tests import reference
from tests.models import reference_numbers

TITLE = "# Arrays of OpenAI's models through other formats and back"
COLUMNS = ("model", "formats", "arrays", "bytes", "after the way back")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["ViT-B/32", "RN50"])
    parser.add_argument("--out", help="a Markdown file, in which this table is put or replaced")
    arguments = parser.parse_args()
    rows = [there_and_back(name) for name in arguments.models]
    notes = "Random weights of trained scale in the official format, matrices in float16."
    text = "\n\n".join([TITLE, report.header(), notes, report.table(rows, COLUMNS)])
    report.write_section(arguments.out, text)
    return 0 if all(row[-1] == "identical" for row in rows) else 1


def there_and_back(name: str) -> tuple[object, ...]:
    """One row of the table."""
    official = lookup(name).config
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = reference.randomize(reference.build(reference_numbers(official)), seed=3)
        reference.save_torchscript(model, folder / "model.pt")
        del model
        arrays = read_checkpoint(folder / "model.pt")
        config, params = from_pytorch(arrays)
        formats = ["OpenAI"]
        if isinstance(official.vision, ViTConfig):
            to_huggingface(config, params, folder / "huggingface")
            config, params = from_huggingface(folder / "huggingface")
            formats.append("Hugging Face")
        to_open_clip(config, params, folder / "open_clip")
        config, params = from_open_clip(folder / "open_clip")
        back = to_pytorch(config, params)
        formats += ["OpenCLIP", "OpenAI"]
        scalars = {"input_resolution", "context_length", "vocab_size"}
        identical = back.keys() == arrays.keys() - scalars and all(
            array.dtype == arrays[key].dtype and array.tobytes() == arrays[key].tobytes()
            for key, array in back.items()
        )
        return (
            name,
            " → ".join(formats),
            len(back),
            sum(array.nbytes for array in back.values()),
            "identical" if identical else "DIFFERENT",
        )


if __name__ == "__main__":
    sys.exit(main())
