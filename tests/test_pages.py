"""Pages of search and evaluation: one style, no request to anywhere, links to the originals."""

import base64
import hashlib
import re

import pytest
from PIL import Image

from clip_jax import pages, thumbnails
from clip_jax.search import contact_sheet
from clip_jax.search import page as search_page
from tests.pages import ODD, Tags, classified, retrieved

pytest.importorskip("matplotlib")


@pytest.fixture
def folder(tmp_path):
    """Pictures of names that have to be escaped in HTML and in addresses."""
    for name in ('a "b" #1?.png', "<i>it's</i>.png".replace("/", ""), "\u0635\u0648\u0631.png"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / name)
    return tmp_path


def hits(paths) -> list[dict]:
    return [{"key": str(path), "score": 0.5, "path": str(path)} for path in paths]


def all_pages(folder) -> dict[str, str]:
    paths = sorted(folder.glob("*.png"))
    facts = {"Model": "ViT-B/32"}
    return {
        "search": contact_sheet(hits(paths), ODD[0], facts=facts),
        "classification": classified(ODD, paths),
        "retrieval": retrieved(ODD, paths),
    }


@pytest.mark.parametrize("kind", ["search", "classification", "retrieval"])
def test_every_page_has_the_one_style_and_may_load_nothing(folder, kind):
    page = all_pages(folder)[kind]
    tags = Tags(page)
    assert page.count("<style>") == 1 and "The one stylesheet of all pages" in page
    policy = next(a["content"] for t, a in tags.all if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert ("script-src 'sha256-" in policy) == (kind == "classification")
    for tag, attributes in tags.all:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in page and "@import" not in page


def test_the_policy_lets_the_pages_own_script_run_and_no_other(folder):
    page = all_pages(folder)["classification"]
    (script,) = re.findall("(?s)<script>(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in page


@pytest.mark.parametrize("kind", ["search", "classification", "retrieval"])
def test_names_are_text_whatever_stands_in_them(folder, kind):
    page = all_pages(folder)[kind]
    tags = Tags(page)
    assert "<b>bold" not in page and "<script>alert" not in page
    scripts = [a for tag, a in tags.all if tag == "script"]
    assert len(scripts) == (2 if kind == "classification" else 0)
    # Each name is apart from the direction of the words around it.
    for name in re.findall("\u05d7[\u0590-\u05ff]+", re.sub("(?s)<script.*?</script>", "", page)):
        assert f"<bdi>{name}</bdi>" in page


@pytest.mark.parametrize("kind", ["search", "classification", "retrieval"])
def test_pictures_are_links_to_their_originals(folder, kind):
    paths = sorted(folder.glob("*.png"))
    addresses = {a["href"] for tag, a in Tags(all_pages(folder)[kind]).all if a.get("target")}
    assert addresses and addresses <= {path.as_uri() for path in paths}
    assert all('"' not in each and "#" not in each and "?" not in each for each in addresses)


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("https://example.org/a.png", "https://example.org/a.png"),
        ("s3://bucket/a.png", None),
        ("javascript:alert(1)", None),
        ("javascript://x%0aalert(1)", None),
        ("/nowhere/in.tar/a.png", None),
        ("", None),
    ],
)
def test_only_files_and_web_addresses_are_links(path, address):
    assert thumbnails.address_of(path) == address


def test_a_page_says_how_many_results_it_leaves_out(monkeypatch):
    monkeypatch.setattr(search_page, "SHOWN", 2)
    page = contact_sheet(hits(["a", "b", "c", "d"]), "q")
    assert page.count("<li>") == 2 and "2 more results are not on this page" in page


def test_a_page_ends_to_take_pictures_before_it_is_too_large(folder, monkeypatch):
    path = next(folder.glob("*.png"))
    size = len(thumbnails.Thumbnails().url(str(path)))
    monkeypatch.setattr(thumbnails, "MOST", size + 1)
    page = contact_sheet(hits([path] * 5), "q")
    assert page.count('src="data:') == 2 and page.count("not shown: the page is full") == 3
    assert page.count("target=") == 5  # the originals are a click away


def test_long_names_are_cut():
    assert pages.text("x" * 1000) == f"<bdi>{'x' * 299}\u2026</bdi>"


def test_a_search_page_says_what_it_was_made_from():
    page = contact_sheet([], "q", facts={"Model": "a<b", "Input": None})
    assert "<dt>Model</dt><dd><bdi>a&lt;b</bdi></dd>" in page and "<dt>Input" not in page
