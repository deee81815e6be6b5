"""The page of `clip-jax serve` in a real browser, as somebody uses it who looks for something."""

from pathlib import Path

import pytest

from tests.pictures import noise
from tests.serving import COUNT, ODD, application, serving, write_many

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")
from tests.visits import MARKS, Visit, browser, captions, dropped, expect, until_first, visit

__all__ = ["browser", "visit"]
pytestmark = MARKS


def test_what_is_typed_is_searched_for_and_stands_in_the_address(visit, served):
    visit.open()
    assert visit.keys()[0] == "picture 0"
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("a red bicycle", delay=5)
    expected = captions(served, q="a red bicycle", k=COUNT)
    until_first(visit, expected[0])
    visit.until(f"document.querySelectorAll('#grid > li').length == {COUNT}")
    assert visit.keys() == expected
    assert visit.page.url.endswith("/?q=a+red+bicycle")
    expect(visit.page.locator("#status")).to_contain_text(f"{COUNT} ranked in")
    # One entry of the history for all that was typed.
    visit.page.go_back()
    until_first(visit, "picture 0")
    assert visit.page.input_value("#q") == ""
    visit.page.go_forward()
    until_first(visit, expected[0])
    assert visit.page.input_value("#q") == "a red bicycle"


def test_more_like_one_that_is_clicked_and_back_again(visit, served):
    visit.open("/?q=sea")
    first = visit.keys()
    visit.page.locator(".open").nth(4).click()
    detail = visit.page.locator("#detail")
    expect(detail).to_be_visible()
    expect(detail.locator("h2")).to_have_text(first[4])
    (hit,) = [h for h in served.get("/api/rows", k=COUNT).json if h["caption"] == first[4]]
    expect(detail).to_contain_text(hit["path"])
    visit.until("document.querySelector('#stage img').naturalWidth > 0")
    detail.get_by_text("More like this").click()
    expect(detail).to_be_hidden()
    like = captions(served, "/api/similar", key=hit["key"], k=COUNT - 1)
    until_first(visit, like[0])
    assert visit.keys() == like
    visit.page.go_back()  # to the details
    expect(detail).to_be_visible()
    visit.page.go_back()
    expect(detail).to_be_hidden()
    assert visit.keys() == first


def test_the_keyboard_is_enough(visit, served):
    visit.open("/?q=hills")
    page, names = visit.page, visit.keys()
    focused = "document.activeElement.dataset.place"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    wide = page.evaluate("getComputedStyle(grid).gridTemplateColumns.split(' ').length")
    assert int(page.evaluate(focused)) == wide + 1 > 2
    page.keyboard.press("Enter")
    title = page.locator("#detail h2")
    expect(title).to_have_text(names[wide + 1])
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(names[wide + 2])
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert page.evaluate(focused) == str(wide + 2)
    page.keyboard.press("m")
    expect(page.locator("#seen .chip")).to_be_visible()
    assert "row=" in page.url
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    until_first(visit, "picture 0")
    assert page.url == f"{served.base}/"


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_is_dropped_pasted_or_chosen(visit, served, tmp_path, how):
    visit.open()
    if how == "choose":
        (tmp_path / "a.png").write_bytes(noise(23))
        visit.page.set_input_files("#file", tmp_path / "a.png")
    else:
        if how == "drop":
            dropped(visit.page, noise(23), "dragover")
            expect(visit.page.locator("#drop")).to_be_visible()
        dropped(visit.page, noise(23), how)
    until_first(visit, "picture 23")
    expect(visit.page.locator("#drop")).to_be_hidden()
    expect(visit.page.locator("#seen img")).to_be_visible()
    assert "picture=" in visit.page.url
    visit.page.go_back()
    until_first(visit, "picture 0")
    visit.page.go_forward()
    until_first(visit, "picture 23")


def test_concepts_and_filters_are_chips_that_can_be_taken_away(visit, served):
    visit.open("/?q=a+dog")
    page = visit.page
    page.click("#plus")
    page.keyboard.type("snow")
    page.keyboard.press("Enter")
    until_first(visit, captions(served, q="a dog", plus="snow", k=1)[0])
    page.click("#minus")
    page.keyboard.type("night")
    page.keyboard.press("Enter")
    page.click("#filter")
    page.select_option("#filters select >> nth=0", "sea")
    page.fill("#filters [data-column=year][data-operator='>=']", "2000")
    page.keyboard.press("Enter")
    where = ["group=sea", "year>=2000"]
    expected = captions(served, q="a dog", plus="snow", minus="night", where=where, k=COUNT)
    expect(page.locator("#grid > li")).to_have_count(len(expected))
    assert visit.keys() == expected
    expect(page.locator(".chip")).to_have_text(["+ snow", "− night", *where])
    page.reload()
    expect(page.locator(".chip")).to_have_text(["+ snow", "− night", *where])
    assert page.input_value("#filters select >> nth=0") == "sea"
    for _ in range(4):
        page.locator(".chip").first.click()
    expect(page.locator(".chip")).to_have_count(0)
    until_first(visit, captions(served, q="a dog", k=1)[0])


