"""A folder that can't be written is named, and what was written of it is gone."""

import errno
import os

import pytest

import clip_jax
from clip_jax import export
from clip_jax.convert import to_huggingface
from clip_jax.convert.safetensors import write_safetensors
from clip_jax.nn import parameters
from clip_jax.replace import replacing

WRITERS = {
    "clip_jax.weights.native_format": clip_jax.save,
    "clip_jax.convert.folder_writer": lambda model, folder: to_huggingface(
        model.config, parameters(model), folder
    ),
    "clip_jax.export.exporting": lambda model, folder: export.export(
        model, folder, platforms=["cpu"]
    ),
}


@pytest.mark.parametrize("module", WRITERS)
def test_a_full_disk_names_the_folder_that_was_to_be_written(model, tmp_path, monkeypatch, module):
    def full(path, *arguments):
        write_safetensors(path, *arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a file's own write raises it

    monkeypatch.setattr(f"{module}.write_safetensors", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        WRITERS[module](model, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_temporary_folder_is_not_what_an_error_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with replacing(tmp_path / "out") as new:
            (new / "none" / "file").write_bytes(b"")
    assert caught.value.filename == str(tmp_path / "out")


def test_another_file_is_named_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with replacing(tmp_path / "out"):
            (tmp_path / "none" / "file").read_bytes()
    assert caught.value.filename == str(tmp_path / "none" / "file")
