"""The viewer's page in a real browser: Debian's chromium without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from pipeline.adaptation.corrections import read_corrections
from tests.support.browser import run_drawn, viewed
from tests.support.chromium import (
    ActionChains,
    By,
    Driver,
    Keys,
    canvas,
    link,
    opened,
    seen,
    settled,
    until,
)
from tests.support.synthetic import Drawn, draw_slide

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_complaints")]

SYSTEMS = ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_slide(700, 600)


@pytest.fixture(scope="module")
def address(browser: Driver, drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with viewed(run_drawn(drawn, tmp_path_factory.mktemp("viewed"))) as url:
        yield url


def colours_of(address: str, library: str) -> dict[str, list[int]]:
    facts = httpx.get(f"{address}api/result").json()
    labels = next(one for one in facts["libraries"] if one["name"] == library)["labels"]
    return {label["name"]: label["colour"] for label in labels if label["count"] > 20}


def test_the_slide_and_its_nuclei_are_seen_and_nothing_comes_from_elsewhere(browser: Driver, address: str) -> None:
    opened(browser, address)
    image = canvas(browser)
    assert seen(image, [235, 190, 215]) > 10_000  # the drawn slide's ground
    for colour in colours_of(address, "PanNuke").values():
        assert seen(image, colour) > 100
    urls = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert len(urls) > 5
    assert all(url.startswith(address) for url in urls), urls
    assert browser.title == "tile – nucpipe"
    assert browser.find_element(By.ID, "scale-bar").text == "20 µm"


def legend(browser: Driver) -> dict[str, int]:
    """The numbers of nuclei that the legend shows, by label."""
    rows = browser.find_elements(By.CSS_SELECTOR, "#labels label")
    names, counts = ([row.find_element(By.CLASS_NAME, name).text for row in rows] for name in ("name", "count"))
    return {name: int(count.replace(",", "")) for name, count in zip(names, counts, strict=True)}


def test_the_legend_counts_what_is_shown(browser: Driver, address: str) -> None:
    total = httpx.get(f"{address}api/result").json()["nuclei"]
    query = {"library": "PanNuke", "start": total // 2, "count": 1}
    middle = httpx.get(f"{address}api/nuclei/uncertain", params=query).json()[0]["number"]
    p = httpx.get(f"{address}api/nuclei/{middle}").json()["labels"]["PanNuke"][0]["p"]
    opened(browser, f"{address}#library=PanNuke&p={p}")
    counts = httpx.get(f"{address}api/counts", params={"library": "PanNuke", "p": p}).json()
    assert 0 < sum(counts) < total
    until(browser, lambda b: sum(legend(b).values()) == sum(counts))
    assert browser.find_element(By.ID, "facts").text.startswith(f"{sum(counts):,} of {total:,} nuclei")
    row = browser.find_element(By.CSS_SELECTOR, "#labels label")
    row.find_element(By.TAG_NAME, "input").click()
    until(browser, lambda b: b.find_element(By.ID, "facts").text.startswith(f"{sum(counts[1:]):,} of"))
    assert sum(legend(browser).values()) == sum(counts)


def test_classes_are_switched_and_the_least_probable_hidden(browser: Driver, address: str) -> None:
    opened(browser, address)
    by_name = colours_of(address, "PanNuke")
    first, *others = by_name
    row = next(one for one in browser.find_elements(By.CSS_SELECTOR, "#labels label") if first in one.text)
    row.find_element(By.TAG_NAME, "input").click()
    until(browser, lambda b: "off" in link(b))
    settled(browser)
    image = canvas(browser)
    assert seen(image, by_name[first]) == 0
    assert all(seen(image, by_name[name]) > 50 for name in others)
    browser.find_element(By.ID, "none").click()
    until(browser, lambda b: link(b).get("off", "").count("%2C") > 3)
    settled(browser)
    bare = canvas(browser)
    assert all(seen(bare, colour) == 0 for colour in by_name.values())
    browser.find_element(By.ID, "all").click()
    until(browser, lambda b: "off" not in link(b))
    slider = browser.find_element(By.ID, "least-p")
    browser.execute_script("arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", slider)
    until(browser, lambda b: link(b).get("p") == "1")
    settled(browser)
    until(browser, lambda b: set(legend(b).values()) == {0})
    assert browser.find_element(By.ID, "facts").text.startswith("0 of ")
    np.testing.assert_array_equal(canvas(browser), bare)


def test_small_and_unsure_nuclei_are_hidden(browser: Driver, address: str) -> None:
    opened(browser, address)
    by_name = colours_of(address, "PanNuke")
    before = sum(seen(canvas(browser), colour) for colour in by_name.values())
    assert browser.find_element(By.ID, "least-area-value").text == "0 µm²"
    slider = browser.find_element(By.ID, "least-area")
    for value in ("15", "40"):
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, value
        )
        until(browser, lambda b, value=value: link(b).get("area") == value)
        settled(browser)
        now = sum(seen(canvas(browser), colour) for colour in by_name.values())
        assert now == 0 if value == "40" else 0 < now < before
    again = browser.current_url
    opened(browser, again)
    assert browser.find_element(By.ID, "least-area-value").text == "40 µm²"
    slider = browser.find_element(By.ID, "least-detection")
    browser.execute_script("arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", slider)
    until(browser, lambda b: link(b).get("detection") == "1")


def test_a_click_shows_five_labels_and_the_crop(browser: Driver, address: str, drawn: Drawn) -> None:
    x, y = drawn.centres[40]
    opened(browser, f"{address}#x={x}&y={y}&zoom=4")
    slide = browser.find_element(By.ID, "slide")
    assert not browser.find_element(By.ID, "nucleus").is_displayed()
    ActionChains(browser).move_to_element(slide).click().perform()
    until(browser, lambda b: b.find_element(By.ID, "nucleus").is_displayed())
    card = browser.find_element(By.ID, "nucleus")
    assert [one.text for one in card.find_elements(By.CSS_SELECTOR, ".system > b")] == SYSTEMS
    assert len(card.find_elements(By.CSS_SELECTOR, ".bar.chosen")) == 5
    number = int(link(browser)["nucleus"])
    nucleus = httpx.get(f"{address}api/nuclei/{number}").json()
    assert (nucleus["x"], nucleus["y"]) == pytest.approx((x, y), abs=0.02)
    best = nucleus["labels"]["MoNuSAC"][0]
    assert f"{best['name']}\n{best['p']:.2f}" in card.text
    until(browser, lambda b: b.execute_script("return document.getElementById('crop').naturalWidth") == 224)
    # The outline lies round the place that was clicked.
    box = browser.find_element(By.CLASS_NAME, "chosen-outline").rect
    middle = slide.rect["x"] + slide.rect["width"] / 2, slide.rect["y"] + slide.rect["height"] / 2
    assert (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) == pytest.approx(middle, abs=8)
    browser.find_element(By.ID, "close").click()
    assert "nucleus" not in link(browser)
    assert not card.is_displayed()


def test_the_least_certain_are_visited(browser: Driver, address: str) -> None:
    opened(browser, f"{address}#library=CoNSeP")
    query = {"library": "CoNSeP", "start": 0, "count": 14}
    expected = [one["number"] for one in httpx.get(f"{address}api/nuclei/uncertain", params=query).json()]
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#gallery img")) == 12)
    visited = []
    for _ in range(14):  # over the end of the first page
        before = link(browser).get("nucleus")
        ActionChains(browser).send_keys("n").perform()
        until(browser, lambda b, before=before: link(b).get("nucleus") not in (None, before))
        visited.append(int(link(browser)["nucleus"]))
    assert visited == expected
    settled(browser)
    nucleus = httpx.get(f"{address}api/nuclei/{visited[-1]}").json()
    until(browser, lambda b: abs(float(link(b)["x"]) - nucleus["x"]) < 0.2)
    assert float(link(browser)["y"]) == pytest.approx(nucleus["y"], abs=0.2)


def test_a_link_leads_back_to_the_place(browser: Driver, address: str) -> None:
    opened(browser, f"{address}#x=300&y=200.5&zoom=2.5&library=NuCLS&p=0.03&off=1&nucleus=7")
    ActionChains(browser).send_keys("3").perform()  # the third label system
    until(browser, lambda b: link(b)["library"] == "CoNSeP")
    settled(browser)
    assert link(browser) == {
        "x": "300.0", "y": "200.5", "zoom": "2.500", "library": "CoNSeP", "p": "0.03", "nucleus": "7",
    }  # fmt: skip
    url, before = browser.current_url, canvas(browser)
    opened(browser, address)
    assert np.abs(canvas(browser).astype(int) - before).mean() > 5
    opened(browser, url)
    assert browser.current_url == url
    # The card was painted in parts before, and whole now: its round corners differ by a rounding.
    assert np.abs(canvas(browser).astype(int) - before).max() <= 3
    opened(browser, f"{address}#x=nonsense&zoom=-1&library=Mars&off=a,b&nucleus=999999999")
    assert link(browser)["library"] == "PanNuke"


def test_the_whole_slide_is_seen_first(browser: Driver, address: str) -> None:
    opened(browser, address)
    x, y, width, height = browser.execute_script(
        "const b = viewer.viewport.getBounds(); return [b.x, b.y, b.width, b.height]"
    )
    assert max(x, y) <= 0.001
    assert x + width >= 0.999
    assert y + height >= 600 / 700 - 0.001


def test_outlines_are_filled_or_not(browser: Driver, address: str) -> None:
    opened(browser, f"{address}#x=350&y=300&zoom=3")
    colours = colours_of(address, "PanNuke")
    filled = canvas(browser)
    ActionChains(browser).send_keys("f").perform()
    until(browser, lambda b: link(b).get("fill") == "0")
    settled(browser)
    bare = canvas(browser)
    for colour in colours.values():
        assert seen(bare, colour) > 0.9 * seen(filled, colour) > 100  # the lines themselves
    changed = np.abs(bare.astype(int) - filled).max(2) > 3
    assert changed.mean() > 0.02
    browser.find_element(By.ID, "filled").click()
    until(browser, lambda b: "fill" not in link(b))
    settled(browser)
    np.testing.assert_array_equal(canvas(browser), filled)


@pytest.mark.parametrize("window", [(1200, 900), (500, 800)], ids=["desktop", "phone"])
def test_the_card_never_hides_the_nucleus_that_was_clicked(
    browser: Driver, address: str, drawn: Drawn, window: tuple[int, int]
) -> None:
    browser.set_window_size(*window)
    try:
        x, y = drawn.centres[40]
        opened(browser, f"{address}#x={x}&y={y}&zoom=4")
        slide = browser.find_element(By.ID, "slide")
        width, height = slide.rect["width"], slide.rect["height"]
        sides = set()
        for dx, dy in ((-0.3, -0.2), (0.3, 0.2), (-0.3, 0.3), (0.0, 0.0), (0.3, -0.3)):
            opened(browser, f"{address}#x={x - dx * width / 4}&y={y - dy * height / 4}&zoom=4")
            slide = browser.find_element(By.ID, "slide")
            move = ActionChains(browser).move_to_element_with_offset(slide, int(dx * width), int(dy * height))
            move.click().perform()
            until(browser, lambda b: b.find_element(By.ID, "nucleus").is_displayed())
            settled(browser)
            card = browser.find_element(By.ID, "nucleus")
            a, b = card.rect, browser.find_element(By.CLASS_NAME, "chosen-outline").rect
            apart = (
                a["x"] + a["width"] <= b["x"]
                or b["x"] + b["width"] <= a["x"]
                or a["y"] + a["height"] <= b["y"]
                or b["y"] + b["height"] <= a["y"]
            )
            assert apart, (dx, dy, a, b)
            assert "detection" in card.text
            sides.add(card.get_attribute("data-side"))
            assert window[0] > 1000 or a["y"] >= slide.rect["height"] - 1  # on a phone it lies over the panel
        assert window[0] < 1000 or sides == {"left", "right"}
    finally:
        browser.set_window_size(1200, 900)


def corrected(browser: Driver) -> int:
    """How many nuclei the page knows as corrected; -1 before it was told."""
    return int(browser.execute_script("return document.body.dataset.corrections ?? -1"))


def relabelled(browser: Driver, count: int) -> None:
    until(browser, lambda b: corrected(b) == count)
    settled(browser)


def test_corrections_by_key_mouse_and_a_line_recolour_the_slide(
    browser: Driver, drawn: Drawn, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = run_drawn(drawn, tmp_path)
    file = folder / "corrections.csv"
    x, y = drawn.centres[40]
    with viewed(folder) as address:
        facts = httpx.get(f"{address}api/result").json()
        labels = next(one for one in facts["libraries"] if one["name"] == "PanNuke")["labels"]
        opened(browser, f"{address}#x={x}&y={y}&zoom=4")
        before = canvas(browser)
        assert not browser.find_element(By.ID, "label-set").is_displayed()
        ActionChains(browser).move_to_element(browser.find_element(By.ID, "slide")).click().perform()
        until(browser, lambda b: b.find_element(By.ID, "nucleus").is_displayed())
        number = int(link(browser)["nucleus"])
        base = httpx.get(f"{address}api/nuclei/{number}").json()["labels"]["PanNuke"]
        given = base[-1]["name"]  # the least likely one
        place = [label["name"] for label in labels].index(given)
        buttons = browser.find_elements(By.CSS_SELECTOR, "#give button")
        assert [one.text.split("\n")[-1] for one in buttons] == [
            *(label["name"].replace("_", " ") for label in labels[:-1]),
            "not a nucleus",
        ]
        ActionChains(browser).key_down(Keys.SHIFT).send_keys("ABCDE"[place]).key_up(Keys.SHIFT).perform()
        relabelled(browser, 1)
        assert [(c.library, c.label) for c in read_corrections(file)] == [("PanNuke", given)]
        assert browser.find_element(By.ID, "corrected").text == "1 nucleus corrected; all others follow."
        assert "1.00" in browser.find_element(By.CSS_SELECTOR, "#probabilities .system:last-child").text
        pressed = browser.find_elements(By.CSS_SELECTOR, "#give button[aria-pressed=true]")
        assert [one.text.split("\n")[-1] for one in pressed] == [given]
        until(browser, lambda b: "→" in b.find_element(By.ID, "labels").text)
        screenshot = request.config.cache.mkdir("viewer") / "corrected.png"  # to be looked at
        browser.save_screenshot(str(screenshot))
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        settled(browser)
        after = canvas(browser)
        assert seen(after, labels[place]["colour"]) > seen(before, labels[place]["colour"])

        # The labels of the run are one key away.
        ActionChains(browser).send_keys("b").perform()
        until(browser, lambda b: link(b).get("labels") == "base")
        settled(browser)
        np.testing.assert_array_equal(canvas(browser), before)
        until(browser, lambda b: "→" not in b.find_element(By.ID, "labels").text)
        browser.find_element(By.CSS_SELECTOR, "#label-set button[value=adapted]").click()
        until(browser, lambda b: "labels" not in link(b))
        settled(browser)
        np.testing.assert_array_equal(canvas(browser), after)

        # A line round several.
        ActionChains(browser).send_keys("d").perform()
        line = browser.find_element(By.ID, "drawings")
        move = ActionChains(browser).move_to_element_with_offset(line, -180, -180).click_and_hold()
        for dx, dy in ((360, 0), (0, 360), (-360, 0), (0, -300)):
            move = move.move_by_offset(dx, dy)
        move.release().perform()
        until(browser, lambda b: "nuclei: in PanNuke they are" in b.find_element(By.ID, "chosen").text)
        several = int(browser.find_element(By.ID, "chosen").text.split()[0])
        inside = (np.abs(drawn.centres - (x, y)) < 45).all(1)
        assert abs(several - inside.sum()) <= 1
        browser.save_screenshot(str(screenshot.with_name("line.png")))
        browser.find_elements(By.CSS_SELECTOR, "#give button")[place].click()
        relabelled(browser, several)
        assert len(read_corrections(file)) == several

        # Not a nucleus: it goes; and back, step by step.
        ActionChains(browser).send_keys("s").perform()
        until(browser, lambda b: "nucleus" in link(b))
        settled(browser)
        ActionChains(browser).key_down(Keys.SHIFT).send_keys("X").key_up(Keys.SHIFT).perform()
        relabelled(browser, several + 1)
        assert read_corrections(file)[-1].label == "not_a_nucleus"
        ActionChains(browser).send_keys("z").perform()
        relabelled(browser, several)
        browser.find_element(By.ID, "undo").click()
        relabelled(browser, 1)
        ActionChains(browser).send_keys(Keys.ESCAPE, "z").perform()
        until(browser, lambda b: corrected(b) == 0)
        assert not file.exists()
        opened(browser, f"{address}#x={x}&y={y}&zoom=4")
        np.testing.assert_array_equal(canvas(browser), before)
