"""Errors of the Python interface in the words of the command line.

Functions name their arguments, `label_column=` or `truncate=True`; who typed a command has options.
"""

import argparse
import re

# What commands without such an option say instead.
_NOT_HERE = {
    "truncate": (r"; its tokenizer, called with truncate=True, cuts it", ": make it shorter"),
    "caption-column": (r", caption_column, key_column, in a TOML file in \[data\]", ""),
    "label-column": (r"label_column or (?=extra_columns)", ""),
    "columns": (r"(?<=label_column) or extra_columns", ""),
    "subfolder": (r"(?:give|pass) subfolder=", "in Python, clip_jax.load has subfolder="),
}
# The names of arguments whose options are called otherwise.
_RENAMED = {"num_threads": "threads", "class_names": "classes", "extra_columns": "columns"}


def in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """Returns a message with a command's options in place of the arguments of Python's functions.

    Example:
        "max_errors=3" becomes "--max-errors 3", where the command has that option.

    Args:
        message: the message.
        parser: the parser of the command.
    """
    options = parser._option_string_actions  # argparse has no other list of them
    for argument, (pattern, words) in _NOT_HERE.items():
        if f"--{argument}" not in options:
            message = re.sub(pattern, words, message)
    for option in options:
        if not option.startswith("--"):
            continue
        name = option[2:].replace("-", "_")
        for spelling in (name, *(old for old, new in _RENAMED.items() if new == name)):
            # Not a part of a path, nor of another option, nor a field of a configuration.
            begin, end = rf"(?<![\w/.=\\'\"-])(?<!config: ){spelling}", r"(?![\w/\\-]|\.\w)"
            value = r"(?:\"([^\"=]*)\"|'([^'=]*)'|(?!True|False|None)([\w.+-]*\w))"
            message = re.sub(rf"{begin}={value}{end}", rf"{option} \1\2\3", message)
            message = re.sub(rf"{begin}=(?:True\b|(?=[\s,;.)]|$))", option, message)
            if "_" in spelling:  # else it may be a word
                message = re.sub(begin + rf"(?!=){end}", option, message)
    # Where both were named, for either interface, one is left.
    message = re.sub(r"\((--[\w-]+), \1\)", r"(\1)", message)
    return re.sub(r"( in a file \((--[\w-]+)\)) or a list \(\2\)", r"\1", message)
