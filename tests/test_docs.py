"""What the pages of docs/ show is so: their code, their commands, their messages, their lists."""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.cli.dispatch import _parser
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.towers import TextModel, VisionModel
from docs import walk
from docs.hooks.help import PLACE, help_of
from docs.hooks.results import RESULTS, page
from tests.models import SMALL_VIT, random_images, random_parameters, small
from tests.reference import requires_reference
from tests.siglip import SIGLIP

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TIMING = re.compile(r"[\d.]+ (?:s|rows/s)\b")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def pages_with(pattern: str) -> list[str]:
    found = [page for page in PAGES if re.search(pattern, page.read_text(), re.M)]
    return [page.relative_to(DOCS).as_posix() for page in found]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """What the pages take for granted: a photo, some pictures, and the examples of a clone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "pictures").mkdir()
    for name, pixels in zip("abcdefgh", random_images(8, 50), strict=True):
        Image.fromarray(pixels).save(f"pictures/{name}.jpg")
    Image.fromarray(random_images(1, 50)[0]).save("photo.jpg")
    return tmp_path


NAMES = (
    "ViT-B/32",
    "ViT-H-14/dfn5b",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "openai/clip-vit-base-patch32",
)


@pytest.fixture
def small_models(monkeypatch) -> None:
    """Small models go by the names of large ones, and of diffusion pipelines."""
    load, load_tokenizer = clip_jax.load, clip_jax.load_tokenizer
    preprocess = clip_jax.Preprocess(SMALL_VIT.vision.image_size)

    def model(name, **options):
        return (small(SMALL_VIT, **options), preprocess) if name in NAMES else load(name, **options)

    def tokenizer(name, **options):
        return Tokenizer() if name.count("/") == 1 else load_tokenizer(name, **options)

    def text_model(name, *, subfolder=None, **options):
        config, embed_dim = SMALL_VIT.text, SMALL_VIT.embed_dim
        return TextModel(config, embed_dim, rngs=nnx.Rngs(0), **options), Tokenizer()

    def vision_model(name, **options):
        config, embed_dim = SMALL_VIT.vision, SMALL_VIT.embed_dim
        return VisionModel(config, embed_dim, rngs=nnx.Rngs(0), **options), preprocess

    stand_ins = {"load": model, "load_tokenizer": tokenizer}
    stand_ins |= {"load_text_model": text_model, "load_vision_model": vision_model}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(clip_jax, name, stand_in)
    siglip = SIGLIP, random_parameters(SIGLIP)
    monkeypatch.setattr(clip_jax.convert, "from_big_vision", lambda path: siglip)


NEED_PYTORCH = ["guides/parity.md"]
NEED_ONNX = ["guides/export-onnx.md"]
NEED_FAISS = ["guides/embed-and-search.md"]
# They compile whole trainings and towers; the rooms' own tests try these with the newest jax.
LONG = ["guides/train.md", "walk.md"]
# They call a tower itself, in a function of their own, where JAX's default lets ranks be promoted.
CALL_TOWERS = pages_with(r"\bmodel\.(image|text)_features\(")


@pytest.mark.parametrize(
    "name", sorted({*pages_with("^```python$")} - {*NEED_PYTORCH, *NEED_ONNX, *NEED_FAISS, *LONG})
)
def test_the_code_of_a_page_runs_and_prints_what_it_says(name, folder, small_models):
    run(name, folder)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_so_does_the_code_that_takes_longer(name, folder, small_models):
    run(name, folder)


@requires_reference
@pytest.mark.parametrize("name", NEED_PYTORCH)
def test_so_does_the_code_that_compares_with_pytorch(name, folder, small_models):
    run(name, folder)


@pytest.mark.parametrize("name", NEED_ONNX)
def test_so_does_the_code_that_writes_onnx(name, folder, small_models):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    run(name, folder)


@pytest.mark.parametrize("name", NEED_FAISS)
def test_so_does_the_code_that_builds_an_index(name, folder, small_models):
    pytest.importorskip("faiss")
    run(name, folder)


def run(name: str, folder: Path) -> None:
    """Runs a page's code in that folder."""
    plt = importlib.import_module("matplotlib.pyplot")
    plt.switch_backend("Agg")
    namespace: dict[str, object] = {}
    for code, expected in walk.blocks(DOCS / name):
        promotion = jax.numpy_rank_promotion("allow" if name in CALL_TOWERS else "raise")
        with promotion, contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, name, "exec"), namespace)
        if expected is not None:
            assert same(out.getvalue(), expected), f"{name} says\n{expected}\nbut {out.getvalue()}"
    plt.close("all")
    for picture in folder.glob("*.webp"):  # those that the page shows
        assert f"pictures/{picture.name}" in (DOCS / name).read_text()
        with Image.open(picture) as made, Image.open(DOCS / "pictures" / picture.name) as shown:
            assert np.allclose(made.size, shown.size, atol=40)  # fonts differ from place to place


def same(printed: str, expected: str) -> bool:
    """Whether two texts are the same but for rounding in their numbers."""
    numbers = [np.array(NUMBER.findall(text), float) for text in (printed, expected)]
    words = [NUMBER.sub("#", text).split() for text in (printed, expected)]
    return words[0] == words[1] and np.allclose(*numbers, rtol=0.02)


