"""The page of `retr serve` in a browser: searches, clicks, settings and errors."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrieval import build_index, open_embeddings, open_encoder
from retrieval.contracts import Metric
from retrieval.embedding.encode import encode_source
from retrieval.images import open_source

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
TIMEOUT_SECONDS = 20  # for any action on the page
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}

pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 30 images of three colors, a query of a fourth, and two indices."""
    root = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(0)
    for label, color in COLORS.items():
        (root / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(np.array(color) + rng.integers(-20, 21, (48, 64, 3)), 0, 255)
            name = root / "photos" / label / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(name)
    Image.new("RGB", (90, 90), (200, 60, 60)).save(root / "query.png")
    (root / "bad.png").write_bytes(b"not an image")
    encode_source(open_source(str(root / "photos")), open_encoder("toy"), root / "embeddings")
    sets = [open_embeddings(root / "embeddings")]
    build_index(sets, "ivf", root / "ivf", Metric.COSINE, {"n_lists": 4, "n_probe": 4})
    build_index(sets, "exact", root / "exact", Metric.EUCLIDEAN)
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Run the service and yield its address."""
    arguments = ["--index", "ivf", "--index", "exact", "--embeddings", "embeddings"]
    command = [str(Path(sys.executable).parent / "retr"), "serve", *arguments, "--port", "0"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, cwd=folder) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "window-size=1280,900", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in the browser, with its elements."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get_log("performance")
        browser.get(address)
        self.wait(lambda: len(self.all("#items .card")) == 24)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds. Raises TimeoutException after `TIMEOUT_SECONDS`."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(
            self.browser, TIMEOUT_SECONDS, ignored_exceptions=[StaleElementReferenceException]
        )
        patient.until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def far(self, *distances: float) -> Any:
        return self.browser.execute_script("return far([...arguments])", *distances)

    def labels(self) -> list[str]:
        return [each.text for each in self.all("#hits .what")]

    def choose(self, select: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(select)).select_by_value(value)

    def upload(self, file: Path) -> None:
        self.one("#file").send_keys(str(file))


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)


def test_an_upload_shows_its_neighbors(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(
        lambda: page.labels() == ["red"] * 10 + page.labels()[10:] and len(page.labels()) == 12
    )
    assert page.one("#asked").text == "query.png"
    assert "search" in page.one("#time").text and "encoding" in page.one("#time").text
    page.wait(lambda: all(
        page.browser.execute_script("return arguments[0].naturalWidth", image) > 0
        for image in page.all("#hits img")
    ))  # fmt: skip
    assert page.all("#hits .right") == page.all("#hits .wrong") == [], (
        "the label of an upload is unknown"
    )


def test_different_distances_are_shown_with_enough_digits(page: Page) -> None:
    assert page.far(0.5, 0.25, 0.5) == ["0.5", "0.25", "0.5"]
    assert page.far(0.0001213, 0.0001251, 0.00012512) == ["0.0001213", "0.0001251", "0.00012512"]
    assert page.far(0, 5.96e-8, 0.3333333) == ["0", "5.96e-8", "0.333"]
    assert page.far() == []


def test_a_click_searches_by_that_image_and_back_returns(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    first = page.all("#hits .card")[0]
    name = first.get_attribute("title")
    first.click()
    page.wait(lambda: page.one("#asked").text == f"red · {name}")
    page.wait(lambda: page.labels()[:9] == ["red"] * 9)
    assert len(page.all("#hits .right")) == 9 and len(page.all("#hits .wrong")) == 3
    assert page.one("#heading").text == "Neighbours: 9 of 12 right"
    second = page.all("#hits .card")[-1].get_attribute("title")
    page.all("#hits .card")[-1].click()
    page.wait(lambda: page.one("#asked").text.endswith(second))
    page.browser.back()
    page.wait(lambda: page.one("#asked").text.endswith(name))
    page.browser.back()
    page.wait(lambda: page.one("#asked").text == "query.png")


def test_label_k_and_metric_change_the_results(page: Page, folder: Path) -> None:
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    page.choose("#label", "blue")
    page.wait(lambda: set(page.labels()) == {"blue"})
    assert {each.text for each in page.all("#items .what")} == {"blue"}
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
    at = page.browser.execute_script(
        "const at = places(), box = document.getElementById('map').getBoundingClientRect();"
        "const far = (i, j) => Math.hypot(at.x(i) - at.x(j), at.y(i) - at.y(j));"
        "const all = state.map.ids.map((_, i) => i);"
        "const others = (i) => all.filter((j) => j !== i);"
        "const apart = all.map((i) => Math.min(...others(i).map((j) => far(i, j))));"
        "const i = apart.indexOf(Math.max(...apart));"
        "return [at.x(i) - box.width / 2, at.y(i) - box.height / 2, state.map.ids[i]]"
    )
    from selenium.webdriver import ActionChains

    canvas = page.one("#map")
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(page.browser).move_to_element_with_offset(
        canvas, round(at[0]), round(at[1])
    ).click().perform()
    page.wait(lambda: len(page.labels()) == 12)
    assert page.one("#asked").text.split(" · ")[1] == at[2]


def test_an_error_is_shown_until_the_next_search(page: Page, folder: Path) -> None:
    page.upload(folder / "bad.png")
    page.wait(lambda: page.one("#error").is_displayed())
    assert "not an image" in page.one("#error").text
    page.upload(folder / "query.png")
    page.wait(lambda: len(page.labels()) == 12)
    assert not page.one("#error").is_displayed()


def test_the_page_works_by_keyboard_alone(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    keys = ActionChains(page.browser)
    keys.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER).perform()
    page.wait(lambda: len(page.labels()) == 12)
    ActionChains(page.browser).send_keys("/").perform()
    assert page.browser.switch_to.active_element.get_attribute("id") == "label"


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
    # The upload that is not an image is the only refused request.
    assert all("status of 400" in each["message"] for each in severe), severe
