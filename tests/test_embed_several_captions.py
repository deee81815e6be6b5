"""Of several captions a job embeds the first, and says of how many rows there are others."""

import json

import pytest

from clip_jax.embed import Columns, embed
from tests.archives import write_tar
from tests.embedding_jobs import shared_programs
from tests.models import SMALL_VIT, small
from tests.pictures import noise

SEVERAL = [["a dog", "a hound"], ["a cat"], ["a cow", " "], ["a fox", "a vixen", "reddish"]]


@pytest.fixture(autouse=True)
def programs():
    with shared_programs():
        yield


def source(folder, kind):
    folder.mkdir()
    for i in range(len(SEVERAL)):
        (folder / f"{i}.png").write_bytes(noise(i))
    documents = [json.dumps({"captions": texts}) for texts in SEVERAL]
    if kind == "folder":
        for i, document in enumerate(documents):
            (folder / f"{i}.json").write_text(document)
        return folder
    if kind == "tar":
        members = {f"{i}.json": document.encode() for i, document in enumerate(documents)}
        return write_tar(folder / "x.tar", members | {f"{i}.png": noise(i) for i in range(4)})
    rows = [{"image": f"{i}.png", "captions": texts} for i, texts in enumerate(SEVERAL)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "x.jsonl"


@pytest.mark.parametrize("what", ["texts", "both"])
@pytest.mark.parametrize("kind", ["folder", "tar", "jsonl"])
def test_rows_of_whose_captions_some_are_left_out_are_counted_and_named(tmp_path, kind, what):
    path, columns = source(tmp_path / "in", kind), Columns(caption="captions")
    model = small(SMALL_VIT)
    summary = embed(path, model, tmp_path / "out", what=what, columns=columns, progress=False)
    assert summary.rows == len(SEVERAL)
    (said,) = summary.remarks
    assert said.startswith("2 rows have several captions, of which only the first is embedded")
    assert "0" in said and "3" in said and "1" not in said
    summary = embed(path, model, tmp_path / "pictures", columns=columns, progress=False)
    assert "several captions" not in str(summary.remarks)  # none is embedded there


def test_a_column_of_captions_by_another_name_is_shown_where_texts_are_missing(tmp_path):
    path = source(tmp_path / "in", "jsonl")
    with pytest.raises(ValueError, match=r"has no texts; .* columns are 'captions', .*column"):
        embed(path, small(SMALL_VIT), tmp_path / "out", what="texts", progress=False)
