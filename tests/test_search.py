"""Search over embeddings: exact, in the order of the scores, and shown in three ways."""

import base64
import errno
import html.parser
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import Columns, embed
from clip_jax.embed.results import finished_job
from clip_jax.nn import normalize
from clip_jax.search import contact_sheet, exact, search
from clip_jax.search.index import Index
from tests.archives import parquet, write_tar
from tests.calls import runner
from tests.embedding_jobs import QUIET, contents
from tests.models import SMALL_VIT, small
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


COUNT = 30


KEYS = [f"{i:02d}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def folder(compiled_once, model, tmp_path_factory) -> Path:
    """A model, a shard of pictures with captions, and their embeddings in both formats."""
    root = tmp_path_factory.mktemp("search")
    clip_jax.save(model, root / "model")
    members = {}
    for i, key in enumerate(KEYS):
        members[f"{key}.png"] = noise(i)
        members[f"{key}.txt"] = f"number {i} <b>".encode()
    write_tar(root / "in.tar", members)
    for format in ("parquet", "npy"):
        options = {"format": format, "rows_per_part": 7, **QUIET}
        embed(root / "in.tar", root / "model", root / format, **options)
    return root


@pytest.fixture(scope="module")
def scores(model) -> np.ndarray:
    """What "a red bicycle" has with each picture, by the model itself."""
    preprocess = clip_jax.Preprocess(SMALL_VIT.vision.image_size)
    images = [preprocess.pixels(Image.open(io.BytesIO(noise(i)))) for i in range(COUNT)]
    images = np.asarray(normalize(model.encode_image(np.stack(images))))
    text = np.asarray(normalize(model.encode_text(clip_jax.tokenize("a red bicycle"))))
    return images @ text[0]


@pytest.mark.parametrize("format", ["parquet", "npy"])
@pytest.mark.parametrize("block", [1, 100, 1000, 10_000])
def test_the_nearest_are_found_whatever_the_blocks(
    folder, model, scores, format, block, monkeypatch
):
    monkeypatch.setitem(exact.BLOCK, "cpu", block)
    hits = search(folder / format, model, "a red bicycle", k=8)
    order = np.argsort(-scores)[:8]
    assert [hit["key"] for hit in hits] == [KEYS[i] for i in order]
    assert np.allclose([hit["score"] for hit in hits], scores[order], atol=2e-6)
    assert hits[0]["path"] == f"{folder}/in.tar/{hits[0]['key']}.png"
    assert hits[0]["caption"] == f"number {order[0]} <b>"


def test_all_rows_where_there_are_fewer(folder, model):
    assert len(search(folder / "parquet", model, "x", k=1000)) == COUNT


def test_a_picture_finds_itself(folder, tmp_path):
    (tmp_path / "p.png").write_bytes(noise(17))
    for query in (tmp_path / "p.png", Image.open(tmp_path / "p.png")):
        hits = search(folder / "parquet", None, query, k=2)
        assert hits[0]["key"] == "17" and hits[0]["score"] == pytest.approx(1, abs=1e-5)
        assert hits[1]["score"] < 0.999


def test_texts_can_be_searched(model, tmp_path):
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    embed(tmp_path / "t.txt", model, tmp_path / "out", **QUIET)
    hit, _ = search(tmp_path / "out", model, "a cat")
    assert hit["score"] == pytest.approx(1, abs=1e-5)
    assert (hit["key"], hit["path"], hit["caption"]) == ("t.txt:2", None, "a cat")


def test_equal_rows_come_in_the_order_of_the_input(model, tmp_path):
    parquet(tmp_path / "in.parquet", {"caption": ["x", "y", "x", "x"], "key": list("abcd")})
    options = {"rows_per_part": 2, "dtype": "float16", **QUIET}
    embed(tmp_path / "in.parquet", model, tmp_path / "out", **options)
    assert [hit["key"] for hit in search(tmp_path / "out", model, "x", 3)] == ["a", "c", "d"]


def test_embeddings_that_can_not_be_mapped_are_decoded(folder, model, monkeypatch):
    expected = search(folder / "parquet", model, "x")
    read = Index._read_footer

    def unmapped(self, name):
        import dataclasses

        for piece in read(self, name):
            yield dataclasses.replace(piece, offset=None)

    monkeypatch.setattr(Index, "_read_footer", unmapped)
    assert search(folder / "parquet", model, "x") == expected


def test_object_stores_are_searched_too(folder, model):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for format in ("parquet", "npy"):
        for name, content in contents(folder / format).items():
            memory.pipe_file(f"/search/{format}/{name}", content)
        found = search(f"memory://search/{format}", model, "x")
        assert found == search(folder / format, model, "x")


def test_parts_without_rows_do_no_harm(model, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(noise(i) if i < 2 or i > 3 else b"")
    for format in ("parquet", "npy"):
        out = tmp_path / format
        embed(tmp_path / "in", model, out, rows_per_part=2, format=format, **QUIET)
        assert {hit["key"] for hit in search(out, model, "x")} == {f"{i}.png" for i in (0, 1, 4, 5)}


# --- what is refused


def test_another_model_is_refused_with_both_fingerprints(folder):
    other = small(SMALL_VIT)
    other.ln_final.bias[...] = other.ln_final.bias[...] + 1
    with pytest.raises(ValueError, match="another model: its fingerprint is ([0-9a-f]{16}), this"):
        search(folder / "parquet", other, "x")


def test_what_can_not_be_searched_is_refused(folder, model, tmp_path):
    with pytest.raises(ValueError, match="k must be at least 1. Got 0"):
        search(folder / "parquet", model, "x", 0)
    with pytest.raises(TypeError, match="float"):
        search(folder / "parquet", model, "x", 2.5)
    with pytest.raises(ValueError, match="is no output of clip-jax embed"):
        search(tmp_path, model, "x")
    for text in ("{", '{"identity": {}}'):
        (tmp_path / "job.json").write_text(text)
        with pytest.raises(ValueError, match="job.json is damaged"):
            search(tmp_path, model, "x")
    (tmp_path / "job.json").write_bytes((folder / "parquet" / "job.json").read_bytes())
    with pytest.raises(ValueError, match="holds no embeddings yet"):
        search(tmp_path, model, "x")
    (tmp_path / "part-000000-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is damaged: run the same clip-jax embed command again"):
        search(tmp_path, model, "x")


def test_a_job_with_a_model_from_memory_asks_for_it(model, tmp_path):
    (tmp_path / "t.txt").write_text("a dog\n")
    embed(tmp_path / "t.txt", model, tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match="doesn't know its model by name or path"):
        search(tmp_path / "out", None, "x")


# --- the page


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the addresses in it."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_holds_all_it_shows(folder, model):
    hits = search(folder / "parquet", model, "<script>alert(1)</script>", k=5)
    page = contact_sheet(hits, "<script>alert(1)</script>")
    tags = Tags(page)
    assert tags.tags.count("li") == tags.tags.count("img") == 5
    assert {"script", "link"}.isdisjoint(tags.tags)
    assert "&lt;b&gt;" in page and "<b>number" not in page
    for address in tags.addresses:
        data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (36, 40)
    assert "://" not in re.sub('base64,[^"]*', "", page)


def test_pictures_that_are_gone_are_left_blank():
    hits = [{"key": '"k"<', "score": 0.5, "path": "/nowhere/x.png", "caption": None}]
    page = contact_sheet(hits, "q")
    assert "not there any more" in page and "&quot;k&quot;&lt;" in page


def test_pictures_inside_parquet_files_are_shown(model, tmp_path):
    parquet(tmp_path / "in.parquet", {"jpg": [noise(1), noise(2)]})
    embed(tmp_path / "in.parquet", model, tmp_path / "o", columns=Columns(image="jpg"), **QUIET)
    column = finished_job(str(tmp_path / "o"))["image_column"]
    page = contact_sheet(search(tmp_path / "o", model, "x"), "x", image_column=column)
    assert page.count('src="data:image/jpeg;base64,') == 2


# --- the command line


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs a command in this process, in the folder."""
    monkeypatch.chdir(folder)
    return runner(capsys)


def test_search_prints_a_table_and_json(run, folder, model):
    expected = search(folder / "parquet", model, "a red bicycle", 3)
    status, out, err = run("search", "parquet", "a red bicycle", "-k", 3)
    assert (status, err) == (0, [])
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["score", "key", "caption"]
    assert [line[1] for line in lines[1:]] == [hit["key"] for hit in expected]
    status, out, _ = run("search", "parquet", "a red bicycle", "-k", 3, "--json")
    assert status == 0 and json.loads(out) == expected


def test_search_takes_a_picture_and_writes_a_page(run, folder, tmp_path):
    (tmp_path / "q.png").write_bytes(noise(4))
    page = tmp_path / "page.html"
    for query in (("--image", tmp_path / "q.png"), (tmp_path / "q.png", "--image")):
        status, out, _ = run("search", "parquet", *query, "-k", 4, "--json", "--html", page)
        assert status == 0 and json.loads(out)[0]["key"] == "04"
        assert page.read_text().count("data:image/jpeg") == 5
        page.unlink()


def test_a_page_that_can_not_be_written_leaves_nothing_but_the_hits(run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for options in ((), ("--json",)):
        hits = run("search", "parquet", "x", *options)[1]
        status, out, err = run("search", "parquet", "x", *options, "--html", tmp_path / "page.html")
        assert hits and (status, out) == (1, hits)
    assert err == [f"clip-jax: {tmp_path}/page.html: No space left on device"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("search", "parquet"), 2, "QUERY"),
        (("search", "parquet", "x", "-k", "0"), 2, "from 1 on. Got '0'"),
        (("search", "parquet", "x", "--html", ""), 2, "--html: expected the name of a file"),
        (("search", "nowhere", "x"), 1, "is no output of clip-jax embed"),
        (("search", "parquet", "none.png", "--image"), 1, "none.png: No such file"),
        (("embed", "in.tar"), 2, "--out"),
        (("embed", "in.tar", "--out", "o", "--shard", "4/4"), 2, "such as 0/4. Got '4/4'"),
        (("embed", "in.tar", "--out", "o", "--rows-per-part", "0"), 2, "from 1 on"),
        (("embed", "in.tar", "--out", "o", "--distributed"), 1, "finds no pod or cluster here"),
        (("embed", "none.tar", "--out", "o"), 1, "none.tar: no such file"),
        (("embed", "in.tar", "--out", "parquet", "--model", "model"), 1, "output of another job"),
        (("embed", "in.tar", "--out", "o", "--model", "model", "--columns", "x", "key"), 1, "key"),
    ],
)
def test_mistakes_are_said_in_a_line(run, folder, argv, status, message):
    code, out, err = run(*argv)
    assert (code, out) == (status, "")
    assert message in err[0]
    assert not (folder / "o").exists()


def test_embed_takes_every_option(run, folder, tmp_path):
    command = ["embed", "in.tar", "--out", tmp_path / "o", "--model", "model"]
    command += ["--what", "both", "--preset", "fast", "--dtype", "float16", "--batch-size", "8"]
    command += ["--rows-per-part", "10", "--threads", "2", "--max-errors", "0", "--shard", "0/2"]
    status, out, _ = run(*command, "--dry-run")
    assert (status, out) == (0, "to do: 20 rows in 2 parts; done before: 0 rows, 0 errors\n")
    status, out, _ = run(*command)
    assert status == 0
    assert out.startswith("20 rows in 2 parts, 0 rows before, 0 errors; ")
    assert "\nbottleneck: " in out
    status, out, _ = run(*command, "--retry-errors")
    assert out == "no part to write: 20 rows are there, 0 errors\n"
    status, out, err = run("search", tmp_path / "o", "x", "--json")
    assert status == 1 and len(json.loads(out)) == 10
    assert "10 rows are left out" in err[0]  # the other share's


def test_help_of_the_commands_needs_no_pyarrow():
    program = "import sys, clip_jax.cli; print('pyarrow' in sys.modules, 'fsspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("name", ["search", "contact_sheet"])
def test_the_names_before_the_room_of_its_own_warn_and_work(name):
    from clip_jax import embed as room
    from clip_jax import search as new

    with pytest.warns(DeprecationWarning, match=rf"clip_jax\.search\.{name} now"):
        assert getattr(room, name) is getattr(new, name)
