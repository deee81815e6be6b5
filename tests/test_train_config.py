"""The configuration of a training run: TOML, settings, and what is wrong with them."""

import re

import jax
import pytest

from clip_jax.cli import main
from clip_jax.train import read_config
from clip_jax.train.checkpoints import Checkpoints
from clip_jax.train.identity import Identity
from tests.models import SMALL_VIT

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.usefixtures("compiles_quickly")


def test_a_toml_file_is_read_and_overridden(toml):
    config = read_config(
        toml,
        [
            "optimizer.learning_rate=2e-4",
            "run.seed=7",
            "out=elsewhere",
            'optimizer.learning_rates={"^visual/" = 0.1}',
            "step.dtype=bfloat16",
        ],
    )
    assert config.model == SMALL_VIT
    assert config.optimizer.learning_rate == 2e-4
    assert config.optimizer.learning_rates == {"^visual/": 0.1}
    assert (config.run.seed, config.out, config.step.dtype) == (7, "elsewhere", "bfloat16")
    assert config.augment.scale == (0.8, 1.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.batchsize=3", r"\[run\] RunConfig does not fit: \+ batchsize: unknown"),
        ("run.batch_size=0", r"\[run\] batch_size must be at least 1"),
        ("run.whole_steps=-1", r"\[run\] whole_steps must be 0 or more"),
        ("optimizer.b1=2", r"\[optimizer\] b1 must be"),
        ("more.x=1", r"\+ more: unknown"),
        ("model.from=ViT-B/32", "nothing else"),
        ("model.embed_dim=0", "embed_dim must be positive"),
        ("run", "expected key=value"),
        ("out.x=1", "out is no table"),
        ("run.seed=-1", r"\[run\] seed must be from 0 to .* Got -1"),
        (f"run.seed={1 << 63}", r"\[run\] seed must be from 0 to "),
        ("run.seed=1\nrun.x=2", "run.seed: the value must be in one line"),
        ("model={vision={type='vit'}, text=1}", r"\[model\] "),
        ("model={embed_dim=2024-01-01, vision={type='vit'}, text={}}", r"\[model\] "),
    ],
)
def test_configurations_that_do_not_fit_are_refused(toml, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(toml, [change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=5", "model must be a string or a table. Got 5."),
        ("out=5", "out must be a string. Got 5."),
        ("data.train=5", "[data] train must be a string. Got 5."),
        ("data.templates=5", "[data] templates must be a list (a string, ...). Got 5."),
        ("data.templates=[5]", "[data] templates must be a list (a string, ...). Got [5]."),
        ('data.spread="no"', "[data] spread must be true or false. Got 'no'."),
        ("data.max_skipped=x", "[data] max_skipped must be a number. Got 'x'."),
        ("data.max_skipped=true", "[data] max_skipped must be a number. Got True."),
        ("augment.flip=1", "[augment] flip must be true or false. Got 1."),
        ("augment.scale=[1]", "[augment] scale must be a list (a number, a number). Got [1]."),
        ("run.batch_size=true", "[run] batch_size must be a whole number. Got True."),
        ("run.batch_size=abc", "[run] batch_size must be a whole number. Got 'abc'."),
        ("run.seed=1.5", "[run] seed must be a whole number. Got 1.5."),
        ("step.loss=x", "[step] loss must be 'softmax' or 'sigmoid'. Got 'x'."),
        (
            "optimizer.learning_rates={a = 'b'}",
            "[optimizer] learning_rates must be a table (a string = a number). Got {'a': 'b'}.",
        ),
        (
            "optimizer.freeze_text=true",
            "[optimizer] freeze_text must be a string or a whole number. Got True.",
        ),
        # TOML has no None to give instead.
        ("optimizer.max_gradient_norm=x", "[optimizer] max_gradient_norm must be a number. Got"),
    ],
)
def test_values_of_another_type_are_refused_by_table_and_field(toml, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_config(toml, [change])


def test_a_model_named_by_something_else_than_a_string_is_refused(toml):
    with pytest.raises(ValueError, match=r"^\[model\] from must be a string. Got 5.$"):
        read_config(toml, ["model={from = 5}"])


def test_values_of_a_fitting_type_are_taken(toml):
    changes = ["data.max_skipped=1", "augment.scale=[1, 1.5]", "optimizer.freeze_image=2"]
    config = read_config(toml, [*changes, "optimizer.learning_rates={x = 0}", "data.spread=true"])
    assert (config.data.max_skipped, config.data.spread) == (1, True)
    assert (config.augment.scale, config.data.templates[0]) == ((1, 1.5), "{}")
    assert (config.optimizer.freeze_image, config.optimizer.learning_rates) == (2, {"x": 0})


@pytest.mark.parametrize(
    ("content", "what"), [(b"= 3", "TOML"), (b'out = "caf\xe9"', "UTF-8, as TOML must be")]
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, content, what):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ValueError, match=f"x.toml is not {what}"):
        read_config(tmp_path / "x.toml")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"], ids=["cut", "list", "bytes"])
def test_a_run_whose_identity_can_not_be_read_is_refused_by_the_name_of_its_file(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged.* give another"):
        Checkpoints(tmp_path, Identity(), keep=1)


@pytest.mark.parametrize("setting", ["run.batch_size", "=3", "run.seed=1\nrun.x=2"])
def test_settings_that_are_none_are_bad_arguments(toml, capsys, setting):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(toml), "--set", setting])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "--set: expected KEY=VALUE" in line and "--help" in line


def test_training_together_where_there_is_nobody_else_says_so(toml, capsys, monkeypatch):
    def alone(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", alone)
    assert main(["train", str(toml), "--distributed"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--distributed finds no pod or cluster here" in line
