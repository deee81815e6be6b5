"""Visits to the page of `clip-jax serve` by a real browser."""

import base64
import os
import shutil

import pytest

from tests.processes import wait_until

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
MARKS = [
    pytest.mark.long,
    pytest.mark.usefixtures("compiled_once"),
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="needs chromium"),
]
expect = playwright.expect


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """A page, and what its browser has complained of and asked for."""

    def __init__(self, page, base: str):
        self.page, self.base = page, base
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: str = "/") -> None:
        self.page.goto(self.base + path)
        self.page.wait_for_selector("#grid .open")

    def keys(self) -> list[str]:
        """The captions of the cards, in order."""
        return self.page.eval_on_selector_all(
            "#grid .line bdi", "all => all.map(e => e.textContent)"
        )

    def until(self, condition: str) -> None:
        wait_until(lambda: self.page.evaluate(condition))


@pytest.fixture
def visit(browser, served, request):
    """A visit, which must end without a complaint and without a request to elsewhere."""
    options = getattr(request, "param", {})
    context = browser.new_context(viewport={"width": 1100, "height": 800}, **options)
    found = Visit(context.new_page(), served.base)
    yield found
    context.close()
    assert not found.complaints
    assert {url for url in found.asked if not url.startswith((served.base, "blob:"))} == set()


def captions(served, path: str = "/api/search", **values) -> list[str]:
    return [hit["caption"] for hit in served.get(path, **values).json]


def until_first(visit: Visit, caption: str) -> None:
    expect(visit.page.locator("#grid .line bdi").first).to_have_text(caption)


def dropped(page, data: bytes, event: str) -> None:
    """Drops or pastes a picture as a browser reports it."""
    page.evaluate(
        """([data, name]) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const carried = new DataTransfer();
          carried.items.add(new File([bytes], "a.png", { type: "image/png" }));
          const how = { bubbles: true, cancelable: true, dataTransfer: carried };
          const Made = name === "paste" ? ClipboardEvent : DragEvent;
          const made = new Made(name, { ...how, clipboardData: carried });
          document.body.dispatchEvent(made);
        }""",
        [base64.b64encode(data).decode(), event],
    )
