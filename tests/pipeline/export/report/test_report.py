"""The report: its figures are the store's, it stands alone, and it says what must be said."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import nucpipe
from nucpipe.backends.model_file import fingerprint, read_header
from nucpipe.errors import UsageError
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.export.report import page as page_module
from pipeline.export.report.charts import words
from pipeline.export.report.stats import (
    AREA_EDGES_UM2,
    GALLERY,
    P_EDGES,
    STAIN_EDGES,
    Distribution,
    compute_batch_stats,
    compute_stats,
    merge_stats,
)
from pipeline.export.report.write import report_batch, report_slide
from pipeline.inference.models import find_model
from pipeline.result import open_result, open_results
from pipeline.run_slide import run_slide
from pipeline.store.reader import Store
from pipeline.store.run_record import SilentReporter
from tests.support.stores import random_store
from tests.support.synthetic import MPP, draw_slide, models

LIBRARIES = ("NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke")


class Page:
    """A report's page, which is well-formed XML too: its elements, its text and the addresses that it names."""

    def __init__(self, path: Path) -> None:
        text = path.read_text("utf-8")
        assert text.startswith("<!doctype html>")
        self.root = ElementTree.fromstring(text.removeprefix("<!doctype html>"))
        self.text = squeezed(self.root.find("body"))
        self.addresses = [
            e.get("src") or e.get("href") or "" for e in self.root.iter() if {"src", "href"} & set(e.keys())
        ]
        self.scripts = len(list(self.root.iter("script")))

    def section(self, heading: str) -> list[ElementTree.Element]:
        """The elements from a heading to the next."""
        body = self.root.findall("body/*")
        start = next(i for i, e in enumerate(body) if e.tag == "h2" and e.text == heading)
        stop = next((i for i, e in enumerate(body) if i > start and e.tag == "h2"), len(body))
        return body[start + 1 : stop]

    def panels(self, heading: str) -> dict[str, ElementTree.Element]:
        """The panels of a section's tabs, by name."""
        tabs = next(e for e in self.section(heading) if e.get("class") == "tabs")
        return {squeezed(e[0]): e for e in tabs if e.get("class") == "panel"}


def squeezed(element: ElementTree.Element | None) -> str:
    """The text in an element, without needless blanks."""
    assert element is not None
    return " ".join("".join(element.itertext()).split())


def table(element: ElementTree.Element) -> list[list[str]]:
    """The texts of the cells of an element's first table, its head left out."""
    body = element.find(".//tbody")
    return [] if body is None else [[squeezed(cell) for cell in line] for line in body]


def bars(chart: ElementTree.Element) -> dict[str, int]:
    """What a histogram says of its bars: nuclei, by label and interval."""
    found: dict[str, int] = {}
    for rect in chart.iter("rect"):
        label, count, interval = re.fullmatch(r"(.+): ([\d,]+) at (.+)", squeezed(rect)).groups()  # type: ignore[union-attr]
        found[f"{label} at {interval}"] = int(count.replace(",", ""))
    return found


def test_the_facts_are_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(tmp_path, 300)
    monkeypatch.setattr(Store.batches, "__defaults__", (77,))
    facts = compute_stats(store)
    table = store.table
    assert facts.nuclei == facts.area_um2.total == 300
    assert facts.area_um2.median == pytest.approx(np.median(store.area_um2), rel=1e-6)
    for library in store.info.outputs.libraries:
        name = library.name
        counts = table.obs[name].value_counts()
        assert facts.counts[name].tolist() == [*(counts[label] for label in library.labels), 0]
        means = table.obs.groupby(name, observed=False)[f"{name}_p"].mean()
        np.testing.assert_allclose(facts.mean_p[name][:-1], means[list(library.labels)], rtol=1e-5)
        assert facts.areas[name].sum(1).tolist() == facts.counts[name].tolist()
        assert facts.density[name].sum((1, 2)).tolist() == facts.counts[name].tolist()
        assert facts.confidence[name].sum() == 300
    for a, b in permutations(LIBRARIES, 2):
        pairs = table.obs.groupby([a, b], observed=False).size().unstack()
        np.testing.assert_array_equal(facts.crosswalk[a, b][:-1, :-1], pairs)
        np.testing.assert_array_equal(facts.crosswalk[a, b], facts.crosswalk[b, a].T)
    entropies = [item.entropy for item in facts.uncertain]
    assert len(entropies) == GALLERY
    assert entropies == sorted(entropies, reverse=True)
    worst = facts.uncertain[0]
    assert worst.centroid_l0 == tuple(store.centroids_l0[worst.row])
    assert worst.labels["PanNuke"][0] == table.obs["PanNuke"].iloc[worst.row]