@pytest.mark.parametrize("text", ["rock and roll in town", "salt & pepper = two", "'s", "2"])
def test_a_filter_takes_any_text(visit, text):
    visit.open()
    visit.page.click("#filter")
    visit.page.fill("#filters [data-column=caption]", text)
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".chip")).to_have_count(1)
    expect(visit.page.locator("#notice")).to_be_hidden()
    visit.page.reload()
    expect(visit.page.locator(".chip")).to_have_count(1)
    assert visit.page.input_value("#filters [data-column=caption]") == text


def test_html_in_captions_and_queries_stays_text(visit, served):
    visit.open()
    assert ODD in visit.keys()
    visit.page.fill("#q", ODD)
    visit.page.keyboard.press("Enter")
    until_first(visit, captions(served, q=ODD, k=1)[0])
    assert visit.page.locator("img[src=x]").count() == 0
    visit.page.locator(".open", has_text="DROP TABLE").click()
    expect(visit.page.locator("#detail h2")).to_have_text(ODD)


PHONE = {"viewport": {"width": 360, "height": 700}, "is_mobile": True, "has_touch": True}


def test_a_phone_has_no_sideways_scrolling_and_two_columns(browser, served):
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.goto(served.base + "/?q=a+dog&plus=snow&minus=night&where=group%3Dsea")
    page.wait_for_selector("#grid .open")
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 360
    assert page.evaluate("getComputedStyle(grid).gridTemplateColumns.split(' ').length") == 2
    page.tap(".open >> nth=1")
    expect(page.locator("#detail")).to_be_visible()
    box = page.locator("#detail").bounding_box()
    assert (box["x"], box["width"]) == (0, 360) and page.evaluate(wide) == 360
    page.locator("#detail").get_by_text("More like this").tap()
    expect(page.locator("#seen .chip")).to_be_visible()
    context.close()


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}], indirect=True)
def test_dark_mode_is_dark(visit):
    visit.open()
    ground, words = visit.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(int, color[4:-1].split(","))) for color in (ground, words)]
    assert light[0] < 100 and light[1] > 600


def test_it_says_that_it_is_getting_ready_and_then_answers(visit, served, monkeypatch):
    monkeypatch.setattr(served.application._searcher, "_ready", set())
    monkeypatch.setattr(served.application._searcher, "step", "compiling for 8 texts")
    visit.page.goto(served.base + "/?q=sea")
    expect(visit.page.locator("#notice")).to_have_text("Getting ready: compiling for 8 texts …")
    monkeypatch.setattr(served.application._searcher, "step", None)
    until_first(visit, captions(served, q="sea", k=1)[0])
    expect(visit.page.locator("#notice")).to_be_hidden()
    assert visit.complaints and all("503" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_what_is_refused_is_said_on_the_page(visit, served):
    visit.open()
    dropped(visit.page, b"not a picture", "drop")
    notice = visit.page.locator("#notice")
    expect(notice).to_contain_text("The picture can't be read")
    visit.page.fill("#q", "sea")
    until_first(visit, captions(served, q="sea", k=1)[0])
    expect(notice).to_be_hidden()
    assert visit.complaints and all("400" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_10_000_rows_are_scrolled_through_and_found_again_by_the_back_button(
    browser, model, tmp_path
):
    made = application(write_many(Path(tmp_path), model, 10_000), model)
    context = browser.new_context(viewport={"width": 900, "height": 600})
    with serving(made.app) as found:
        visit = Visit(context.new_page(), found.base)
        visit.open("/?q=everything")
        page = visit.page
        count = "document.querySelectorAll('#grid > li').length"
        before = 0
        while (now := page.evaluate(count)) < 10_000:
            page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
            visit.until(f"{count} > {now}")
            assert now > before or not before
            before = now
        names = visit.keys()
        assert len(names) == len(set(names)) == 10_000
        page.evaluate("document.querySelector('[data-place=\"7321\"]').scrollIntoView()")
        page.locator("[data-place='7321']").hover()
        page.locator("[data-like]").nth(7321).click()
        expect(page.locator("#seen .chip")).to_be_visible()
        visit.until(f"{count} < 1000")
        page.go_back()
        visit.until(f"{count} == 10000")
        expect(page.locator("[data-place='7321']")).to_be_in_viewport()
        assert visit.keys() == names and not visit.complaints
    context.close()


def test_what_is_typed_at_once_is_searched_for(visit):
    visit.open()
    expect(visit.page.locator("#q")).to_be_focused()
    visit.page.keyboard.press("/")  # begins a search, as the page says
    visit.page.keyboard.type("a dog")
    visit.page.keyboard.press("Enter")
    visit.until("location.search === '?q=a+dog'")
