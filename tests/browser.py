"""The demo in a real browser: Debian's chromium without a window, driven by selenium."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NO_BROWSER = "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
DESKTOP, PHONE = (1280, 900), (390, 844)
SECONDS = 60


@contextlib.contextmanager
def served(recommender, history: list[str]) -> Iterator[str]:
    """The address of a demo that runs beside the test."""
    from llamarec_lkg.serving.demo import build_demo, look

    blocks = build_demo(recommender, history)
    _, address, _ = blocks.launch(**look(), prevent_thread_lock=True, quiet=True, inbrowser=False)
    try:
        yield address
    finally:
        blocks.close(verbose=False)


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars",
                         "force-prefers-reduced-motion", f"user-data-dir={profile}"):  # fmt: skip
            options.add_argument(f"--{argument}")
        service = webdriver.ChromeService(DRIVER, env={**os.environ, "HOME": profile})
        driver = webdriver.Chrome(options, service)
        try:
            yield driver
        finally:
            driver.quit()


class Page:
    """The demo as somebody sees it. Everything waits until it is there."""

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver, self.address = driver, address

    def open(self, size: tuple[int, int], theme: str = "light") -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(f"{self.address}?__theme={theme}")
        self.until(lambda: self.titles() and self.find("#lkg-history input"))

    def until(self, condition):
        def met(_):
            with contextlib.suppress(Exception):  # elements come and go while the page is drawn
                return condition()

        return WebDriverWait(self.driver, SECONDS, poll_frequency=0.1).until(met)

    def find(self, css: str):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, element) -> None:
        """From where it is seen: what covers it is the reader's trouble, too."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def titles(self) -> list[str]:
        return [element.text for element in self.find("#lkg-ranked .lkg-title")]

    def sliders(self) -> dict[str, object]:
        """Label -> the slider's handle."""
        return {
            element.find_element(By.CSS_SELECTOR, "label, .head").text.split("\n")[0]: element.find_element(
                By.CSS_SELECTOR, "input[type=range]"
            )
            for element in self.find(".lkg-slider")
            if element.is_displayed()
        }

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        root = "document.documentElement"
        return self.driver.execute_script(f"return {root}.scrollWidth - {root}.clientWidth")

    def picture(self, path: Path, height: int | None = None) -> None:
        """A PNG of the whole page, or of its first `height` pixels."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        if height is not None:
            size["height"] = min(size["height"], height)
        clip = {**{"x": 0, "y": 0, "scale": 1}, "width": size["width"], "height": size["height"]}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))
