"""Repositories of the Hugging Face Hub: which files of one a model needs, and where they are.

What is in the user's cache is taken from there, with nothing installed and without the network.
Downloads are left to `huggingface_hub` (extra `hub`), with its cache, its tokens and its switches.
"""

import os
import posixpath
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, NoReturn

from clip_jax.convert.folder import WEIGHTS, Family, lacking, weights_among
from clip_jax.convert.sharded import is_index, read_index
from clip_jax.errors import CheckpointError, DownloadError, is_exhausted
from clip_jax.messages import some
from clip_jax.weights.places import expanded

What = Literal["model", "weights", "tokenizer"]

MAIN = "main"
_INSTALL = "pip install 'clip-jax-flax[hub]'"
_CONFIGS: dict[Family, str] = {"open_clip": "open_clip_config.json", "huggingface": "config.json"}
_PIPELINE = "model_index.json"  # of diffusers
_PIXELS = ("preprocessor_config.json", "processor_config.json")
_WORDS = (
    *("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    "added_tokens.json",
)
_WORDS_IN_ONE = "tokenizer.json"  # has what `vocab.json` and `merges.txt` have, in four times
_COMMIT = re.compile("[0-9a-f]{40}")
_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


def is_repository_name(name: str) -> bool:
    """Whether a text has the form of a repository's name, `owner/name`."""
    return bool(_NAME.fullmatch(name)) and "--" not in name and ".." not in name


def hub_cache(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder in which the Hub's libraries keep their files.

    It is `cache_dir` if given, else `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else
    `~/.cache/huggingface/hub`.

    Raises:
        DownloadError: none of these is given, and the user has no home folder.
    """
    environment = os.environ.get
    home = environment("HF_HOME") or f"{environment('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    given = cache_dir or environment("HF_HUB_CACHE") or f"{home}/hub"
    folder = expanded(given)
    if folder is None:
        raise DownloadError(
            f"there is no place to keep repositories: {given} needs a home folder. Say which "
            "folder to take with the environment variable HF_HUB_CACHE"
        )
    return folder


def repository_folder(
    name: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    what: What = "model",
    offline: bool = False,
) -> Path:
    """Returns the folder of a repository, with the files that a model needs, and no others.

    The Hub is asked whether there are newer files, unless `HF_HUB_OFFLINE=1`, or `revision` is a
    commit of which all files are in the cache. If it doesn't answer, or `huggingface_hub` isn't
    installed, the files in the cache are taken.

    Args:
        name: the repository, `owner/name`.
        revision: a branch, tag or commit; "main" by default.
        subfolder: the folder in it, such as `text_encoder` of a diffusion pipeline.
        cache_dir: the folder of the Hub's cache, as for `hub_cache`.
        what: "model" for its configuration, weights, pixels and words; "weights" where the
            configuration is known; "tokenizer" for words alone.
        offline: whether to ask nobody, as `HF_HUB_OFFLINE=1` says for all.

    Raises:
        ValueError: the name, the revision or the subfolder has a wrong form.
        DownloadError: there is no such repository or revision, it holds no model, or it can't be
            downloaded and isn't in the cache; says what to do instead.
    """
    request = _Request(name, revision or MAIN, subfolder or "", hub_cache(cache_dir), what)
    cached = request.cached()
    if offline or is_offline() or (cached and _COMMIT.fullmatch(request.revision)):
        forbids = "local_files_only" if offline else "HF_HUB_OFFLINE"
        return cached or request.refuse_uncached(f"{forbids} forbids the network")
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        return cached or request.refuse_uncached(f"to download it, {_INSTALL}")
    # The address is read here, and not when the library was imported.
    hub = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        return _downloaded(request, hub)
    except CheckpointError as error:  # of an index
        raise DownloadError(str(error)) from None
    except DownloadError:
        raise
    except Exception as error:  # of the library, and of any client below it
        if is_exhausted(error):
            raise
        return cached or request.refuse(_reason(error, request) + request.lack())


def is_offline() -> bool:
    """Whether the user forbids the network to the Hub's libraries, by `HF_HUB_OFFLINE=1`."""
    given = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return given.upper() in ("1", "ON", "YES", "TRUE")


def is_cached(name: str, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether the Hub's cache holds a model of that name; checks names, not contents."""
    try:
        return _Request(name, MAIN, "", hub_cache(cache_dir), "model").cached() is not None
    except (ValueError, DownloadError):
        return False


def remedy(name: str) -> str:
    """Says what to do about a repository in the cache that can't be read."""
    # Its files are links, and what they point to would be linked again.
    place = _Request(name, MAIN, "", hub_cache(), "model").place
    return f"it is in the Hub's cache: if it was cut or damaged, remove {place} and load it again"


class _Request:
    """What is wanted of a repository."""

    def __init__(self, name: str, revision: str, subfolder: str, cache: Path, what: What):
        if not is_repository_name(name):
            raise ValueError(
                f"{name!r} is no name of a repository, expected owner/name as in its address on "
                f"the Hub, such as openai/clip-vit-large-patch14"
            )
        for argument, value in (("revision", revision), ("subfolder", subfolder)):
            parts = value.split("/") if value else []
            if not value.isprintable() or {"", ".", ".."} & set(parts) or "\\" in value:
                raise ValueError(f"{argument} must be a relative path without '..'. Got {value!r}.")
        self.name, self.revision, self.subfolder, self.what = name, revision, subfolder, what
        self.place = cache / f"models--{name.replace('/', '--')}"

    def snapshot(self) -> Path | None:
        """Returns where the cache has the revision's files, if it knows the revision."""
        commit = self.revision
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (self.place / "refs" / self.revision).read_text()[:64].strip()
            except (OSError, ValueError):
                return None
        return self.place / "snapshots" / commit if _COMMIT.fullmatch(commit) else None

    def cached(self) -> Path | None:
        """Returns the folder in the cache, if it has all that is needed."""
        snapshot = self.snapshot()
        return None if snapshot is None else self.complete(snapshot.name)

    def complete(self, commit: str) -> Path | None:
        """Returns the folder of a commit in the cache, if it has all that is needed."""
        folder = self.place / "snapshots" / commit / self.subfolder
        try:
            # A link whose file is gone, or not here yet, doesn't exist.
            names = [entry.name for entry in os.scandir(folder) if os.path.exists(entry.path)]
        except OSError:
            return None
        for family in self.families(names):
            weights = weights_among(names, family)
            if self.what == "tokenizer" or (weights and _is_whole(folder / weights, names)):
                return folder
        return None

    def families(self, names: Collection[str]) -> list[Family]:
        """Returns the libraries whose configuration is there, in the order of precedence."""
        if self.what == "weights":
            return ["open_clip"]
        found: list[Family] = [family for family in _CONFIGS if _CONFIGS[family] in names]
        if self.what == "tokenizer" and not found and any(word in names for word in _TOKENIZERS):
            return ["huggingface"]
        return found

    def needed(self, names: Collection[str]) -> list[str]:
        """Returns the files to fetch of a folder, weights or their index last.

        Raises:
            DownloadError: the folder holds no model.
        """
        families = self.families(names)
        if not families:
            raise DownloadError(f"{self}: {self.missing(names)}")
        optional = [*_PIXELS, *_WORDS, *([] if "vocab.json" in names else [_WORDS_IN_ONE])]
        if self.what == "tokenizer":
            return [name for name in (*_CONFIGS.values(), *optional) if name in names]
        for family in families:
            if weights := weights_among(names, family):
                wanted = [_CONFIGS[family], *(optional if family == "huggingface" else ())]
                return [*(name for name in wanted if name in names), weights]
        raise DownloadError(
            f"{self}: {lacking(names, families[0])}, or take another revision or repository"
        )

    def missing(self, names: Collection[str]) -> str:
        """Says what a folder without a model holds, and which folder to take instead."""
        expected = f"expected {' or '.join(_CONFIGS.values())}"
        if self.what == "tokenizer":
            expected = f"expected one of {', '.join(_TOKENIZERS)}"
        if _PIPELINE in names:
            return (
                f"is a pipeline of several models, {expected}: say which with subfolder=, such as "
                f"{'tokenizer' if self.what == 'tokenizer' else 'text_encoder'}"
            )
        has = some(sorted(names)) or "no files"
        return f"holds no CLIP model, {expected}; it has {has}: check the name, or take another"

    def refuse_uncached(self, reason: str) -> NoReturn:
        """Raises the error of a repository that isn't here, or not all of it."""
        snapshots = self.place / "snapshots"
        where = "is in the cache only in part" if snapshots.is_dir() else "isn't in the cache"
        self.refuse(f"{where}: {reason}{self.lack()}")

    def lack(self) -> str:
        """Says which folder or files a part of the repository in the cache lacks; "" if none is."""
        snapshot = self.snapshot()
        if snapshot is None or not snapshot.is_dir():
            return ""
        folder = snapshot / self.subfolder
        if not folder.is_dir():
            others = sorted(entry.name for entry in os.scandir(snapshot) if entry.is_dir())
            there = f"of its folders {some(others)}" if others else "nor any other: leave it out"
            return f"; the cache has no folder {self.subfolder} of it, {there}"
        names = {entry.name for entry in os.scandir(folder) if os.path.exists(entry.path)}
        there = f"of its files {some(sorted(names)) or 'none'}"
        for family in self.families(names):
            weights = weights_among(names, family)
            if weights and not _is_whole(folder / weights, names):
                shards = sorted(set(read_index(folder / weights).values()) - names)
                return f"; the cache has no {some(shards)}, {there}"
            if not weights:
                return f"; the cache has no weights of it, {there}"
        return f"; the cache has no configuration of it, {there}"

    def refuse(self, reason: str) -> NoReturn:
        """Raises the error of a repository that can't be had; says how to get it by hand."""
        inside = f"/{self.subfolder}" if self.subfolder else ""
        address = f"{_endpoint()}/{self.name}/tree/{self.revision}{inside}"
        raise DownloadError(
            f"{self} {reason}. By hand: fetch the configuration and the weights that {address} "
            f"has, save them in one folder and give its path. The cache is {self.place.parent}"
        )

    def __str__(self) -> str:
        inside = f"/{self.subfolder}" if self.subfolder else ""
        return f"{self.name}{inside}{'' if self.revision == MAIN else f' at {self.revision}'}"


_TOKENIZERS = ("vocab.json", _WORDS_IN_ONE, "tokenizer_config.json")


def _downloaded(request: _Request, hub: Any) -> Path:
    info = hub.repo_info(request.name, revision=request.revision)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    inside = f"{request.subfolder}/" if request.subfolder else ""
    here = [f.removeprefix(inside) for f in files if f.startswith(inside)]
    names = [name for name in here if "/" not in name]
    if not names and inside:
        folders = sorted({posixpath.dirname(file) for file in files} - {""})
        there = f"expected one of {some(folders)}" if folders else "nor any other: leave it out"
        raise DownloadError(f"{request.name}: has no folder {request.subfolder}, {there}")
    # In whatever form the weights are in the cache, they needn't be downloaded in another; but a
    # float16 variant, which another library has left there, is not what was published first.
    found = None if request.what == "tokenizer" else request.complete(info.sha)
    if found and any(map(_is_weights, os.listdir(found))):
        names = [name for name in names if not _is_weights(name) or (found / name).exists()]
    wanted = request.needed(names)

    def fetch(name: str, revision: str) -> Path:
        return Path(hub.hf_hub_download(
            request.name, inside + name, revision=revision, cache_dir=request.place.parent
        ))  # fmt: skip

    # The first notes the revision's commit in the cache; the others are of the same commit.
    first = fetch(wanted[0], request.revision)
    commit = first.relative_to(request.place / "snapshots").parts[0]
    for name in wanted[1:]:
        fetch(name, commit)
    if is_index(wanted[-1]):
        for shard in dict.fromkeys(read_index(first.parent / wanted[-1]).values()):
            fetch(shard, commit)
    return first.parent


def _is_weights(name: str) -> bool:
    return any(name in names for names in WEIGHTS.values())


def _is_whole(weights: Path, names: Collection[str]) -> bool:
    if not is_index(weights.name):
        return True
    try:
        return set(read_index(weights).values()) <= set(names)
    except (CheckpointError, OSError):
        return True  # the reader says what is wrong with it


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _reason(error: Exception, request: _Request) -> str:
    from huggingface_hub import errors

    kinds: list[tuple[type[Exception], Callable[[], str]]] = [
        (
            errors.GatedRepoError,
            lambda: (
                f"is gated: accept its conditions at {_endpoint()}/{request.name} and log in (`hf "
                f"auth login`, or a token in HF_TOKEN)"
            ),
        ),
        (
            errors.RevisionNotFoundError,
            lambda: f"has no revision {request.revision!r}: take a branch, tag or commit of it",
        ),
        (
            errors.RepositoryNotFoundError,
            lambda: (
                "is no repository that you may read: check the name; if it is private, log in (`hf "
                "auth login`, or a token in HF_TOKEN)"
            ),
        ),
    ]
    for kind, reason in kinds:
        if isinstance(error, kind):
            return reason()
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"can't be downloaded ({type(error).__name__}: {first[:200]}): try again later"
