"""Embedding jobs that go on: with the same input, told by its content, or not at all."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax import storage as storage_module
from clip_jax.embed import Columns, embed
from clip_jax.embed.parts import Parts
from clip_jax.embed.results import finished_job
from clip_jax.file_stat import Stat, of_store
from clip_jax.sources import lines, open_input
from clip_jax.sources.files import ListedFile
from tests.archives import parquet
from tests.embedding_jobs import (
    KINDS,
    QUIET,
    TWO_A_PART,
    contents,
    lasting,
    lose,
    rows,
    some,
    write_input,
)
from tests.pictures import bmp

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")
import pyarrow as pa  # noqa: E402


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_packed_again_in_another_order_is_refused_and_nothing_is_changed(
    model, tmp_path, kind
):
    source, out = write_input(tmp_path / f"a.{kind}", some(8)), tmp_path / "out"
    size = source.stat().st_size
    embed(source, model, out, **TWO_A_PART)
    lose(out, 2, 3)
    before = contents(out)
    write_input(source, some(8)[::-1])
    assert source.stat().st_size == size
    message = ""
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            embed(source, model, out, **TWO_A_PART)
        message = str(caught.value)
        assert "\n" not in message
        assert "holds embeddings of other rows: rows 0 to 1 of a." in message
        assert "row 0 is '07' and was '00'; 1 more parts likewise. Give another folder" in message
        assert "Give another folder for the output; or remove" in message
        assert contents(out) == before
    # What the message advises: the parts that it names are gone, and all is embedded.
    for number in (0, 1):
        path = out / f"part-000000-{number:06d}.parquet"
        assert str(path) in message
        path.unlink()
    embed(source, model, out, **TWO_A_PART)
    embed(source, model, tmp_path / "anew", **TWO_A_PART)
    assert lasting(out) == lasting(tmp_path / "anew")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_rows_of_a_file_of_the_same_size_are_never_mixed(model, tmp_path_factory, kind, data):
    count = 6
    folder = tmp_path_factory.mktemp("mixed")
    source, out = write_input(folder / f"a.{kind}", some(count)), folder / "out"
    embed(source, model, out, **TWO_A_PART)
    lose(out, *data.draw(st.sets(st.integers(0, 2), min_size=1, max_size=3)))
    keys = pictures = list(range(count))
    match data.draw(st.sampled_from(["rows move", "pictures move", "others", "nothing"])):
        case "rows move":
            keys = pictures = data.draw(st.permutations(keys))
        case "pictures move":
            pictures = data.draw(st.permutations(pictures))
        case "others":
            others = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(6, 99)))
            pictures = [others.get(i, i) for i in pictures]
    there = source.stat()
    write_input(source, [(f"{key:02d}", bmp(i)) for key, i in zip(keys, pictures, strict=True)])
    if data.draw(st.booleans()):  # as `cp -p` and `rsync -t` leave it
        os.utime(source, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert source.stat().st_size == there.st_size
    before = contents(out)
    try:
        embed(source, model, out, **TWO_A_PART)
    except ValueError as error:
        assert "holds embeddings of other" in str(error)
        now = contents(out)
        assert now.keys() == before.keys()
        for name in before:
            # Of a part that was found to be the input's before another was not, that is noted.
            noted = name.startswith("stamps/") and f"part-{Path(name).stem}." not in str(error)
            assert noted or now[name] == before[name]
    else:
        embed(source, model, folder / "anew", **TWO_A_PART)
        assert lasting(out) == lasting(folder / "anew")


@pytest.mark.parametrize("how", ["moved", "written", "written with the same time"])
def test_pictures_of_one_size_that_change_places_in_a_folder_are_refused(model, tmp_path, how):
    source, out = write_input(tmp_path / "in", some(6)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    before = contents(out)
    a, b = source / "02.bmp", source / "05.bmp"
    there = a.stat()
    if how == "moved":
        a.rename(source / "c.bmp")
        b.rename(a)
        (source / "c.bmp").rename(b)
    else:
        a.write_bytes(bmp(5))
        b.write_bytes(bmp(2))
    if how == "written with the same time":
        for path in (a, b):
            os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    with pytest.raises(
        ValueError,
        match="of other pictures: rows 2 to 3 of the input, where that "
        "of '02.bmp' is another than before; 1 more parts likewise",
    ):
        embed(source, model, out, **TWO_A_PART)
    assert contents(out) == before


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_texts_that_change_places_are_refused(model, tmp_path, suffix, monkeypatch):
    source, out = tmp_path / f"t.{suffix}", tmp_path / "out"
    # They change it after the beginning, by which tables of one size are other jobs.
    monkeypatch.setattr(lines, "BEGINNING", 64)
    filler = [f"a text, the {i}th" for i in range(6)]

    def write_texts(texts):
        table = texts
        match suffix:
            case "csv":
                table = ["caption", *(f'"{text}"' for text in texts)]
            case "jsonl":
                table = [json.dumps({"caption": text}) for text in texts]
        source.write_text("\n".join(table) + "\n")

    write_texts([*filler, "a dog", "a cat"])
    options = {**QUIET, "rows_per_part": 4}
    embed(source, model, out, **options)
    lose(out, 0)
    write_texts([*filler, "a cat", "a dog"])
    with pytest.raises(ValueError, match="of other rows: .* has another 'caption' than before"):
        embed(source, model, out, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["touched", "copied"])
def test_an_input_that_was_touched_or_copied_is_compared_once_and_goes_on(
    model, tmp_path, kind, how, counted
):
    source, out = write_input(tmp_path / f"a.{kind}", some(6)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    undisturbed = lasting(out)
    if how == "touched":
        for path in [source, *(source.iterdir() if source.is_dir() else ())]:
            os.utime(path)
    else:
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        (tmp_path / "there").mkdir()
        source = Path(copy(source, tmp_path / "there" / source.name))
    lose(out, 1)
    counted.update(compared=0, added=0)
    assert embed(source, model, out, dry_run=True, **TWO_A_PART).parts_to_do == 1
    assert counted == {"compared": 4, "added": 0}
    assert embed(source, model, out, **TWO_A_PART).parts == 1
    assert counted == {"compared": 8, "added": 2}
    if how == "touched":  # else paths differ
        assert lasting(out) == undisturbed
    assert embed(source, model, out, **TWO_A_PART).parts == 0
    assert counted == {"compared": 8, "added": 2}


@pytest.mark.parametrize("damage", ["gone", "empty", "other"])
def test_without_its_stamp_a_part_is_compared(model, tmp_path, damage, counted):
    source, out = write_input(tmp_path / "a.tar", some(4)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    before, stamp = contents(out), out / "stamps" / "000000-000001.json"
    match damage:
        case "gone":
            stamp.unlink()
        case "empty":
            stamp.write_bytes(b"")
        case "other":  # of another part of that name, which another process has written
            stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"part": 1}))
    assert embed(source, model, out, **TWO_A_PART).parts == 0
    assert counted["compared"] == 2
    assert contents(out) == before


@pytest.mark.parametrize("kind", ["tar", "parquet", "csv"])
def test_keys_are_compared_where_times_tell_nothing(model, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(Stat, "stamp", "the same")  # as on file systems whose times lie
    source, out = tmp_path / f"a.{kind}", tmp_path / "out"

    def write_rows(order):
        if kind == "csv":
            source.write_text("\n".join(["caption,key", *(f"x,{i}" for i in order)]))
        else:
            write_input(source, [(f"{i}", bmp(i)) for i in order])

    write_rows([0, 1, 2, 3])
    options = {**TWO_A_PART, "what": "texts"} if kind == "csv" else TWO_A_PART
    monkeypatch.setattr(lines, "BEGINNING", 11)
    embed(source, model, out, **options)
    last = max(path.stem for path in out.glob("part-*"))
    (out / f"{last}.parquet").unlink()
    write_rows([3, 1, 2, 0])
    before = contents(out)
    with pytest.raises(ValueError, match="of other rows: .*, where row . is '3' and was '0'"):
        embed(source, model, out, **options)
    assert contents(out) == before


def test_the_same_input_on_other_disks_is_the_same_job_to_the_bit(model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_input(tmp_path / name / "in.tar", some(4))
        os.utime(tmp_path / name / "in.tar", ns=(1, hash(name) % 1000))
    options = {**TWO_A_PART, "what": "images"}
    for i, name in enumerate("ab"):
        embed(tmp_path / name / "in.tar", model, tmp_path / "out", shard=(i, 2), **options)
    for name in "ab":
        embed(tmp_path / name / "in.tar", model, tmp_path / f"out-{name}", **options)
    job = finished_job(str(tmp_path / "out"))["fingerprint"]
    assert {finished_job(str(tmp_path / f"out-{name}"))["fingerprint"] for name in "ab"} == {job}
    assert rows(tmp_path / "out")["key"] == ["00", "01", "02", "03"]


def test_a_file_that_changes_while_the_job_runs_is_noticed_at_its_end(model, tmp_path, monkeypatch):
    written = Parts.write

    def change(kind):
        def after_the_first(self, chunk, *args, **options):
            written(self, chunk, *args, **options)
            if chunk.number == 0:
                if kind == "touched":
                    os.utime(source)
                else:
                    other = some(6)
                    other[0] = ("00", bmp(77))
                    write_input(source, other)

        monkeypatch.setattr(Parts, "write", after_the_first)

    source = write_input(tmp_path / "a.tar", some(6))
    change("touched")
    assert embed(source, model, tmp_path / "touched", **TWO_A_PART).rows == 6
    change("changed")
    with pytest.raises(
        ValueError,
        match="of other pictures: rows 0 to 1 of a.tar, where that of '00' is another",
    ):
        embed(source, model, tmp_path / "changed", **TWO_A_PART)


def test_a_store_tells_versions_by_what_it_has():
    assert of_store({"size": 3, "ETag": '"abc"', "LastModified": "x"}).stamp == "3 abc 0"
    assert of_store({"size": 3, "etag": "abc"}).stamp == "3 abc 0"
    assert of_store({"size": 3, "generation": "17", "updated": "x"}).stamp == "3 17 0"
    assert of_store({"size": 3, "mtime": 17.5}).stamp == "3 17.5 0"
    assert of_store({"size": 3}).stamp is None


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_store_another_version_of_the_same_content_goes_on(model, kind, tmp_path, counted):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    local = write_input(tmp_path / f"a.{kind}", some(4))
    there = f"/versions/{kind}/a.{kind}"

    def put():
        for path in local.iterdir() if local.is_dir() else [local]:
            target = f"{there}/{path.name}" if local.is_dir() else there
            memory.pipe_file(target, path.read_bytes())

    put()
    embed(f"memory:/{there}", model, tmp_path / "out", **TWO_A_PART)
    assert embed(f"memory:/{there}", model, tmp_path / "out", **TWO_A_PART).parts == 0
    assert counted["compared"] == 0
    put()
    assert embed(f"memory:/{there}", model, tmp_path / "out", **TWO_A_PART).parts == 0
    assert counted["compared"] == 4
    write_input(local, [("00", bmp(0)), ("01", bmp(9)), ("02", bmp(2)), ("03", bmp(3))])
    put()
    with pytest.raises(ValueError, match="of other pictures: .*'01"):
        embed(f"memory:/{there}", model, tmp_path / "out", **TWO_A_PART)


@pytest.mark.filterwarnings("ignore")  # the server's and its client's own
def test_on_s3_an_etag_tells_versions_as_it_is_listed_and_as_it_is_asked_for(
    bucket, model, tmp_path, counted
):
    local = write_input(tmp_path / "a.tar", some(4))
    there = f"{bucket}/identity/a.tar"
    storage_module.storage(there).write(there, local.read_bytes())
    (shard,) = open_input(f"{bucket}/identity/*.tar").shards
    assert shard.stamp([0]) is not None and not shard.has_changed()
    embed(f"{bucket}/identity/*.tar", model, tmp_path / "out", **TWO_A_PART)
    storage_module.storage(there).write(there, local.read_bytes())
    assert embed(f"{bucket}/identity/*.tar", model, tmp_path / "out", **TWO_A_PART).parts == 0
    assert counted["compared"] == 0
    write_input(local, some(4)[::-1])
    storage_module.storage(there).write(there, local.read_bytes())
    assert shard.has_changed()
    with pytest.raises(ValueError, match="of other rows"):
        embed(f"{bucket}/identity/*.tar", model, tmp_path / "out", **TWO_A_PART)


def test_columns_of_any_type_are_compared_as_they_are_written(model, tmp_path, counted):
    columns = {
        "key": [b"a\xe9", b"b"],
        "caption": ["x", "y"],
        "f": pa.array([float("nan"), None]),
        "t": pa.array([1, None], pa.timestamp("ns")),
        "l": pa.array([[1, None], []], pa.list_(pa.duration("ns"))),
        "s": [{"a": 1.5, "b": float("nan")}, None],
        "b": [b"\xff", b""],
        "d": pa.array(["u", "v"]).dictionary_encode(),
    }
    source, out = parquet(tmp_path / "a.parquet", columns), tmp_path / "out"
    options = {**TWO_A_PART, "columns": Columns(others=("f", "t", "l", "s", "b", "d"))}
    embed(source, model, out, **options)
    os.utime(source)
    assert embed(source, model, out, **options).parts == 0
    assert counted["compared"] == 2
    size = source.stat().st_size
    parquet(source, columns | {"t": pa.array([2, None], pa.timestamp("ns"))})
    if source.stat().st_size == size:
        with pytest.raises(ValueError, match=r"of other rows: .* has another 't' than before"):
            embed(source, model, out, **options)


def test_a_table_whose_columns_have_other_names_is_refused(model, tmp_path):
    columns = {"key": ["a", "b"], "image": [bmp(0), bmp(1)], "caption": ["x", "y"]}
    source = parquet(tmp_path / "a.parquet", columns)
    size = source.stat().st_size
    embed(source, model, tmp_path / "out", **TWO_A_PART)
    columns["captain"] = columns.pop("caption")
    assert parquet(source, columns).stat().st_size == size
    with pytest.raises(
        ValueError, match="where the columns are key, path and were key, path, caption"
    ):
        embed(source, model, tmp_path / "out", **TWO_A_PART)


def test_a_file_written_in_place_shows_though_its_size_and_time_are_put_back(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"before")
    listed, times = ListedFile(str(path)), path.stat()
    assert not listed.has_changed()
    path.write_bytes(b"behind")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert listed.has_changed()
