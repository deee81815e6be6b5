"""Embeds images or texts by the programs in this folder, with JAX and NumPy alone.

Set up: pip install jax flatbuffers numpy
Images: python run.py --images images.npy --out embeddings.npy
Texts:  python run.py --texts tokens.npy --out embeddings.npy
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
rows = parser.add_mutually_exclusive_group(required=True)
rows.add_argument("--images", help="images as manifest.json describes them, or uint8 pixels")
rows.add_argument("--texts", help="token ids, whole numbers")
parser.add_argument("--out", required=True, help="the file for the embeddings, float32")
parser.add_argument("--batch", type=int, default=32, help="rows that are computed at once")
options = parser.parse_args()

folder = Path(__file__).resolve().parent
manifest = json.loads((folder / "manifest.json").read_text())
kind = "image" if options.images is not None else "text"
form = manifest["programs"][kind]["input"]

# What is given is checked first: a program takes numbers of any meaning.
if options.batch < 1:
    parser.error(f"--batch must be at least 1. Got {options.batch}")
name = str(options.images if kind == "image" else options.texts)
try:
    given = np.load(name)
    given = given.astype(given.dtype.newbyteorder("="), copy=False)
except (OSError, ValueError, EOFError, AttributeError) as error:
    parser.error(f"{name} is no file with one array, as numpy.save writes it ({error})")
sides = [side for side in form["shape"][1:] if side != "l"]
if given.ndim != len(form["shape"]) or list(given.shape[1:])[: len(sides)] != sides:
    parser.error(f"the program takes the shape {form['shape']}. Got {list(given.shape)}")
if kind == "image":
    is_float = given.dtype.kind == "f" and form["dtype"] != "uint8"
    if given.dtype != np.uint8 and not is_float:
        more = "" if form["dtype"] == "uint8" else " pixels, or normalised floats"
        parser.error(f"images must be uint8{more}. Got {given.dtype}")
else:
    text = manifest["config"]["text"]
    length, size = text.get("context_length", 77), text.get("vocab_size", 49408)
    if not 1 <= given.shape[1] <= length:
        parser.error(f"texts must have 1 to {length} ids. Got {given.shape[1]}")
    if given.dtype.kind not in "iu":
        parser.error(f"token ids must be whole numbers. Got {given.dtype}")
    if given.size and (given.min() < 0 or given.max() >= size):
        parser.error(f"token ids must be 0 to {size - 1}. Got {given.min()} to {given.max()}")
    # The program pools at the largest id, which is CLIP's end token unless tokens were added.
    end, named = 49407, {name: text.get(name) for name in ("eos_id", "tokenizer")}
    is_unsaid = text.get("pooling", "argmax") == "argmax" and set(named.values()) == {None}
    if is_unsaid and ((given > end).any(axis=1) & (given == end).any(axis=1)).any():
        parser.error(
            f"there are ids above {end}, CLIP's end token, and nothing says whether a text ends "
            f"there: export the model again with eos_id in its configuration"
        )
out = Path(options.out)
if out.is_dir() or not out.parent.is_dir():
    parser.error(f"--out must be a file in a folder that exists. Got {out}")
(device,) = jax.device_put(0).devices()  # where arrays are put here
platform = device.platform
if not {platform, *(("cuda", "rocm") if platform == "gpu" else ())} & set(manifest["platforms"]):
    names = ", ".join(manifest["platforms"])
    parser.error(f"these programs are for {names}; JAX computes on {platform} here")

program = export.deserialize(bytearray((folder / manifest["programs"][kind]["file"]).read_bytes()))
weights = []
if manifest["weights"] == "beside":
    # Mapped, so that only what is used is read. The format: a length, a header of JSON, arrays.
    data = np.memmap(folder / "model.safetensors", np.uint8, mode="c")
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:begin].tobytes())
    types = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
    arrays = {
        name: data[slice(*(begin + place for place in entry["data_offsets"]))]
        .view(types[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in sorted(header.items())
        if name != "__metadata__"
    }
    # Of the other tower, zeros of the same shapes, which take no memory.
    used = program.module_kept_var_idx
    places = zip(arrays.items(), program.in_avals, strict=False)
    weights.append(
        {
            name: jax.device_put(array)
            if i in used
            else np.broadcast_to(np.zeros((), aval.dtype), aval.shape)
            for i, ((name, array), aval) in enumerate(places)
        }
    )


@jax.jit
def embed(weights, batch):
    """Normalises pixels that are bytes, and runs the program."""
    if kind == "image" and batch.dtype == jnp.uint8 and form["dtype"] != "uint8":
        mean, std = (jnp.array([[[manifest[name]]]], jnp.float32) for name in ("mean", "std"))
        batch = (batch.astype(jnp.float32) / 255 - mean) / std
    return program.call(*weights, batch.astype(form["dtype"]))


size = form["shape"][0]
if size == "b":
    size = min(options.batch, max(len(given), 1))
parts = [np.empty((0, manifest["programs"][kind]["output"]["shape"][1]), np.float32)]
for begin in range(0, len(given), size):
    part = given[begin : begin + size]
    batch = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
    parts.append(np.asarray(embed(weights, batch))[: len(part)])
with open(out, "wb") as file:  # by its very name: numpy.save would add to it
    np.save(file, np.concatenate(parts))
