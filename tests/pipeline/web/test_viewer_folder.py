"""A folder of results in the viewer: which slides are listed, with which remarks, and how one gets to each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.adaptation.corrections import Correction, write_corrections
from pipeline.cli.main import main
from pipeline.store.run_record import label_counts
from pipeline.web.viewer import folder as view_folder
from pipeline.web.viewer.folder import folder_app, slides_in
from pipeline.web.viewer.open import open_viewed
from tests.support.browser import Client
from tests.support.stores import random_store


def write_record(folder: Path, **facts: Any) -> None:
    (folder / "run.json").write_text(json.dumps(facts), "utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two results, one in a sub-folder, a slide that failed, and one whose run was stopped."""
    root = tmp_path / "results"
    store = random_store(root / "a b", 30, name="a b")
    counts = {lib.name: label_counts(store, lib.name, lib.labels) for lib in store.info.outputs.libraries}
    here = tmp_path / "a b.png"
    here.touch()
    poor = {"out_of_focus": 0.21, "pen_marked": 0.04}
    write_record(root / "a b", slide=str(here), counts=counts, tissue_mm2=0.5, finished="2026-01-02", **poor)
    cv2.imwrite(str(root / "a b" / "overview.png"), np.full((600, 1800, 3), 77, np.uint8))
    random_store(root / "sub" / "c", 0, name="c")
    write_record(root / "sub" / "c", slide=str(tmp_path / "gone.svs"))
    (root / "stopped" / "journal").mkdir(parents=True)
    lines = ["slide,folder,status,nuclei,cause", 'x.svs,bad,failed,0,"no pixels, no nuclei"', "a.png,a b,done,30,"]
    (root / "summary.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return root


@pytest.fixture
def client(root: Path) -> Client:
    return Client(folder_app(slides_in(root), lambda path: open_viewed(path, None, None)))


def test_all_slides_are_listed_with_counts_and_cautions(client: Client, root: Path) -> None:
    facts = client.get("/api/slides").json()
    assert (facts["folder"], facts["primary"]) == ("results", "PanNuke")
    assert [library["name"] for library in facts["libraries"]] == ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]
    first, second = facts["slides"]
    assert (first["key"], first["name"], first["nuclei"], first["mm2"]) == ("a b", "a b", 30, 0.5)
    assert sum(first["counts"]["CoNSeP"].values()) == 30
    assert first["cautions"] == ["21 % of the tissue is out of focus"]
    assert (first["corrections"], first["adapted"], first["overview"]) == (0, False, True)
    assert (second["key"], second["folder"], second["nuclei"], second["overview"]) == ("sub~c", "sub/c", 0, False)
    assert second["cautions"] == ["no nuclei were found", "the slide is not where the run found it: nuclei alone"]
    assert facts["others"] == [
        {"name": "bad", "cause": "no pixels, no nuclei"},
        {"name": "stopped", "cause": "the run is not finished; give the same command again"},
    ]
    write_corrections(root / "a b" / "corrections.csv", [Correction(1, 1, "PanNuke", "dead")])
    assert client.get("/api/slides").json()["slides"][0]["corrections"] == 1


def test_a_result_that_cannot_be_opened_does_not_hide_the_others(client: Client, root: Path) -> None:
    (root / "sub" / "c" / "nuclei.zarr" / "zarr.json").write_text("{}", "utf-8")
    facts = client.get("/api/slides").json()
    assert [one["name"] for one in facts["slides"]] == ["a b"]
    assert "expected a store that nucpipe wrote" in facts["others"][-1]["cause"]
    answer = client.get("/slides/sub~c/")
    assert answer.status_code == 500
    assert "expected a store" in answer.text


def test_each_slide_has_its_page_and_knows_those_beside_it(client: Client) -> None:
    redirected = client.get("/slides/a%20b")
    assert redirected.status_code == 307
    assert redirected.headers["location"] == "a%20b/"
    assert client.get("/slides/a%20b/").headers["content-type"].startswith("text/html")
    facts = client.get("/slides/a%20b/api/result").json()
    assert (facts["name"], facts["nuclei"]) == ("a b", 30)
    assert facts["place"] == {"number": 1, "count": 2, "previous": "", "next": "../sub~c/", "all": "../../"}
    second = client.get("/slides/sub~c/api/result").json()
    assert second["place"]["previous"] == "../a%20b/"
    assert second["place"]["next"] == ""
    assert client.get("/slides/a%20b/tiles/nuclei/9/0_0.png").headers["content-type"] == "image/png"
    for path in ("/slides/none/", "/slides/none/api/result", "/slides/../summary.csv", "/api/slides/none/overview.jpg"):
        assert client.get(path).status_code == 404
    for path in ("/", "/static/slides.js", "/static/js/layers.js", "/shared/openseadragon.min.js"):
        assert client.get(path).status_code == 200
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_overviews_are_sent_small(client: Client) -> None:
    answer = client.get("/api/slides/a%20b/overview.jpg")
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (53, 160, 3)
    assert client.get("/api/slides/sub~c/overview.jpg").status_code == 404


def test_few_slides_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_folder, "OPEN_AT_ONCE", 2)
    for name in "abc":
        random_store(tmp_path / name, 3)
    opened: list[str] = []

    def open_slide(path: Path) -> Any:
        opened.append(path.name)
        return open_viewed(path, None, None)

    client = Client(folder_app(slides_in(tmp_path), open_slide))
    for name in "aabacab":
        assert client.get(f"/slides/{name}/api/result").json()["nuclei"] == 3
    assert "".join(opened) == "abcb"


def test_addresses_are_unmistakable(tmp_path: Path) -> None:
    for name in ("a/b", "a~b"):
        random_store(tmp_path / name, 1, name=name)
    facts = (
        Client(folder_app(slides_in(tmp_path), lambda path: open_viewed(path, None, None))).get("/api/slides").json()
    )
    assert {one["key"]: one["name"] for one in facts["slides"]} == {"a~b": "a/b", "a~b~": "a~b"}


def test_a_result_or_a_folder_with_one_is_that_slide(tmp_path: Path) -> None:
    store = random_store(tmp_path / "one", 1)
    for path in (tmp_path, tmp_path / "one"):
        assert slides_in(path).results == (tmp_path / "one",)
    assert slides_in(store.path).results == (store.path,)


def test_what_is_of_one_slide_is_refused_for_many(root: Path, tmp_path: Path) -> None:
    for option in ("--slide", "--regions"):
        done = CliRunner().invoke(main, ["view", str(root), option, str(tmp_path / "x"), "--no-browser"])
        assert done.exit_code == 2
        assert "Traceback" not in done.output
        assert f"{option} is of one slide; {root} holds 2, name one of them." in done.output.replace("\n", " ")
    done = CliRunner().invoke(main, ["view", str(root / "stopped"), "--no-browser"])
    assert "not finished" in done.output
