"""The page of `clip-jax serve` where its server is gone for a while, is slow or another."""

import re

import pytest

from tests.pictures import noise
from tests.serving import COUNT

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")
from tests.visits import MARKS, browser, captions, dropped, expect, until_first, visit

__all__ = ["browser", "visit"]
pytestmark = MARKS
GONE = "The server does not answer: is it still running?"


@pytest.fixture
def absence(visit):
    """Has the server of a page go and return; requests that it did not answer are no complaint."""

    class Absence:
        def begin(self, of: str = "**") -> None:
            visit.page.route(of, lambda route: route.abort("connectionrefused"))

        def end(self) -> None:
            visit.page.unroute_all()

    yield Absence()
    assert all("CONNECTION_REFUSED" in each or "50" in each for each in visit.complaints)
    visit.complaints.clear()


def test_what_was_asked_while_the_server_was_gone_is_answered_when_it_is_back(
    visit, served, absence
):
    visit.open()
    absence.begin()
    visit.page.fill("#q", "a dog")
    expect(visit.page.locator("#notice")).to_have_text(GONE)
    absence.end()
    until_first(visit, captions(served, q="a dog", k=1)[0])
    expect(visit.page.locator("#notice")).to_be_hidden()


def test_pictures_that_did_not_come_are_asked_for_again_when_the_server_is_back(
    visit, served, absence
):
    absence.begin("**/thumbnails/*")
    visit.open("/?q=a+dog")
    expect(visit.page.locator(".failed").first).to_be_visible()
    absence.begin("**/api/search*")
    visit.page.click(".like >> nth=2", force=True)
    expect(visit.page.locator("#notice")).to_have_text(GONE)
    absence.end()
    expect(visit.page.locator("#notice")).to_be_hidden()
    expect(visit.page.locator(".failed")).to_have_count(0)


def test_scrolling_goes_on_when_the_server_is_back(visit, served, absence):
    many = re.compile("k=[0-9]+")
    visit.page.set_viewport_size({"width": 400, "height": 300})
    visit.page.route(
        re.compile("/api/rows.*offset=0"),
        lambda route: route.continue_(url=many.sub("k=10", route.request.url)),
    )
    visit.page.route(
        re.compile("/api/rows.*offset=10"), lambda route: route.abort("connectionrefused")
    )
    visit.open()
    notice = visit.page.locator("#notice")
    expect(notice).to_have_text(GONE)
    visit.page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    expect(notice).to_be_in_viewport()
    expect(visit.page.locator("#grid > li")).to_have_count(10)
    absence.end()
    expect(visit.page.locator("#grid > li")).to_have_count(COUNT)
    expect(notice).to_be_hidden()


def test_rows_that_cannot_be_read_are_an_error_and_not_waited_for(visit, served, absence):
    visit.open()
    answer = {"status": 503, "json": {"error": "the rows can't be read now: Input/output error"}}
    visit.page.route("**/api/search*", lambda route: route.fulfill(**answer))
    visit.page.fill("#q", "a dog")
    expect(visit.page.locator("#notice")).to_have_text(
        "The rows can't be read now: Input/output error"
    )
    visit.page.unroute_all()
    visit.page.keyboard.press("Enter")  # again, the same words
    until_first(visit, captions(served, q="a dog", k=1)[0])


def test_a_picture_that_is_refused_leaves_what_was_found(visit, served):
    visit.open("/?q=a+dog")
    before = visit.keys()
    dropped(visit.page, b"not a picture", "drop")
    expect(visit.page.locator("#notice")).to_contain_text("The picture can't be read")
    assert visit.keys() == before and visit.page.input_value("#q") == "a dog"
    visit.complaints.clear()


def test_what_is_typed_while_a_picture_is_on_its_way_wins(visit, served):
    visit.open()
    visit.page.route("**/api/search?details=1&k=*", lambda route: None)  # never arrives
    dropped(visit.page, noise(3), "drop")
    visit.page.fill("#q", "a dog")
    until_first(visit, captions(served, q="a dog", k=1)[0])
    assert visit.page.evaluate("location.search") == "?q=a+dog"
    visit.page.click(".open >> nth=1")
    visit.until("location.search.startsWith('?q=a+dog&show=')")


def test_what_is_typed_before_the_page_knows_the_columns_is_searched_for(visit, served):
    held = []
    visit.page.route("**/api/about", lambda route: held.append(route))
    visit.page.goto(served.base)
    expect(visit.page.locator("#q")).to_be_focused()
    visit.page.keyboard.type("a dog")
    visit.page.keyboard.press("ArrowDown")
    visit.until("location.search === '?q=a+dog'")
    held[0].continue_()
    until_first(visit, captions(served, q="a dog", k=1)[0])


def test_a_picture_that_was_dropped_is_ranked(visit, served):
    visit.open()
    dropped(visit.page, noise(3), "drop")
    expect(visit.page.locator("#status")).to_contain_text(f"{COUNT} ranked in")


def test_a_server_of_other_rows_has_the_page_loaded_anew(visit, served, monkeypatch):
    visit.open()
    visit.page.evaluate("document.body.dataset.old = 1")
    monkeypatch.setitem(served.application._facts, "version", "another")
    visit.page.fill("#q", "a dog")
    until_first(visit, captions(served, q="a dog", k=1)[0])
    assert visit.page.evaluate("document.body.dataset.old") is None
    assert "v=another" in visit.page.get_attribute("#grid img >> nth=0", "src")


def test_how_many_rows_are_left_out_is_said_for_good(visit, served, monkeypatch):
    monkeypatch.setitem(served.application._facts, "left_out", 7)
    visit.open("/?q=a+dog")
    expect(visit.page.locator("#notice")).to_have_text(
        "7 rows are left out, whose parts are missing or damaged."
    )
    visit.page.wait_for_selector("#status .time")
    expect(visit.page.locator("#notice")).to_be_visible()


def test_conditions_that_no_filter_has_stay_when_a_filter_changes(visit, served):
    where = ["sold=true", "group in sea,hills", "year!=1993"]
    address = "&".join(f"where={each}" for each in where[1:])
    visit.open(f"/?q=a+dog&{address}")
    visit.page.click("#filter")
    visit.page.select_option("#filters [data-column=sold]", "true")
    expect(visit.page.locator(".chip")).to_have_text(where)
    expected = captions(served, q="a dog", where=where, k=COUNT)
    expect(visit.page.locator("#grid > li")).to_have_count(len(expected))
    assert visit.keys() == expected


def test_screen_readers_hear_each_name_once_and_what_a_field_is_for(visit, served):
    visit.open("/?q=a+dog")
    first = captions(served, q="a dog", k=1)[0]
    visit.page.click("#filter")
    cards = visit.page.locator("#grid > li").first.aria_snapshot()
    assert cards.count(first) == 2  # of the card, and of what is more like it
    names = visit.page.locator("#filters").aria_snapshot()
    assert "year, 1990 to 2029" in names
    for name in ("year from", "year to", "caption contains"):
        assert f'"{name}"' in names
