"""Chromium for the tests of pages, and how these pages are looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

__all__ = ["ActionChains", "By", "Driver", "Keys"]

Driver = webdriver.Chrome
PHONE = (390, 844)


@contextmanager
def chromium() -> Iterator[Driver]:
    """Chromium without a screen; the test is skipped where there is none."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("no chromium with chromedriver here (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(paths[0])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(paths[1])))
    yield driver
    driver.quit()


@contextmanager
def without_complaints(browser: Driver) -> Iterator[None]:
    """The console stays empty: no error in the page, nothing that the browser refused.

    That a tile came after its layer was replaced is no fault: OpenSeadragon says so whenever one chooses quickly.
    """
    yield
    messages = [line["message"] for line in browser.get_log("browser")]
    complaints = [message for message in messages if "loaded before reset" not in message]
    assert not complaints, complaints


@contextmanager
def phone(browser: Driver) -> Iterator[None]:
    """A phone's screen, which is narrower than a window may be."""
    width, height = PHONE
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def until(browser: Driver, what: Callable[[Driver], Any]) -> Any:
    return WebDriverWait(browser, 30, 0.1).until(what)


def settled(browser: Driver, layers: int = 2) -> None:
    """All tiles of so many layers are there and nothing moves."""
    script = """
        const w = viewer.world, n = w.getItemCount();
        return n === arguments[0] && document.body.dataset.undrawn === "0"
            && [...Array(n).keys()].every((k) => w.getItemAt(k).getFullyLoaded())
            && !viewer.isAnimating?.()
            && Math.abs(viewer.viewport.getZoom(true) - viewer.viewport.getZoom()) < 1e-6;"""
    until(browser, lambda b: b.execute_script(script, layers))
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def opened(browser: Driver, url: str, layers: int = 2) -> None:
    browser.get("about:blank")  # else a page that differs in its hash alone would stay
    browser.get(url)
    until(browser, lambda b: b.execute_script("return Boolean(window.viewer && viewer.world.getItemCount())"))
    settled(browser, layers)


def canvas(browser: Driver) -> np.ndarray:
    """The part of the screen that shows the slide, without the controls that lie on it: RGB."""
    png = browser.find_element(By.ID, "slide").screenshot_as_png
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image[150:-60, 60:, ::-1])


def link(browser: Driver) -> dict[str, str]:
    return dict(pair.split("=") for pair in browser.current_url.partition("#")[2].split("&"))


def seen(image: np.ndarray, colour: list[int]) -> int:
    """Pixels of that colour, as an outline of full opacity shows it."""
    return int((np.abs(image.astype(int) - colour).max(2) < 6).sum())
