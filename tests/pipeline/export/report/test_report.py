"""The report: its figures are the store's, it stands alone, and it says what must be said."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from nucpipe.errors import UsageError
from pipeline.cli.main import main
from pipeline.export.report.stats import GALLERY, compute_stats, merge_stats
from pipeline.export.report.write import report_batch, report_slide
from pipeline.result import open_result, open_results
from pipeline.store.reader import Store
from tests.support.stores import random_store

LIBRARIES = ("NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke")
VOID = {"meta", "img", "input", "br", "rect", "line"}


class Page(HTMLParser):
    """Checks that tags are closed, and gathers text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_facts_are_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(tmp_path, 300)
    monkeypatch.setattr(Store.batches, "__defaults__", (77,))
    facts = compute_stats(store)
    table = store.table
    assert facts.nuclei == 300
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


def test_the_facts_of_slides_add_up(tmp_path: Path) -> None:
    stores = [random_store(tmp_path / name, n, seed=n) for name, n in (("a", 50), ("b", 120))]
    both, each = merge_stats([compute_stats(store) for store in stores]), [compute_stats(store) for store in stores]
    assert both.nuclei == 170
    for name in LIBRARIES:
        assert both.counts[name].tolist() == (each[0].counts[name] + each[1].counts[name]).tolist()
        sums = sum(np.nan_to_num(f.mean_p[name]) * f.counts[name] for f in each)
        np.testing.assert_allclose(np.nan_to_num(both.mean_p[name]) * both.counts[name], sums)


def test_a_slides_report_stands_alone_and_says_all(tmp_path: Path, demo_slide: Path) -> None:
    random_store(tmp_path, 150, (2220, 2967), name="A <b>slide</b> & 'more'")
    result = open_result(tmp_path)
    store = replace(
        result.store, info=replace(result.store.info, mpp=0.499, models={"classifier": {"name": "joint-lite0"}})
    )
    path = report_slide(replace(result, store=store), slide=demo_slide)
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 4_000_000
    page = Page(path.read_text("utf-8"))
    text = "".join(page.text)
    assert page.scripts == 0
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "@import" not in text
    assert "url(" not in text
    assert "A <b>slide</b> & 'more'" in text
    assert "150nuclei" in text
    for library in store.info.outputs.libraries:
        for label, count in result.labels(library.name).value_counts().items():
            assert f"{str(label).replace('_', ' ')}{count}{100 * count / 150:.1f} %" in text or not count
    assert text.count("the classifier saw no image of this library") == 1  # NuCLS, and of this classifier alone
    assert "NuCLS: the classifier saw no image of this library" in text
    assert "never given: NuCLS: plasma cell, BreCaHAD: non mitosis" in text
    assert text.count("taught by nothing, never given") == 2
    assert "300 nuclei drawn" not in text
    assert "150 nuclei drawn at random" in text
    pictures = [base64.b64decode(a.split(",", 1)[1]) for a in page.addresses if a.startswith("data:image/jpeg")]
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
    assert sizes[:5] == [(1048, 1400)] * 5
    assert sizes[5:] == [(128, 128)] * GALLERY


def test_without_the_slide_and_without_nuclei(tmp_path: Path) -> None:
    for count in (0, 30):
        random_store(tmp_path / str(count), count)
        page = Page(report_slide(open_result(tmp_path / str(count))).read_text("utf-8"))
        text = "".join(page.text)
        assert f"{count}nuclei" in text
        assert "drawn at random" not in text
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
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    text = "".join(page.text)
    assert page.addresses == ["sub/b & c/report.html"] * 5  # once for each library
    assert "2 slides" in text
    assert "100nuclei" in text
    assert "1.00mm² of tissue" in text
    assert re.search(r"b & c\D*0\.5060120", text)
    checked = re.findall(r'id="([a-z]+)-(\d)" checked', (tmp_path / "report.html").read_text("utf-8"))
    assert set(checked) == {("slides", "2"), ("counts", "2"), ("areas", "2"), ("crosswalk", "2")}


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
    assert (done.exit_code, "no finished result in it" in done.output) == (1, True)
    done = CliRunner().invoke(main, ["report", str(tmp_path / "nuclei.zarr")])
    assert (done.exit_code, "Traceback" in done.output) == (1, False)