@pytest.mark.parametrize("rule", [{}, {"kind": "best", "threshold": 0.6}])
def test_every_figure_of_the_page_is_the_tables(tmp_path: Path, rule: dict[str, Any]) -> None:
    """Each number is reckoned anew with pandas from the table that the store gives to everybody."""
    random_store(tmp_path, 500, settings={"decide": rule})
    (tmp_path / "run.json").write_text('{"tissue_mm2": 0.0123}', "utf-8")
    result = open_result(tmp_path)
    page, obs = Page(report_slide(result)), result.table.obs
    shown = {name: obs[name].cat.add_categories("no label").fillna("no label") for name in LIBRARIES}
    median = obs["area_um2"].median()
    assert f"500nuclei 0.0123mm² of tissue {500 / 0.0123:,.0f}nuclei per mm² {median:.1f}µm², median area" in page.text
    trained = result.table.var["trained"]
    counts, areas, maps = page.panels("Counts"), page.panels("Size of nuclei"), page.panels("Density")
    certain = next(e for e in page.section("Certainty") if e.get("class") == "charts")
    for name, chart in zip(LIBRARIES, certain, strict=True):
        p, labels = obs[f"{name}_p"], shown[name]
        lines = {line[0]: line[1:] for line in table(counts[name])}
        assert set(lines) == {
            words(label) for label in labels.cat.categories if label != "no label" or (labels == label).any()
        }
        for label, count in labels.value_counts().items():
            if label != "no label" and not trained[f"{name}:{label}"]:
                assert lines[words(label)] == ["taught by nothing, never given"]
            elif count or label != "no label":
                mean = f"{p[labels == label].mean():.2f}" if count and label != "no label" else ""
                expected = [f"{count:,}", f"{count / 5:.1f} %", "", f"{count / 0.0123:,.0f}", mean]
                assert lines[words(label)] == expected
        assert bars(chart) == expected_bars(
            pd.Series("nuclei", obs.index)[p.notna()], p.dropna(), P_EDGES, "probability"
        )
        assert bars(areas[name]) == expected_bars(labels, obs["area_um2"], AREA_EDGES_UM2, "µm²")
        cell = 4000 / 72
        cells = pd.DataFrame(result.centroids() // cell, obs.index).value_counts()
        by_label = pd.DataFrame(result.centroids() // cell, obs.index).groupby(labels, observed=True).value_counts()
        most = {"all nuclei": cells.max()} | {
            words(k): by_label[k].max() for k in by_label.index.levels[0] if k != "no label"
        }
        texts = [squeezed(figure) for figure in maps[name].iter("figure")]
        assert texts == [f"{label} up to {n} in a cell".replace(" up", "up") for label, n in most.items()]
    for a, panel in page.panels("Crosswalk between libraries").items():
        tables = panel.findall("table")
        for b, found in zip([name for name in LIBRARIES if name != a], tables, strict=True):
            pairs = pd.crosstab(shown[a], shown[b])
            assert [squeezed(e) for e in found.find("thead/tr")][1:-1] == [words(label) for label in pairs.columns]  # type: ignore[union-attr]
            for line, (label, row) in zip(found.findall("tbody/*"), pairs.iterrows(), strict=True):
                assert (squeezed(line[0]), squeezed(line[-1])) == (words(label), str(row.sum()))
                for cell_, n in zip(line[1:-1], row, strict=True):
                    assert cell_.get("title") == f"{n} nuclei, {100 * n / row.sum():.1f} % of the row"
                    assert squeezed(cell_) in (f"{100 * n / row.sum():.0f}", "·" if n else "")


def test_the_stain_is_the_tables(tmp_path: Path) -> None:
    """The column of the store, not a measure of the report's own."""
    drawn = draw_slide(400, 300)
    config = RunConfig(mpp=MPP, tissue="none")
    run_slide(drawn.save(tmp_path / "slide.png"), tmp_path / "out", models(), config, SilentReporter())
    result = open_result(tmp_path / "out")
    page, stain = Page(tmp_path / "out" / "report.html"), result.table.obs["haematoxylin_od"]
    section = next(e for e in page.section("Stain") if e.get("class") == "charts")
    assert squeezed(section).endswith(f"median {stain.median():.2f}")
    labels = pd.Series("haematoxylin", stain.index)
    assert bars(section) == expected_bars(labels, stain, STAIN_EDGES, "OD")


def expected_bars(labels: pd.Series[str], values: pd.Series[float], edges: np.ndarray, unit: str) -> dict[str, int]:
    """What the bars of a histogram must say."""
    bins = pd.cut(values.clip(edges[0], edges[-1] - 1e-7), edges, right=False)
    counts = pd.crosstab(labels.astype(str), bins).stack()
    return {
        f"{words(label)} at {interval.left:.3g} to {interval.right:.3g} {unit}": int(n)
        for (label, interval), n in counts.items()
        if n
    }


def test_the_methods_are_told(tmp_path: Path) -> None:
    """Date, slide, command, models with the licences of their data, and the rule in words: at the run and later."""
    slide = draw_slide(200, 200).save(tmp_path / "slide.png")
    nucpipe.run(slide, tmp_path, mpp=MPP, tissue="none", decide="best", threshold=0.55, primary="CoNSeP")
    folder = tmp_path / "slide"
    at_once = page_methods(folder / "report.html")
    report_slide(open_result(folder))
    assert page_methods(folder / "report.html") == at_once
    run = json.loads((folder / "run.json").read_text("utf-8"))
    assert at_once["date"] == f"{run['finished'][:10]} {run['finished'][11:19]} UTC"
    assert at_once["slide"].startswith("slide, 200 × 200 pixels of 0.25 µm (sha256:")
    assert at_once["command"] == run["command"]
    assert f"nucpipe run {slide} --out {tmp_path} --mpp 0.25 --primary CoNSeP" in at_once["command"]
    header = read_header(find_model("classifier", RunConfig().classifier))
    for data in header.data:
        assert (f"{data['name']} ({data['licence']})" in at_once["classifier"]) == bool(data["images"])
    segmentor = read_header(find_model("segmentor", RunConfig().segmentor))
    assert all(data["name"] in at_once["segmentor"] for data in segmentor.data)
    assert segmentor.licence in at_once["segmentor"]
    assert at_once["decision rule"] == (
        "Each nucleus has, in each library, the label of the largest probability if that is at least 0.55, "
        "else no label."
    )
    assert at_once["tissue"] == "the whole slide"


def page_methods(path: Path) -> dict[str, str]:
    """The last table of a report."""
    lines = Page(path).root.findall(".//table[@class='methods']/tr")
    return {squeezed(line[0]): squeezed(line[1]) for line in lines}


def test_contradictions_and_agreement_follow_the_label_table(tmp_path: Path) -> None:
    store = random_store(tmp_path, 400)
    facts, obs = compute_stats(store), store.table.obs
    found = {(c.library, c.label, c.other): c for c in facts.contradictions()}
    tumor = found["NuCLS", "tumor", "PanNuke"]
    of = obs["NuCLS"] == "tumor"
    assert tumor.expected == ("neoplastic",)
    assert (tumor.of, tumor.nuclei) == (of.sum(), (of & (obs["PanNuke"] != "neoplastic")).sum())
    others = obs["PanNuke"][of & (obs["PanNuke"] != "neoplastic")]
    assert (others == tumor.found).sum() == others.value_counts().max()
    nuclei = [c.nuclei for c in facts.contradictions()]
    assert nuclei == sorted(nuclei, reverse=True)
    libraries = {library.name: library for library in store.info.outputs.libraries}
    agree, total = facts.agreement(libraries["NuCLS"], libraries["PanNuke"])
    contradicted = sum(c.nuclei for c in found.values() if (c.library, c.other) == ("NuCLS", "PanNuke"))
    assert agree + contradicted == total


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_a_distribution_has_numpys_median(n: int) -> None:
    values = np.random.default_rng(n).integers(0, 12, n).astype(np.float32) * np.float32(0.37)
    parts = [Distribution.of(np.append(part, np.float32(np.nan))) for part in np.array_split(values, 3)]
    median = Distribution.merge(parts).median
    assert median == (float(np.median(values.astype(float))) if n else None)


def test_the_facts_of_slides_add_up(tmp_path: Path) -> None:
    stores = [random_store(tmp_path / name, n, seed=n) for name, n in (("a", 50), ("b", 120))]
    each = [compute_stats(store) for store in stores]
    both = merge_stats([compute_batch_stats(store) for store in stores])
    assert both.nuclei == 170
    areas = np.concatenate([store.area_um2 for store in stores])
    assert both.area_um2.median == pytest.approx(np.median(areas), rel=1e-6)
    for name in LIBRARIES:
        assert both.counts[name].tolist() == (each[0].counts[name] + each[1].counts[name]).tolist()
        sums = sum(np.nan_to_num(f.mean_p[name]) * f.counts[name] for f in each)
        np.testing.assert_allclose(np.nan_to_num(both.mean_p[name]) * both.counts[name], sums)


def test_the_report_of_a_batch_is_the_same_however_its_figures_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(5):
        random_store(tmp_path / f"s{k}", 40 + k, seed=k, name=f"s{k}")
    results = open_results(tmp_path)
    whole = Page(report_batch(results, tmp_path / "whole.html")).text
    monkeypatch.setattr(page_module, "MERGED_SLIDES", 2)
    assert Page(report_batch(results, tmp_path / "merged.html")).text == whole
    assert "210" in whole


def test_figures_of_a_batch_read_only_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(tmp_path, 40)
    read: list[str] = []
    before = Store._read
    monkeypatch.setattr(Store, "_read", lambda self, name: (read.append(name), before(self, name))[1])
    compute_batch_stats(store)
    assert read == ["table/X", "table/obs/area_um2"]


def test_a_slides_report_stands_alone_and_says_all(tmp_path: Path, demo_slide: Path) -> None:
    random_store(tmp_path, 150, (2220, 2967), name="A <b>slide</b> & 'more'")
    result = open_result(tmp_path)
    path = find_model("classifier", "fast")
    described = {"classifier": {"name": path.stem, "fingerprint": fingerprint(path)}}
    store = replace(result.store, info=replace(result.store.info, mpp=0.499, models=described))
    path = report_slide(replace(result, store=store), slide=demo_slide)
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 4_000_000
    page, text = Page(path), Page(path).text
    assert page.scripts == 0
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "@import" not in text
    assert "url(" not in text
    assert text.startswith("A <b>slide</b> & 'more' 2,220 × 2,967 pixels")
    assert squeezed(page.root.find("head/title")) == "A <b>slide</b> & 'more': nuclei"
    assert text.count("the classifier saw no image of this library") == 1  # NuCLS, and of this classifier alone
    assert "NuCLS: the classifier saw no image of this library" in text
    assert "never given: NuCLS: plasma cell, BreCaHAD: non mitosis" in text
    assert text.count("taught by nothing, never given") == 2
    pictures = [base64.b64decode(a.split(",", 1)[1]) for a in page.addresses if a.startswith("data:image/jpeg")]
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
    assert sizes[:5] == [(1048, 1400)] * 5
    assert sizes[5:] == [(128, 128)] * GALLERY


def test_without_the_slide_and_without_nuclei(tmp_path: Path) -> None:
    for count in (0, 30):
        random_store(tmp_path / str(count), count)
        text = Page(report_slide(open_result(tmp_path / str(count)))).text
        assert f"pixel {count}nuclei" in text.replace(" nuclei", "nuclei")
        assert "The least certain nuclei" not in text
        assert ("Crosswalk" in text) == (count > 0)
    with pytest.raises(UsageError, match=r"it is not at nowhere\.svs"):
        report_slide(open_result(tmp_path / "30"), slide=Path("nowhere.svs"))
    with pytest.raises(UsageError, match="unknown library 'Kumar'"):
        report_slide(open_result(tmp_path / "30"), primary="Kumar")


def test_the_report_of_a_batch(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("sub/b & c", 60)):
        random_store(tmp_path / name, count, name=Path(name).name, seed=count)
        (tmp_path / name / "run.json").write_text('{"tissue_mm2": 0.5}', "utf-8")
    report_slide(open_result(tmp_path / "sub" / "b & c"))
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--primary", "consep"])
    assert done.exit_code == 0, done.output
    page, text = Page(tmp_path / "report.html"), Page(tmp_path / "report.html").text
    assert page.addresses == ["sub/b & c/report.html"] * 5  # once for each library
    assert "2 slides" in text
    assert text.startswith("2 slides 100nuclei 1mm² of tissue 100nuclei per mm²")
    for name, panel in page.panels("Slides").items():
        assert [line[:4] for line in table(panel)] == [["a", "0.5", "40", "80"], ["b & c", "0.5", "60", "120"]]
        parts = [part.get("title") for part in panel.findall(".//tr[2]//span")]
        shown = open_result(tmp_path / "sub" / "b & c").labels(name).value_counts(sort=False)
        assert parts == [f"{str(k).replace('_', ' ')}: {n} ({100 * n / 60:.1f} %)" for k, n in shown.items() if n]
    checked = re.findall(r'id="([a-z]+)-(\d)" checked', (tmp_path / "report.html").read_text("utf-8"))
    assert set(checked) == {("slides", "2"), ("counts", "2"), ("areas", "2"), ("crosswalk", "2")}


def test_names_and_labels_are_escaped(tmp_path: Path) -> None:
    """A library of somebody's own may have any text as a label, and a folder any name."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    random_store(folder, 40, name="<img src=x>")
    result = open_result(folder)
    first, *others = result.store.info.outputs.libraries
    labels = tuple(f"<script>{label}</script>" for label in first.labels)
    own = replace(first, name='Own "><b>', labels=labels, groups={}, synonyms={})
    outputs = replace(result.store.info.outputs, libraries=(own, *others))
    own_result = replace(result, store=replace(result.store, info=replace(result.store.info, outputs=outputs)))
    page = Page(report_batch([own_result], tmp_path / "report.html", own.name))
    assert page.scripts == 0
    assert not list(page.root.iter("img"))
    assert "<script>tumor</script>" in page.text
    assert list(page.panels("Counts")) == ['Own "><b>', *LIBRARIES[1:]]
    assert table(page.panels("Slides")["PanNuke"])[0][0] == "<img src=x>"


def test_a_batch_has_its_figures_from_beside_the_slides_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of stores take hours to read; what is saved of them gives the very same page."""
    for name, nuclei in (("a", 40), ("b", 60), ("c", 0)):
        random_store(tmp_path / name, nuclei, name=name)
    for result in open_results(tmp_path):
        report_slide(result)

    def page(min_area: float | None = None) -> str:
        results = [result.filtered(min_area) for result in open_results(tmp_path)]
        return report_batch(results, tmp_path / "report.html", "NuCLS").read_text("utf-8")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.export.report.page.compute_batch_stats", lambda store: pytest.fail("it is saved"))
        saved = page()
    with_saved = page(min_area=40)
    (tmp_path / "a" / "report.json").write_text("{", "utf-8")  # damaged
    for name in "bc":
        (tmp_path / name / "report.json").unlink()
    assert page() == saved
    assert page(min_area=40) == with_saved != saved


def test_different_libraries_are_not_added_up(tmp_path: Path) -> None:
    for name in "ab":
        random_store(tmp_path / name, 5, name=name)
    first, second = open_results(tmp_path)
    outputs = first.store.info.outputs
    fewer = replace(outputs, libraries=outputs.libraries[:4], trained=outputs.trained[:30])
    other = replace(second, store=replace(second.store, info=replace(second.store.info, outputs=fewer)))
    with pytest.raises(UsageError, match="has other libraries than"):
        report_batch([first, other], tmp_path / "report.html", "NuCLS")


def test_bad_usage_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert (done.exit_code, "holds no finished result" in done.output) == (1, True)
    done = CliRunner().invoke(main, ["report", str(tmp_path / "nuclei.zarr")])
    assert (done.exit_code, "no such folder" in done.output) == (2, True)
