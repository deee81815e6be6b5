"""Pictures that `clip-jax serve` shows: of rows alone, small, and never by a path."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from clip_jax.embed import embed
from clip_jax.search import search
from tests.embedding_jobs import QUIET
from tests.pictures import noise
from tests.serving import COUNT, application, encoded, serving

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def test_a_thumbnail_is_a_small_jpeg_that_browsers_keep(served):
    found = served.get("/thumbnails/7")
    assert found.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(found.body)).format == "JPEG"
    assert "max-age" in found.headers["cache-control"]
    again = served.get("/thumbnails/7", headers={"If-None-Match": found.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert served.get("/thumbnails/8").headers["etag"] != found.headers["etag"]


def test_an_original_is_the_file_itself(served):
    found = served.get("/originals/7")
    assert found.body == noise(7) and found.headers["content-type"] == "image/png"
    assert "sandbox" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        f"/thumbnails/{COUNT}",
        "/thumbnails/999999999999999999999999",
        "/thumbnails/-1",
        "/thumbnails/../../../../etc/passwd",
        "/thumbnails/..%2f..%2f..%2fetc%2fpasswd",
        "/thumbnails//etc/passwd",
        "/thumbnails/1.png",
        "/originals/%2e%2e/%2e%2e/etc/passwd",
        "/originals/x",
        "/page/index.html",
        "/../pyproject.toml",
        "/index.html",
        "/__init__.py",
    ],
)
def test_what_is_no_row_is_not_there(served, path):
    found = served.get(path)
    assert found.status == 404 and set(found.json) == {"error"}


def test_large_and_transparent_pictures_become_small_and_white(model, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "in" / "a.jpg")
    Image.new("RGBA", (600, 900), (0, 0, 0, 0)).save(tmp_path / "in" / "b.png")
    Image.new("RGB", (50, 40), "blue").save(tmp_path / "in" / "c.tiff")
    embed(tmp_path / "in", model, tmp_path / "out", **QUIET)
    made = application(tmp_path / "out", model)
    with serving(made.app) as found:
        red, white = (
            Image.open(io.BytesIO(found.get(f"/thumbnails/{i}").body)).convert("RGB")
            for i in (0, 1)
        )
        assert red.size == (400, 267) and white.size == (267, 400)
        assert white.getpixel((100, 100)) == (255, 255, 255)
        assert "content-disposition" not in found.get("/originals/0").headers
        # Browsers don't show it.
        assert found.get("/originals/2").headers["content-disposition"] == "attachment"


def test_a_photograph_that_was_taken_upright_is_shown_upright():
    from clip_jax.thumbnails import thumbnail

    image = Image.new("RGB", (120, 80), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(thumbnail(file.getvalue()))).size == (80, 120)


def test_a_picture_that_is_sent_is_rotated_as_those_of_the_job_were(collection, tmp_path):
    image = Image.open(io.BytesIO(noise(77)))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    found = {}
    for rotates in (False, True):
        out = tmp_path / str(rotates)
        options = {"exif_transpose": rotates, **QUIET}
        embed(collection / "in.parquet", collection / "model", out, **options)
        with serving(application(out).app) as server:
            hits = server.ask("POST", "/api/search?k=5", file.getvalue()).json
        (tmp_path / "q.png").write_bytes(file.getvalue())
        expected = search(out, None, tmp_path / "q.png", 5)
        assert [hit["key"] for hit in hits] == [hit["key"] for hit in expected]
        found[rotates] = [hit["score"] for hit in hits]
        assert found[rotates] == pytest.approx([hit["score"] for hit in expected], abs=2e-6)
    assert found[False] != pytest.approx(found[True], abs=1e-4)


def test_pictures_that_are_gone_or_no_pictures_any_more_are_not_there(model, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(noise(i))
    embed(tmp_path / "in", model, tmp_path / "out", **QUIET)
    (tmp_path / "in" / "0.png").unlink()
    (tmp_path / "in" / "1.png").write_text("<script>alert(1)</script>")
    made = application(tmp_path / "out", model)
    with serving(made.app) as found:
        for kind in ("thumbnails", "originals"):
            assert "not there any more" in found.get(f"/{kind}/0").error
            assert found.get(f"/{kind}/1").status == 404
            assert found.get(f"/{kind}/2").status == 200


def test_addresses_in_a_table_are_not_fetched_unasked(model, tmp_path):
    from tests.servers import Server

    server = Server(noise(1))
    try:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").write_bytes(noise(1))
        embed(tmp_path / "in", model, tmp_path / "out", **QUIET)
        rewritten(tmp_path / "out", f"{server.base}/a.png")
        for fetch, status in ((False, 404), (True, 200)):
            made = application(tmp_path / "out", model, fetch=fetch)
            with serving(made.app) as found:
                assert found.get("/thumbnails/0").status == status
                (hit,) = found.get("/api/rows", details=1).json["hits"]
                assert hit["link"] == f"{server.base}/a.png"
        assert len(server.requests) == 1
    finally:
        server.close()


def rewritten(out: Path, path: str) -> None:
    """Has the only row of a job say another path."""
    import pyarrow as pa

    from clip_jax.embed.chunks import divide
    from clip_jax.embed.parts import Part
    from clip_jax.embed.results import finished_job, parts_of

    parts = parts_of(str(out), finished_job(str(out)))
    (chunk,) = divide(0, 1, 8192)
    there = parts.read(chunk.name, 0)
    assert there is not None
    columns = there.part.columns.set_column(1, "path", pa.array([path]))
    parts.write(chunk, 1, Part(columns, there.part.embeddings, there.part.pictures), [])


def test_a_damaged_part_is_left_out_and_the_rows_keep_their_numbers(collection, tmp_path):
    import numpy as np

    out = Path(shutil.copytree(collection / "out", tmp_path / "out"))
    made = application(out)
    with serving(made.app) as found:
        before = found.get("/api/rows", k=COUNT, details=1).json["hits"]
        part = out / "part-000000-000002.parquet"
        data = bytearray(part.read_bytes())
        from clip_jax.embed.footer import read_footer

        at = read_footer(bytes(data)).at["embedding"][0]
        data[at : at + 4] = np.float32(np.nan).tobytes()
        part.write_bytes(bytes(data))
        hits = found.get("/api/search", q="after", k=COUNT, details=1).json["hits"]
        assert {hit["row"] for hit in hits} == set(range(COUNT)) - set(range(14, 21))
        assert all(hit["key"] == before[hit["row"]]["key"] for hit in hits)
        assert found.get("/api/about").json["left_out"] == 7
        assert len(found.get("/api/rows", k=COUNT).json) == COUNT - 7


def test_pictures_are_read_with_the_options_of_the_job(model, collection, tmp_path):
    wide = Image.new("RGBA", (90, 30), (0, 0, 0, 0))
    wide.paste((200, 30, 90, 255), (0, 0, 30, 30))
    from clip_jax.picture_options import PictureOptions

    options = {"pictures": PictureOptions("pad", "white"), **QUIET}
    embed(collection / "in.parquet", collection / "model", tmp_path / "out", **options)
    made = application(tmp_path / "out")
    with serving(made.app) as found:
        hits = found.ask("POST", "/api/search?k=5", encoded(wide, "PNG")).json
    expected = search(tmp_path / "out", None, wide, 5)
    assert [h["key"] for h in hits] == [h["key"] for h in expected]
    assert hits[0]["score"] == pytest.approx(expected[0]["score"], abs=2e-6)
