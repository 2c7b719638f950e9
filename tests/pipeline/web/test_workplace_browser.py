"""The viewer as a workplace, in a real browser: many slides, two libraries, maps, measuring, keys, a phone's screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_plus

import cv2
import httpx
import numpy as np
import pytest

import tests.support.slides as make
from pipeline.adaptation.corrections import read_corrections
from tests.pipeline.export.test_measure import write_boxes
from tests.support.browser import run_drawn, viewed
from tests.support.chromium import (
    PHONE,
    ActionChains,
    By,
    Driver,
    Keys,
    canvas,
    link,
    opened,
    phone,
    settled,
    until,
)
from tests.support.synthetic import MPP, Drawn, draw_slide

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_complaints")]

BLURRED_FROM = 512


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_slide(1024, 700)


@pytest.fixture(scope="module")
def result(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result whose slide was blurred on the right after the run."""
    folder = tmp_path_factory.mktemp("workplace")
    done = run_drawn(drawn, folder)
    noise = np.random.default_rng(0).normal(0, 6, drawn.image.shape)
    image = np.clip(drawn.image + noise, 0, 255).astype(np.uint8)
    image[:, BLURRED_FROM:] = cv2.GaussianBlur(image, (0, 0), 2 / MPP)[:, BLURRED_FROM:]
    make.write_image(folder / "tile.png", image)
    return done


