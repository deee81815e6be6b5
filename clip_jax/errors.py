"""The errors that callers are meant to catch."""


class CheckpointError(Exception):
    """Weights that can't be read, are refused, or don't fit a model; lists every problem."""


class DownloadError(Exception):
    """A file that could not be fetched; says its address and where to put it by hand."""
