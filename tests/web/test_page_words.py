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


def test_results_keep_up_with_typing(wordy: Page) -> None:
    wordy.press("/")
    assert wordy.focused().get_attribute("id") == "words"
    wordy.press("green")
    wordy.wait(lambda: wordy.labels()[:10] == ["green"] * 10)
    assert wordy.one("#count").text == "12 images found"
    assert wordy.chips() == ["green"]
    assert wordy.focused().get_attribute("id") == "words", "typing goes on"
    assert 1 <= wordy.browser.execute_script(SEARCHES) <= 5
    assert "words=green" in wordy.browser.current_url
    wordy.reload()
    wordy.wait(lambda: wordy.labels()[:10] == ["green"] * 10)
    assert wordy.one("#words").get_attribute("value") == "green"


def test_a_late_answer_is_dropped(wordy: Page) -> None:
    wordy.browser.execute_script(DELAY_FIRST_ANSWER)
    wordy.set("#words", "red")
    wordy.wait(lambda: wordy.chips() == ["red"])
    wordy.set("#words", "blue")
    wordy.wait(lambda: wordy.labels()[:10] == ["blue"] * 10)
    wordy.wait(lambda: wordy.browser.execute_script("return window.isLate"))
    assert wordy.labels()[:10] == ["blue"] * 10


def test_picture_words_and_exclusions_are_one_query(wordy: Page, folder: Path) -> None:
    wordy.upload(folder / "query.png")
    wordy.wait(lambda: wordy.labels()[:10] == ["red"] * 10)
    wordy.set("#words", 'blue -green -"dark red"')
    chips = ["picture query.png", "blue", "not green", "not dark red"]
    wordy.wait(lambda: wordy.chips() == chips)
    wordy.set("#balance", "0.9")
    wordy.wait(lambda: wordy.labels()[:10] == ["blue"] * 10)
    wordy.click(".chip.words button")
    wordy.wait(lambda: wordy.chips() == [chips[0], *chips[2:]])
    assert wordy.one("#words").get_attribute("value") == '-green -"dark red"'
    wordy.wait(lambda: wordy.labels()[:10] == ["red"] * 10)
    wordy.click(".chip.picture button")
    wordy.wait(lambda: wordy.chips() == chips[2:])
    wordy.wait(lambda: wordy.labels()[:10] == ["blue"] * 10)
    wordy.browser.back()
    wordy.wait(lambda: wordy.chips() == [chips[0], *chips[2:]])
    wordy.click("#clear")
    wordy.wait(lambda: wordy.chips() == [] and not wordy.one("#answer").is_displayed())


def test_words_are_parsed(wordy: Page) -> None:
    expected: dict[str, tuple[list[str], list[str]]] = {
        "a dog": (["a dog"], []),
        "a dog -people  on a beach": (["a dog on a beach"], ["people"]),
        '-"red cars" t-shirt': (["t-shirt"], ["red cars"]),
        'dog - -"" -': (["dog"], []),
        'dog -"red ca': (["dog"], ["red ca"]),
        "  ": ([], []),
    }
    parsed = wordy.module("query.js", "return given.map(module.parsedWords)", *expected)
    assert [(each["texts"], each["excluded"]) for each in parsed] == [*expected.values()]


def test_the_large_view_by_keyboard(wordy: Page) -> None:
    from selenium.webdriver import Keys

    wordy.set("#words", "green")
    wordy.wait(lambda: wordy.labels()[:10] == ["green"] * 10)
    ids = [each.get_attribute("data-id") for each in wordy.all("#hits .card")]
    wordy.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    wordy.wait(lambda: wordy.one("#viewer").is_displayed())
    assert wordy.one("#viewer-place").text == "2 of 12"
    wordy.press(Keys.ARROW_RIGHT)
    wordy.wait(lambda: "width" in wordy.one("#facts").text)
    lines = wordy.one("#facts").text.splitlines()
    facts = dict(zip(lines[::2], lines[1::2], strict=True))
    assert (facts["label"], facts["id"], facts["rank"], facts["width"]) == (
        "green", ids[2], "3", "64",
    )  # fmt: skip
    assert facts["path"].endswith(ids[2]) and float(facts["distance"]) < 0.1
    assert "taken" not in facts, "a value that is not known"
    image = wordy.one("#viewer-image")
    wordy.wait(lambda: wordy.browser.execute_script("return arguments[0].naturalWidth", image) > 0)
    wordy.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert wordy.one("#viewer-place").text == "1 of 12"
    wordy.press(Keys.ESCAPE)
    wordy.wait(lambda: not wordy.one("#viewer").is_displayed())
    assert wordy.focused().get_attribute("title") == ids[0], "the focus follows"
    wordy.press(Keys.ARROW_DOWN)
    below = wordy.browser.execute_script(
        "return document.activeElement.getBoundingClientRect().top"
        " > document.querySelector('#hits .open').getBoundingClientRect().top"
    )
    assert below


def test_more_and_less_like_a_hit(wordy: Page) -> None:
    wordy.set("#words", "red")
    wordy.wait(lambda: wordy.labels()[:10] == ["red"] * 10)
    wordy.click('#items [data-id^="blue"] .like')
    wordy.wait(lambda: wordy.chips()[1:2] and wordy.chips()[1].startswith("more like blue/"))
    wordy.click(".chip.words button")
    wordy.wait(lambda: wordy.labels()[:9] == ["blue"] * 9)
    wordy.click('#hits [data-id^="red"] .open, #hits [data-id^="green"] .open')
    other = wordy.one("#viewer-title").text
    wordy.click("#less")
    wordy.wait(lambda: len(wordy.chips()) == 2 and wordy.chips()[1].startswith("less like "))
    assert wordy.chips()[1].startswith(f"less like {other}/")
    gone = wordy.chips()[1].removeprefix("less like ")
    wordy.wait(lambda: not wordy.all(f'#hits [data-id="{gone}"]'))


def test_conditions_make_a_filter(wordy: Page) -> None:
    wordy.set("#words", "red")
    wordy.wait(lambda: len(wordy.labels()) == 12)
    wordy.click("#build")
    wordy.choose("#column", "id")
    wordy.choose("#comparison", "ilike")
    wordy.one("#value-place input").send_keys("N/3")
    wordy.click("#add-condition")
    wordy.wait(lambda: wordy.labels() == ["green"])
    assert wordy.one("#where").get_attribute("value") == "id ilike '%N/3%'"
    wordy.choose("#column", "height")
    wordy.choose("#comparison", ">")
    wordy.one("#value-place input").send_keys("48")
    wordy.click("#add-condition")
    wordy.wait(lambda: wordy.one("#nothing").text.startswith("No image matches"))
    assert wordy.one("#where").get_attribute("value") == "id ilike '%N/3%' and height > 48"
    wordy.set("#where", "id = 'blue/1.png' or height = 48")
    wordy.choose("#label", "blue")
    wordy.wait(lambda: wordy.labels() == ["blue"] * 10)
    wordy.set("#where", "width >")
    wordy.wait(lambda: "cannot read the filter" in wordy.one("#error").text)


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


def test_nothing_overlaps_on_a_phone(browser: Any, wordy_address: str) -> None:
    try:
        show_on_phone(browser, 380)
        page = Page(browser, f"{wordy_address}#words=red+-green&like=red%2F3.png")
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
