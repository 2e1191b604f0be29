"""The page of `retr serve` in a browser: words, the large view, filters, keys and phones."""

from pathlib import Path
from typing import Any

import pytest

from tests.web.browsing import Page

pytestmark = pytest.mark.web

DELAY_FIRST_ANSWER = """
const real = fetch;
let isFirst = true;
window.fetch = (address, options) => {
  if (!isFirst || address !== "/api/search") return real(address, options);
  isFirst = false;
  const late = new Promise((resolve) => { setTimeout(resolve, 700); });
  return late.then(() => real(address, { ...options, signal: undefined }))
    .finally(() => { window.isLate = true; });
};
"""
SEARCHES = (
    "return performance.getEntriesByType('resource')"
    ".filter((each) => each.name.endsWith('/api/search')).length"
)


def test_results_keep_up_with_typing(page: Page) -> None:
    page.press("/")
    assert page.focused().get_attribute("id") == "words"
    page.press("green")
    page.wait(lambda: page.labels()[:10] == ["green"] * 10)
    assert page.one("#count").text == "12 images found"
    assert page.chips() == ["green"]
    assert page.focused().get_attribute("id") == "words", "typing goes on"
    assert 1 <= page.browser.execute_script(SEARCHES) <= 5
    assert "words=green" in page.browser.current_url
    page.reload()
    page.wait(lambda: page.labels()[:10] == ["green"] * 10)
    assert page.one("#words").get_attribute("value") == "green"


def test_a_late_answer_is_dropped(page: Page) -> None:
    page.browser.execute_script(DELAY_FIRST_ANSWER)
    page.set("#words", "red")
    page.wait(lambda: page.chips() == ["red"])
    page.set("#words", "blue")
    page.wait(lambda: page.labels()[:10] == ["blue"] * 10)
    page.wait(lambda: page.browser.execute_script("return window.isLate"))
    assert page.labels()[:10] == ["blue"] * 10


def test_picture_words_and_exclusions_are_one_query(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(lambda: page.labels()[:10] == ["red"] * 10)
    page.set("#words", 'blue -green -"dark red"')
    chips = ["picture query.png", "blue", "not green", "not dark red"]
    page.wait(lambda: page.chips() == chips)
    page.set("#balance", "0.9")
    page.wait(lambda: page.labels()[:10] == ["blue"] * 10)
    page.click(".chip.words button")
    page.wait(lambda: page.chips() == [chips[0], *chips[2:]])
    assert page.one("#words").get_attribute("value") == '-green -"dark red"'
    page.wait(lambda: page.labels()[:10] == ["red"] * 10)
    page.click(".chip.picture button")
    page.wait(lambda: page.chips() == chips[2:])
    page.wait(lambda: page.labels()[:10] == ["blue"] * 10)
    page.browser.back()
    page.wait(lambda: page.chips() == [chips[0], *chips[2:]])
    page.click("#clear")
    page.wait(lambda: page.chips() == [] and not page.one("#answer").is_displayed())


def test_words_are_parsed(page: Page) -> None:
    expected: dict[str, tuple[list[str], list[str]]] = {
        "a dog": (["a dog"], []),
        "a dog -people  on a beach": (["a dog on a beach"], ["people"]),
        '-"red cars" t-shirt': (["t-shirt"], ["red cars"]),
        'dog - -"" -': (["dog"], []),
        'dog -"red ca': (["dog"], ["red ca"]),
        "  ": ([], []),
    }
    parsed = page.module("query.js", "return given.map(module.parsedWords)", *expected)
    assert [(each["texts"], each["excluded"]) for each in parsed] == [*expected.values()]


def test_the_large_view_by_keyboard(page: Page) -> None:
    from selenium.webdriver import Keys

    page.set("#words", "green")
    page.wait(lambda: page.labels()[:10] == ["green"] * 10)
    ids = [each.get_attribute("data-id") for each in page.all("#hits .card")]
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    page.wait(lambda: page.one("#viewer").is_displayed())
    assert page.one("#viewer-place").text == "2 of 12"
    page.press(Keys.ARROW_RIGHT)
    page.wait(lambda: "width" in page.one("#facts").text)
    lines = page.one("#facts").text.splitlines()
    facts = dict(zip(lines[::2], lines[1::2], strict=True))
    assert (facts["label"], facts["id"], facts["rank"], facts["width"]) == (
        "green", ids[2], "3", "64",
    )  # fmt: skip
    assert facts["path"].endswith(ids[2]) and float(facts["distance"]) < 0.1
    assert "taken" not in facts, "a value that is not known"
    image = page.one("#viewer-image")
    page.wait(lambda: page.browser.execute_script("return arguments[0].naturalWidth", image) > 0)
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.one("#viewer-place").text == "1 of 12"
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.one("#viewer").is_displayed())
    assert page.focused().get_attribute("title") == ids[0], "the focus follows"
    page.press(Keys.ARROW_DOWN)
    below = page.browser.execute_script(
        "return document.activeElement.getBoundingClientRect().top"
        " > document.querySelector('#hits .open').getBoundingClientRect().top"
    )
    assert below