@pytest.fixture(scope="module")
def address(browser: Driver, result: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rois = write_boxes(tmp_path_factory.mktemp("rois") / "rois.geojson", {"left part": (0, 0, 300, 700)})
    with viewed(result, "--regions", str(rois)) as url:
        yield url


def press(browser: Driver, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def column(browser: Driver, name: str, legend: str = "labels") -> list[int]:
    cells = browser.find_elements(By.CSS_SELECTOR, f"#{legend} .{name}")
    return [int(cell.text.replace(",", "") or -1) for cell in cells]


def shown_counts(counts: list[int], facts: dict[str, object]) -> list[int]:
    """Those that the legend lists: of labels that are given, or that some nucleus has."""
    labels = next(one for one in facts["libraries"] if one["name"] == "PanNuke")["labels"]  # type: ignore[index, attr-defined]
    return [n for n, label in zip(counts, labels, strict=True) if label["given"] or label["count"]]


def overflows(browser: Driver) -> bool:
    return bool(browser.execute_script("return document.documentElement.scrollWidth > innerWidth"))


def test_the_legend_counts_what_is_in_sight(browser: Driver, address: str) -> None:
    facts = httpx.get(f"{address}api/result").json()
    opened(browser, f"{address}#x=300&y=300&zoom=4")
    x0, y0, x1, y1 = browser.execute_script(
        "const b = viewer.viewport.getBounds(); return [b.x, b.y, b.x + b.width, b.y + b.height].map((e) => e * 1024)"
    )
    query = {"library": "PanNuke", "box": f"{x0},{max(y0, 0)},{x1},{y1}"}
    counts = shown_counts(httpx.get(f"{address}api/counts", params=query).json(), facts)
    assert 0 < sum(counts) < facts["nuclei"] / 2
    until(browser, lambda b: column(b, "sight") == counts)
    assert browser.find_element(By.ID, "sight").text.startswith(f"{sum(counts)} in sight on ")
    press(browser, "0")
    until(browser, lambda b: column(b, "sight") == column(b, "count"))
    assert sum(column(browser, "count")) == facts["nuclei"]


def test_two_libraries_are_compared_at_a_divider(browser: Driver, address: str) -> None:
    place = "x=500&y=350&zoom=2"
    alone = []
    for library in ("PanNuke", "NuCLS"):
        opened(browser, f"{address}#{place}&library={library}")
        alone.append(canvas(browser))
    assert (alone[0] != alone[1]).any()
    opened(browser, f"{address}#{place}&library=PanNuke")
    browser.find_element(By.CSS_SELECTOR, "#compare option[value=NuCLS]").click()
    until(browser, lambda b: link(b).get("right") == "NuCLS")
    settled(browser, layers=3)

    def halves_are_right(share: float) -> None:
        both, at = canvas(browser), round(browser.find_element(By.ID, "slide").rect["width"] * share) - 60
        for part, one in ((np.s_[:, : at - 20], alone[0]), (np.s_[:, at + 20 :], alone[1])):  # beside its focus ring
            assert np.abs(both[part].astype(int) - one[part]).max() <= 8  # a clipped layer is rounded otherwise

    halves_are_right(0.5)
    until(browser, lambda b: sum(column(b, "sight", "right-labels")) == sum(column(b, "sight")) > 0)
    divider = browser.find_element(By.ID, "divider")
    ActionChains(browser).click_and_hold(divider).move_by_offset(-200, 10).release().perform()
    share = float(link(browser)["divider"])
    assert share == pytest.approx(0.5 - 200 / browser.find_element(By.ID, "slide").rect["width"], abs=0.01)
    settled(browser, layers=3)
    halves_are_right(share)
    divider.send_keys(Keys.ARROW_RIGHT)
    assert float(link(browser)["divider"]) == pytest.approx(share + 0.02, abs=0.001)
    assert divider.get_attribute("aria-valuenow") == str(round(100 * (share + 0.02)))
    browser.execute_script("document.activeElement.blur()")
    url = browser.current_url
    opened(browser, url, layers=3)
    assert browser.current_url == url
    press(browser, "c")
    until(browser, lambda b: "right" not in link(b))
    settled(browser)
    np.testing.assert_array_equal(canvas(browser), alone[0])
    press(browser, "c", "v")
    until(browser, lambda b: link(b).get("right") == "BreCaHAD")


def test_heat_maps_are_shown_with_their_scale(browser: Driver, address: str) -> None:
    opened(browser, f"{address}#x=500&y=350&zoom=1")
    before = canvas(browser)
    for kind, words in (("density", "per mm²"), ("certainty", "≤ 0.4")):
        press(browser, "t")
        until(browser, lambda b, kind=kind: link(b).get("heat") == kind)
        settled(browser, layers=3)
        until(browser, lambda b, words=words: words in b.find_element(By.ID, "heat-scale").text)
        assert np.abs(canvas(browser).astype(int) - before).mean() > 10
        url, now = browser.current_url, canvas(browser)
        opened(browser, url, layers=3)
        np.testing.assert_array_equal(canvas(browser), now)
    press(browser, "t")
    until(browser, lambda b: "heat" not in link(b))
    settled(browser)
    np.testing.assert_array_equal(canvas(browser), before)
    assert not browser.find_element(By.ID, "heat-scale").is_displayed()


def test_places_of_poor_quality_are_shown_and_their_nuclei_hidden(browser: Driver, address: str, drawn: Drawn) -> None:
    opened(browser, f"{address}#x=512&y=350&zoom=1")
    before = canvas(browser)
    assert not browser.find_element(By.ID, "only-good-toggle").is_displayed()
    press(browser, "o")
    until(browser, lambda b: link(b).get("quality") == "show")
    settled(browser, layers=3)
    assert "of the tissue out of focus" in browser.find_element(By.ID, "quality-said").text
    changed = (canvas(browser) != before).any(2)
    middle = round(browser.find_element(By.ID, "slide").rect["width"] / 2) - 60
    assert not changed[:, : middle - 3].any()
    assert changed[:, middle + 3 :].mean() > 0.1
    blurred = httpx.get(f"{address}api/quality").json()["nuclei"]
    assert blurred == pytest.approx((drawn.centres[:, 0] >= BLURRED_FROM).sum(), rel=0.1)
    browser.find_element(By.ID, "only-good").click()
    until(browser, lambda b: link(b).get("quality") == "good")
    until(browser, lambda b: sum(column(b, "count")) == len(drawn.centres) - blurred)
    url = browser.current_url
    opened(browser, url, layers=3)
    until(browser, lambda b: sum(column(b, "count")) == len(drawn.centres) - blurred)
    assert link(browser)["quality"] == "good"
    press(browser, "o")
    until(browser, lambda b: "quality" not in link(b))
    until(browser, lambda b: sum(column(b, "count")) == len(drawn.centres))


def test_a_region_is_outlined_and_chooses_its_nuclei(browser: Driver, address: str, drawn: Drawn) -> None:
    opened(browser, address)
    inside = int((drawn.centres[:, 0] < 300).sum())
    outline = browser.find_element(By.CSS_SELECTOR, "#drawings .region").rect  # with its line
    scale = browser.execute_script("return viewer.viewport.getZoom(true) * viewer.viewport.getContainerSize().x / 1024")
    assert outline["width"] == pytest.approx(300 * scale, abs=4)
    press(browser, "r")
    until(browser, lambda b: unquote_plus(link(b).get("region", "")) == "left part")
    until(browser, lambda b: sum(column(b, "count")) == inside)
    assert browser.find_element(By.ID, "region-said").text.startswith(f"Tumor, {inside} nuclei, ")
    opened(browser, browser.current_url)
    until(browser, lambda b: sum(column(b, "count")) == inside)
    press(browser, "r")
    until(browser, lambda b: "region" not in link(b))
    until(browser, lambda b: sum(column(b, "count")) == len(drawn.centres))


def test_a_distance_is_measured_by_mouse_and_by_keys(browser: Driver, address: str) -> None:
    opened(browser, f"{address}#x=500&y=350&zoom=4")
    slide = browser.find_element(By.ID, "slide")
    press(browser, "m")
    assert browser.find_element(By.ID, "measure").get_attribute("aria-pressed") == "true"
    move = ActionChains(browser).move_to_element_with_offset(slide, -100, 40).click_and_hold()
    move.move_by_offset(96, -100).move_by_offset(0, -28).release().perform()
    length = browser.find_element(By.CSS_SELECTOR, "#drawings .length")
    assert length.text == "10 µm"  # 160 pixels of the screen, 40 of the slide
    # Two clicks do the same, and the line stays at its place on the slide.
    move = ActionChains(browser).move_to_element_with_offset(slide, -80, 0).click()
    move.move_by_offset(320, 0).click().perform()
    assert length.text == "20 µm"
    before = browser.find_element(By.CSS_SELECTOR, "#drawings .ruler").rect
    press(browser, "-")
    settled(browser)
    until(browser, lambda b: abs(float(link(b)["zoom"]) - 2.5) < 0.01)
    now = browser.find_element(By.CSS_SELECTOR, "#drawings .ruler").rect
    assert now["width"] == pytest.approx(before["width"] / 1.6, abs=5)
    press(browser, "+")
    until(browser, lambda b: abs(float(link(b)["zoom"]) - 4) < 0.01)
    settled(browser)
    # By keys: 120 pixels to the right are 30 of the slide.
    press(browser, Keys.ENTER, Keys.ARROW_RIGHT)
    settled(browser)
    until(browser, lambda b: abs(float(link(b)["x"]) - 530) < 0.2)
    press(browser, Keys.ENTER)
    assert length.text == "7.5 µm"
    assert browser.find_element(By.ID, "said").text == "Distance: 7.5 µm"
    press(browser, Keys.ESCAPE)
    assert browser.find_element(By.ID, "measure").get_attribute("aria-pressed") == "false"
    assert length.text == ""
    assert not browser.find_element(By.ID, "nucleus").is_displayed()


def test_every_key_is_listed_and_the_middle_is_chosen_by_one(browser: Driver, address: str, drawn: Drawn) -> None:
    x, y = drawn.centres[40]
    opened(browser, f"{address}#x={x}&y={y}&zoom=4")
    press(browser, "?")
    dialog = browser.find_element(By.ID, "keys")
    until(browser, lambda _: dialog.is_displayed())
    listed = [one.text for one in dialog.find_elements(By.CSS_SELECTOR, "kbd")]
    assert len(listed) == len(set(listed)) > 20
    assert {"n", "p", "f", "h", "0", "Esc", "Enter", "c", "t", "o", "r", "m", "d", "s", "z", "b", "Shift+X"} <= set(
        listed
    )
    press(browser, "n")  # nothing happens behind it
    press(browser, Keys.ESCAPE)
    until(browser, lambda _: not dialog.is_displayed())
    assert "nucleus" not in link(browser)
    browser.execute_script("document.activeElement.blur()")
    press(browser, Keys.ENTER)
    until(browser, lambda b: "nucleus" in link(b))
    nucleus = httpx.get(f"{address}api/nuclei/{link(browser)['nucleus']}").json()
    assert (nucleus["x"], nucleus["y"]) == pytest.approx((x, y), abs=0.02)
    # Label systems are one stop of Tab, and arrow keys go through them.
    radios = browser.find_elements(By.CSS_SELECTOR, "#libraries [role=radio]")
    assert [one.get_attribute("tabindex") for one in radios] == ["-1"] * 4 + ["0"]
    radios[-1].send_keys(Keys.ARROW_LEFT)
    until(browser, lambda b: link(b)["library"] == "MoNuSAC")
    assert browser.switch_to.active_element.text == "MoNuSAC"


def test_a_nucleus_is_corrected_on_a_phone(browser: Driver, drawn: Drawn, result: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(result, tmp_path / "copy"))
    x, y = drawn.centres[40]
    with viewed(folder) as address, phone(browser):
        opened(browser, f"{address}#x={x}&y={y}&zoom=4")
        assert not overflows(browser)
        slide = browser.find_element(By.ID, "slide")
        ActionChains(browser).move_to_element(slide).click().perform()
        until(browser, lambda b: b.find_element(By.ID, "nucleus").is_displayed())
        buttons = browser.find_elements(
            By.CSS_SELECTOR, "#card-libraries button, #give button, #card-suggest, #card-undo"
        )
        assert len(buttons) == 5 + 6 + 2
        for button in buttons:  # in sight without scrolling, and large enough for a finger
            box = button.rect
            assert box["x"] >= 0, button.text
            assert box["x"] + box["width"] <= PHONE[0], button.text
            assert slide.rect["height"] <= box["y"] <= PHONE[1] - box["height"], button.text
            assert box["height"] >= 36, button.text
        outline = browser.find_element(By.CLASS_NAME, "chosen-outline").rect
        assert outline["y"] + outline["height"] < slide.rect["height"]
        browser.find_element(By.CSS_SELECTOR, "#card-libraries button[value=CoNSeP]").click()
        until(browser, lambda b: "In CoNSeP it is" in b.find_element(By.ID, "chosen").text)
        browser.find_elements(By.CSS_SELECTOR, "#give button")[1].click()
        until(browser, lambda b: b.execute_script("return document.body.dataset.corrections") == "1")
        said = [(one.library, one.label) for one in read_corrections(folder / "corrections.csv")]
        assert said == [("CoNSeP", "inflammatory")]
        number = link(browser)["nucleus"]
        browser.find_element(By.ID, "card-suggest").click()
        until(browser, lambda b: link(b).get("nucleus") not in (None, number))
        browser.find_element(By.ID, "card-undo").click()
        until(browser, lambda b: b.execute_script("return document.body.dataset.corrections") == "0")
        assert not (folder / "corrections.csv").exists()
        browser.find_element(By.ID, "close").click()
        assert not browser.find_element(By.ID, "nucleus").is_displayed()
        assert not overflows(browser)
        browser.get("about:blank")  # it asks for nothing when the server is gone


@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_one_moves_between_the_slides_of_a_folder(browser: Driver, result: Path, tmp_path: Path, screen: str) -> None:
    for name in ("first", "second"):
        shutil.copytree(result, tmp_path / "results" / name)
    if screen == "phone":
        with phone(browser):
            _move_between_slides(browser, tmp_path / "results")
    else:
        _move_between_slides(browser, tmp_path / "results")


def _move_between_slides(browser: Driver, results: Path) -> None:
    with viewed(results) as address:
        browser.get(address)
        until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#slides tr")) == 2)
        assert not overflows(browser)
        until(browser, lambda b: b.execute_script("return document.querySelector('#slides img').naturalWidth") == 160)
        assert browser.title == "results – nucpipe"
        assert browser.find_element(By.ID, "facts").text.startswith("2 slides, ")
        browser.find_element(By.CSS_SELECTOR, "#library option:nth-child(3)").click()
        until(browser, lambda b: "CoNSeP" in b.find_element(By.ID, "labels-of").get_attribute("textContent"))
        until(browser, lambda b: link(b)["library"] == "CoNSeP")
        browser.find_element(By.ID, "find").send_keys("nothing like it")
        until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, "#slides tr"))
        browser.find_element(By.ID, "find").clear()
        browser.find_element(By.ID, "find").send_keys("t")
        until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#slides tr")) == 2)
        browser.find_element(By.CSS_SELECTOR, "#slides a").click()
        until(browser, lambda b: b.execute_script("return Boolean(window.viewer && viewer.world.getItemCount())"))
        settled(browser)
        assert link(browser)["library"] == "CoNSeP"
        assert browser.find_element(By.ID, "which").text == "1 of 2"
        assert not browser.find_element(By.ID, "previous-slide").is_enabled()
        assert not overflows(browser)
        press(browser, "]")
        until(browser, lambda b: "/slides/second/" in b.current_url)
        until(browser, lambda b: b.find_element(By.ID, "which").text == "2 of 2")
        settled(browser)
        assert link(browser)["library"] == "CoNSeP"
        browser.find_element(By.ID, "previous-slide").click()
        until(browser, lambda b: "/slides/first/" in b.current_url and b.find_element(By.ID, "which").text == "1 of 2")
        settled(browser)
        press(browser, "l")
        until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#slides tr")) == 2)
        assert browser.current_url.partition("#")[0] == address
        browser.get("about:blank")
