"""Files by their address: a real S3 server on this machine, and what can go wrong."""

import pytest

from clip_jax.embed import embed, read_embeddings
from clip_jax.search import search
from clip_jax.storage import Unreachable, storage
from tests.archives import write_tar
from tests.embedding_jobs import QUIET, contents
from tests.models import SMALL_VIT, small
from tests.pictures import noise

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the server's and its client's own
def test_a_job_from_s3_to_s3_leaves_what_it_leaves_on_a_disk(bucket, tmp_path):
    model, images = small(SMALL_VIT), {f"{i:02d}.png": noise(i) for i in range(12)}
    images["03.png"] = b"broken"
    (tmp_path / "in").mkdir()
    for name, content in images.items():
        (tmp_path / "in" / name).write_bytes(content)
        storage(bucket).write(f"{bucket}/in/{name}", content)
    options = {"rows_per_part": 5, **QUIET}
    embed(tmp_path / "in", model, tmp_path / "out", **options)
    assert embed(f"{bucket}/in", model, f"{bucket}/out", **options).rows == 11
    there, here = read_embeddings(f"{bucket}/out").to_table(), read_embeddings(tmp_path / "out")
    for column in ("key", "embedding"):
        assert there[column].equals(here.to_table()[column])
    assert there["path"].to_pylist()[0] == f"{bucket}/in/00.png"
    names = set(contents(tmp_path / "out"))
    assert {name for name, _ in storage(bucket).walk(f"{bucket}/out")} == names
    assert embed(f"{bucket}/in", model, f"{bucket}/out", **options).parts == 0
    storage(bucket).remove(f"{bucket}/out/part-000000-000001.parquet")
    assert embed(f"{bucket}/in", model, f"{bucket}/out", **options).parts == 1
    hits = search(f"{bucket}/out", model, "x", 3)
    assert [hit["key"] for hit in hits] == [
        hit["key"] for hit in search(tmp_path / "out", model, "x", 3)
    ]

    shard = write_tar(tmp_path / "a.tar", {"x.png": images["00.png"], "x.txt": b"x"})
    storage(bucket).write(f"{bucket}/t/a.tar", shard.read_bytes())
    assert embed(f"{bucket}/t/*.tar", model, f"{bucket}/out2", what="both", **options).rows == 1


def test_a_server_that_is_not_there_is_said(tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="needs the extra test-s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unreachable, match="s3://gone/in can't be reached.*Check the address"):
        embed("s3://gone/in", small(SMALL_VIT), tmp_path / "out", **QUIET)
    s3fs.S3FileSystem.clear_instance_cache()
