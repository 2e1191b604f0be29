"""The page of `retr serve` in a browser: searches by picture, settings and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.browsing import COLORS, Page

pytestmark = pytest.mark.web


def test_an_upload_shows_its_neighbors(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(
        lambda: page.labels() == ["red"] * 10 + page.labels()[10:] and len(page.labels()) == 12
    )
    assert page.chips() == ["picture query.png"]
    assert "search" in page.one("#time").text and "encoding" in page.one("#time").text
    page.wait(lambda: all(
        page.browser.execute_script("return arguments[0].naturalWidth", image) > 0
        for image in page.all("#hits img")
    ))  # fmt: skip
    assert page.all("#hits .right") == page.all("#hits .wrong") == [], (
        "the label of an upload is unknown"
    )


def test_different_distances_are_shown_with_enough_digits(page: Page) -> None:
    def texts(*distances: float) -> Any:
        return page.module("dom.js", "return module.distanceTexts(given)", *distances)

    assert texts(0.5, 0.25, 0.5) == ["0.5", "0.25", "0.5"]
    assert texts(0.0001213, 0.0001251, 0.00012512) == ["0.0001213", "0.0001251", "0.00012512"]
    assert texts(0, 5.96e-8, 0.3333333) == ["0", "5.96e-8", "0.333"]
    assert texts() == []


def test_searches_by_images_of_the_collection_and_back(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    name = page.one("#hits .card").get_attribute("data-id")
    page.click("#hits .open")
    page.click("#alone")
    page.wait(lambda: page.chips() == [f"more like {name}"])
    page.wait(lambda: len(page.all("#hits .right")) == 9)
    assert page.labels()[:9] == ["red"] * 9 and len(page.all("#hits .wrong")) == 3
    assert page.one("#count").text == "12 images found, 9 with the label red"
    page.click("#hits .like")
    page.wait(lambda: len(page.chips()) == 2)
    page.browser.back()
    page.wait(lambda: page.chips() == [f"more like {name}"])
    page.browser.back()
    page.wait(lambda: page.chips() == ["picture query.png"])
    page.wait(lambda: page.all("#hits .right") == [] and len(page.labels()) == 12)


def test_label_k_and_metric_change_the_results(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    page.choose("#label", "blue")
    page.wait(lambda: set(page.labels()) == {"blue"})
    page.wait(lambda: {each.text for each in page.all("#items .what")} == {"blue"})
    page.choose("#label", "")
    count = page.one("#k")
    count.clear()
    count.send_keys("3\t")
    page.wait(lambda: len(page.labels()) == 3)
    page.choose("#metric", "euclidean")
    page.wait(lambda: page.one("#index").get_attribute("value") == "exact")
    assert not page.one("#effort-field").is_displayed(), "exact search has no setting of recall"


def test_the_slider_searches_again_with_its_value(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    asked = (
        "return performance.getEntriesByType('resource')"
        ".filter((each) => each.name.endsWith('/api/search')).length"
    )
    before = page.browser.execute_script(asked)
    page.one("#effort").send_keys("\ue012")  # arrow left
    page.wait(lambda: page.one("#effort-value").text == "3")
    page.wait(lambda: page.browser.execute_script(asked) > before)


def test_a_click_on_the_map_searches_by_that_image(page: Page) -> None:
    page.wait(lambda: "30 images by PCA" in page.one("#map-help").text)
    assert {each.text for each in page.all("#legend li")} == set(COLORS)
    # Click the point with the most distance to its nearest one, as pixels are rounded.
    at = page.module(
        "map.js",
        "const { map, places } = module;"
        "const at = places(), box = document.getElementById('map').getBoundingClientRect();"
        "const far = (i, j) => Math.hypot(at.x(i) - at.x(j), at.y(i) - at.y(j));"
        "const all = map.ids.map((_, i) => i);"
        "const others = (i) => all.filter((j) => j !== i);"
        "const apart = all.map((i) => Math.min(...others(i).map((j) => far(i, j))));"
        "const i = apart.indexOf(Math.max(...apart));"
        "return [at.x(i) - box.width / 2, at.y(i) - box.height / 2, map.ids[i]]",
    )
    from selenium.webdriver import ActionChains

    canvas = page.one("#map")
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(page.browser).move_to_element_with_offset(
        canvas, round(at[0]), round(at[1])
    ).click().perform()
    page.wait(lambda: len(page.labels()) == 12)
    assert page.chips() == [f"more like {at[2]}"]


def test_an_error_is_shown_until_the_next_search(page: Page, folder: Path) -> None:
    page.upload(folder / "bad.png")
    page.wait(lambda: page.one("#error").is_displayed())
    assert "not an image" in page.one("#error").text
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    assert not page.one("#error").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: Any, address: str, scheme: str) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        page = Page(browser, f"{address}#red%2F3.png")
        page.wait(lambda: len(page.labels()) == 12)
        script = "return [document.documentElement.scrollWidth, innerWidth]"
        wide, screen = browser.execute_script(script)
        assert wide <= screen
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = np.mean([int(each) for each in paper[4:-1].split(",")])
        assert brightness > 200 if scheme == "light" else brightness < 60
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_asks_no_other_host_and_logs_no_error(page: Page, address: str) -> None:
    page.wait(lambda: "30 images" in page.one("#map-help").text)
    page.browser.get(f"{address}docs")
    page.wait(lambda: page.all(".opblock"))
    asked = [
        message["params"]["request"]["url"]
        for entry in page.browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert len(asked) > 10
    others = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
    assert others <= {"about:blank"}
    severe = [each for each in page.browser.get_log("browser") if each["level"] == "SEVERE"]
    # The upload that is not an image, and a map without embeddings, are the only refused requests.
    assert all("status of 400" in each["message"] for each in severe), severe
