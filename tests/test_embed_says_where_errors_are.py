"""Rows that can't be embedded are spoken of where the job ends, with the place of the reasons."""

import clip_jax
from clip_jax.cli import main
from tests.embedding_jobs import shared_programs
from tests.models import SMALL_VIT, small
from tests.pictures import noise


def test_the_end_of_a_job_says_where_the_reasons_of_lost_rows_are(tmp_path, capsys):
    clip_jax.save(small(SMALL_VIT), tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(noise(0))
    (tmp_path / "in" / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    command = ["embed", str(tmp_path / "in"), "--out", str(out), "--model", str(tmp_path / "model")]
    with shared_programs():
        for _ in range(2):  # the second finds nothing to do
            assert main(command) == 0
            said = capsys.readouterr().err
            assert f"1 row could not be embedded; errors/ in {out} says why of each" in said
    assert list((out / "errors").iterdir())
