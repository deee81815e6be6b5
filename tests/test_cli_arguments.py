"""Types of arguments that several commands share: what they take, and what they say else."""

import argparse

import pytest

from clip_jax.cli import arguments


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (arguments.positive_int, "1", 1),
        (arguments.non_negative_int, "0", 0),
        (arguments.positive_float, "1e-4", 1e-4),
        (arguments.file_name, "page.html", "page.html"),
        (arguments.label, " a dog", " a dog"),
        (arguments.template, "a {x} {}", "a {x} {}"),
        (arguments.shard, "3/4", (3, 4)),
        (arguments.setting, "run.batch_size=64", "run.batch_size=64"),
        (arguments.setting, "out=", "out="),
    ],
)
def test_arguments_become_values(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (arguments.positive_int, "0", "expected a whole number from 1 on. Got '0'"),
        (arguments.positive_int, "1.5", "expected a whole number from 1 on"),
        (arguments.positive_int, "\u00b2", "expected a whole number from 1 on"),
        (arguments.non_negative_int, "-1", "expected a whole number from 0 on. Got '-1'"),
        (arguments.positive_float, "0", "expected a number above 0. Got '0'"),
        (arguments.positive_float, "nan", "expected a number above 0"),
        (arguments.positive_float, "inf", "expected a number above 0"),
        (arguments.positive_float, "much", "expected a number above 0"),
        (arguments.file_name, "", "expected the name of a file"),
        (arguments.label, " ", "must not be empty or blank"),
        (arguments.label, "\udcff", "is not valid UTF-8"),
        (arguments.template, "a photo", "must have {} where the label goes"),
        (arguments.template, "{} \udcff", "is not valid UTF-8"),
        (arguments.shard, "4/4", "expected I/N with I from 0 to N - 1"),
        (arguments.shard, "1", "expected I/N"),
        (arguments.setting, "key", "expected KEY=VALUE in one line"),
        (arguments.setting, "a=1\nb=2", "expected KEY=VALUE in one line"),
    ],
)
def test_what_an_argument_can_not_be_is_refused(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)
