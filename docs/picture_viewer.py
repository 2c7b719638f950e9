"""Takes the pictures of adapt.md: the viewer in Chromium, on a copy of the demo's result that is corrected.

python docs/picture_viewer.py results/CMU-1-Small-Region docs
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
from selenium import webdriver

import nucpipe

SIZE = 1200, 640
PLACE = "x=1190&y=1780&zoom=1.6&library=PanNuke"
FOLLICLE = [[1000, 1500], [1300, 1500], [1300, 2150], [1000, 2150]]
GIVEN = {"neoplastic": ("epithelial", 14), "inflammatory": ("inflammatory", 5), "connective": ("connective", 5)}
"""For each label of the run, the label that it is given, and to how many nuclei of the follicle and round it."""


def start_browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return browser


def screenshot(browser: webdriver.Chrome, url: str) -> np.ndarray:
    """Return the page once all its tiles are there; BGR."""
    browser.get("about:blank")
    browser.get(url)
    ready = """const w = window.viewer?.world, n = w?.getItemCount() ?? 0;
        return n > 1 && [...Array(n).keys()].every((k) => w.getItemAt(k).getFullyLoaded())"""
    while not browser.execute_script(ready):
        time.sleep(0.2)
    time.sleep(2)  # the counts
    return cv2.imdecode(np.frombuffer(browser.get_screenshot_as_png(), np.uint8), cv2.IMREAD_COLOR)


def correct(client: httpx.Client, result: Path) -> int:
    """Correct some nuclei; return the number of one of them."""
    inside = np.array(client.post("api/nuclei/inside?library=PanNuke", json={"polygon": FOLLICLE}).json())
    labels = nucpipe.open(result).labels("PanNuke").to_numpy()[inside]
    corrected = []
    for label, (given, count) in GIVEN.items():
        numbers = inside[labels == label]
        chosen = numbers[:: max(1, len(numbers) // count)][:count].tolist()
        answer = client.post("api/corrections", json={"numbers": chosen, "library": "PanNuke", "label": given})
        answer.raise_for_status()
        corrected += chosen
    return corrected[GIVEN["neoplastic"][1] // 2]


def main(result: str, docs: str) -> None:
    """Take both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(result, Path(folder) / Path(result).name)
        (copy / "corrections.csv").unlink(missing_ok=True)
        command = [sys.executable, "-m", "nucpipe", "view", str(copy), "--no-browser", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None
            browser = start_browser()
            try:
                before = screenshot(browser, f"{found[0]}#{PLACE}")
                with httpx.Client(base_url=found[0], timeout=60) as client:
                    number = correct(client, copy)
                after = screenshot(browser, f"{found[0]}#{PLACE}")
                card = screenshot(browser, f"{found[0]}#{PLACE}&nucleus={number}")
            finally:
                browser.quit()
                server.terminate()
    gap = np.full((SIZE[1], 12, 3), 255, np.uint8)
    tissue = np.s_[:, 80 : SIZE[0] - 320 - 190]
    both = np.hstack([before[tissue], gap, after[tissue]])
    for name, picture in (("adapt-click.jpg", card), ("adapt-before-after.jpg", both)):
        small = cv2.resize(picture, None, fx=0.85, fy=0.85, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(Path(docs) / name), small, [cv2.IMWRITE_JPEG_QUALITY, 76])


if __name__ == "__main__":
    main(*sys.argv[1:])