def test_more_and_less_like_a_hit(page: Page) -> None:
    page.set("#words", "red")
    page.wait(lambda: page.labels()[:10] == ["red"] * 10)
    page.click('#items [data-id^="blue"] .like')
    page.wait(lambda: page.chips()[1:2] and page.chips()[1].startswith("more like blue/"))
    page.click(".chip.words button")
    page.wait(lambda: page.labels()[:9] == ["blue"] * 9)
    page.click('#hits [data-id^="red"] .open, #hits [data-id^="green"] .open')
    other = page.one("#viewer-title").text
    page.click("#less")
    page.wait(lambda: len(page.chips()) == 2 and page.chips()[1].startswith("less like "))
    assert page.chips()[1].startswith(f"less like {other}/")
    gone = page.chips()[1].removeprefix("less like ")
    page.wait(lambda: not page.all(f'#hits [data-id="{gone}"]'))


def test_conditions_make_a_filter(page: Page) -> None:
    page.set("#words", "red")
    page.wait(lambda: len(page.labels()) == 12)
    page.click("#build")
    page.choose("#column", "id")
    page.choose("#comparison", "ilike")
    page.one("#value-place input").send_keys("N/3")
    page.click("#add-condition")
    page.wait(lambda: page.labels() == ["green"])
    assert page.one("#where").get_attribute("value") == "id ilike '%N/3%'"
    page.choose("#column", "height")
    page.choose("#comparison", ">")
    page.one("#value-place input").send_keys("48")
    page.click("#add-condition")
    page.wait(lambda: page.one("#nothing").text.startswith("No image matches"))
    assert page.one("#where").get_attribute("value") == "id ilike '%N/3%' and height > 48"
    page.set("#where", "id = 'blue/1.png' or height = 48")
    page.choose("#label", "blue")
    page.wait(lambda: page.labels() == ["blue"] * 10)
    page.set("#where", "width >")
    page.wait(lambda: "cannot read the filter" in page.one("#error").text)


def test_an_encoder_without_words_and_no_map(browser: Any, plain_address: str) -> None:
    page = Page(browser, plain_address)
    page.wait(lambda: page.one("#map-help").text.startswith("No map: "))
    assert not page.one("#map-frame").is_displayed() and not page.one("#whole").is_displayed()
    assert not page.one("#words").is_enabled()
    told = page.one("#words-help").text
    assert "encoder toy" in told and "clip:ViT-B-32-256" in told
    assert not page.one("#index-field").is_displayed(), "there is one index"
    page.press("/")
    assert page.focused().get_attribute("id") == "pick"


def test_nothing_overlaps_on_a_phone(browser: Any, address: str) -> None:
    try:
        show_on_phone(browser, 380)
        page = Page(browser, f"{address}#words=red+-green&like=red%2F3.png")
        page.wait(lambda: len(page.labels()) == 12)
        page.click("#show-settings")
        page.click("#build")
        for width in (360, 380, 420):
            show_on_phone(browser, width)
            check_boxes(browser, width)
        page.click("#hits .open")
        page.wait(lambda: page.one("#viewer").is_displayed())
        wide = browser.execute_script("return document.getElementById('about').scrollWidth")
        assert wide <= 420
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def show_on_phone(browser: Any, width: int) -> None:
    phone = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)


def check_boxes(browser: Any, width: int) -> None:
    """Assert that title and fields overlap nowhere, and that nothing is wider than the screen."""
    boxes = browser.execute_script(
        "return ['h1', '#show-settings', '#theme', '#ask', '#chips', '#label', '#where',"
        " '#metric', '#index', '#k', '#effort', '#column', '#comparison', '#add-condition']"
        ".map((each) => document.querySelector(each).getBoundingClientRect())"
        ".map(({ left, top, right, bottom }) => [left, top, right, bottom])"
    )
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= width and top < bottom
        for other in boxes[:i]:
            apart = right <= other[0] or other[2] <= left
            assert apart or bottom <= other[1] or other[3] <= top
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