def test_every_picture_of_the_walk_is_made_by_its_code():
    text = walk.PAGE.read_text()
    shown = set(re.findall(r"\(pictures/(\w+)\.webp\)", text))
    assert shown == set(re.findall(r'savefig\("(\w+)\.webp"', text))


def commands(text: str) -> list[list[str]]:
    """The arguments of every `clip-jax` command in a page's shell blocks."""
    found = []
    for block in re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if start := re.search(r"(?:^|\$ |srun |&& )(clip-jax .*)", line):
                command = start[1].split(" && ")[0]
                arguments = shlex.split(command + '"' * (command.count('"') % 2), comments=True)
                found.append([argument.strip('"') for argument in arguments[1:]])
    return found


@pytest.mark.parametrize("name", [*pages_with("clip-jax"), "../README.md"])
def test_the_commands_of_a_page_parse(name):
    for arguments in commands((DOCS / name).read_text()):
        _parser().parse_args(arguments)


@pytest.mark.parametrize("name", pages_with("^<!-- run -->$"))
def test_the_commands_that_need_no_other_files_print_what_the_page_says(name, folder, capsys):
    text = (DOCS / name).read_text()
    for block in re.findall(r"^<!-- run -->\n```console\n(.*?)^```", text, re.M | re.S):
        for run in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.M)[1:]:
            command, _, expected = run.partition("\n")
            assert main(shlex.split(command)[1:]) == 0
            printed = capsys.readouterr().out
            # Scores of another compilation differ in their last digits, too.
            assert same(*(TIMING.sub("#", text) for text in (printed, expected)))


def test_every_command_has_its_help_in_the_reference():
    text = (DOCS / "reference" / "command-line.md").read_text()
    shown = {" ".join(place.split()) for place in PLACE.findall(text)}
    listed = functools.partial(re.findall, r"^    (\w+)\b", flags=re.M)
    names = {""}
    for command in listed(help_of([])):
        names.add(command)
        names |= {f"{command} {kind}" for kind in listed(help_of([command]))}
    assert shown == names


ROOMS = (
    "convert",
    "embed",
    "search",
    "serve",
    "evaluate",
    "train",
    "nn",
    "backends",
    "parity",
    "export",
)
MODULES = ["clip_jax", *(room for room in ROOMS if list(ROOT.glob(f"clip_jax/{room}*")))]


def public_names(module: ModuleType) -> Iterator[str]:
    """What a room exports: names imported as themselves; else what it defines."""
    assert module.__file__
    body = ast.parse(Path(module.__file__).read_text()).body
    lazily = [node for block in body if isinstance(block, ast.If) for node in block.body]
    exported = [
        alias.name
        for node in [*body, *lazily]
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name and not alias.name.startswith("_")
        if not inspect.ismodule(getattr(module, alias.name))
    ]
    defined = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    yield from exported or (name for name in defined if not name.startswith("_"))


@pytest.mark.parametrize("room", MODULES)
def test_the_reference_has_every_public_name(room):
    module = "clip_jax" if room == "clip_jax" else f"clip_jax.{room}"
    names = set(public_names(importlib.import_module(module)))
    shown: dict[str, object] = {}
    for file in (DOCS / "reference").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", file.read_text(), re.M):
            shown[path] = resolve(path)
    missing = [
        name
        for name in names - {"convert"}
        if f"{module}.{name}" not in shown
        and not any(getattr(importlib.import_module(module), name) is it for it in shown.values())
    ]
    assert not missing, f"not in docs/reference: {missing}"


@functools.cache
def code_of_the_pages() -> str:
    files = [*PAGES, ROOT / "README.md"]
    return "\n".join(code for file in files for code, _ in walk.blocks(file))


@pytest.mark.parametrize("room", MODULES)
def test_every_public_function_has_an_example(room):
    module = importlib.import_module("clip_jax" if room == "clip_jax" else f"clip_jax.{room}")
    functions = [
        (name, getattr(module, name))
        for name in public_names(module)
        if inspect.isfunction(getattr(module, name))
    ]
    without = [
        name
        for name, function in functions
        if ">>>" not in (function.__doc__ or "")
        and not re.search(rf"\b{name}\b", code_of_the_pages())
    ]
    assert not without, f"neither a doctest nor a page of docs/ shows {without}"


def resolve(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def messages() -> list[str]:
    """Every text in the source, with a line feed where a value goes."""
    found = []
    for path in [*ROOT.glob("clip_jax/**/*.py"), *ROOT.glob("convert/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "\n" for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_code():
    text = (DOCS / "guides" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^`(.*)`\n:   ", text, re.M)
    assert len(quoted) > 50
    known = messages()
    for message in quoted:
        parts = [part.strip() for part in message.replace("\\`", "`").split("...")]
        pattern = re.compile(".*".join(map(re.escape, parts)), re.S)
        assert any(pattern.search(text) for text in known), f"no message says: {message}"


def test_every_table_of_results_is_a_page_that_speaks_of_results_alone():
    nav = (ROOT / "mkdocs.yml").read_text()
    for path in RESULTS.glob("*.md"):
        assert f"benchmarks/{path.name}" in nav
        text = page(path)
        assert not re.search(r"\| (asked for|reach|reached) \||[Ff]igures to reach", text), path
        for line in path.read_text().splitlines():
            assert line in text
