"""The page of `retr serve` in a browser, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 20  # for any action on the page
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210)}


class Page:
    """The page in the browser, with its elements."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get_log("performance")
        browser.get(address)
        self.wait(lambda: len(self.all("#items .card")) == 24)

    def reload(self) -> None:
        self.browser.refresh()
        self.wait(lambda: len(self.all("#items .card")) == 24)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds. Raises TimeoutException after `TIMEOUT_SECONDS`."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(
            self.browser,
            TIMEOUT_SECONDS,
            poll_frequency=0.05,
            ignored_exceptions=[StaleElementReferenceException],
        )
        patient.until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def module(self, name: str, script: str, *arguments: Any) -> Any:
        """Return the result of a script, in which `module` is a module of the page."""
        code = (
            "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);"
            f"import('/{name}').then((module) => {{ {script} }}).then(done)"
        )
        return self.browser.execute_async_script(code, *arguments)

    def labels(self) -> list[str]:
        """Return the labels of the hits, all at once, as they change meanwhile."""
        script = (
            "return [...document.querySelectorAll('#hits .what')].map((each) =>"
            " [...each.childNodes].at(-1).textContent)"
        )
        return [*self.browser.execute_script(script)]

    def chips(self) -> list[str]:
        script = "return [...document.querySelectorAll('.chip')].map((each) => each.title)"
        return [*self.browser.execute_script(script)]

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self) -> Any:
        return self.browser.switch_to.active_element

    def click(self, selector: str) -> None:
        """Click the first such element, even if it shows only under the pointer.

        It is found and clicked in one step: an answer may replace it meanwhile.
        """
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def set(self, selector: str, value: str) -> None:
        """Set an input, as its user does."""
        script = (
            "arguments[0].value = arguments[1];"
            "for (const kind of ['input', 'change'])"
            " arguments[0].dispatchEvent(new Event(kind, { bubbles: true }))"
        )
        self.browser.execute_script(script, self.one(selector), value)

    def choose(self, select: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(select)).select_by_value(value)

    def upload(self, file: Path) -> None:
        self.one("#file").send_keys(str(file))
