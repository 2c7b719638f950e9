"""Corrections in the viewer: what is kept in the file, what becomes of all nuclei, and what the server answers."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import shapely

from nucpipe.errors import DataError
from pipeline.adaptation.adapt import learn, write
from pipeline.adaptation.corrections import Correction, read_corrections, write_corrections
from pipeline.result import open_result
from pipeline.store.reader import open_store
from pipeline.web.viewer.app import Viewed, viewer_app
from pipeline.web.viewer.correct import MOST_AT_ONCE
from pipeline.web.viewer.nuclei import Choice
from pipeline.web.viewer.open import open_viewed
from tests.support.browser import Client
from tests.support.stores import random_store

SIZE = (2400, 1800)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_store(tmp_path / "slide", 400, SIZE).path.parent


@pytest.fixture
def view(folder: Path) -> Viewed:
    return open_viewed(folder, None, "PanNuke")


@pytest.fixture
def client(view: Viewed) -> Client:
    return Client(viewer_app(view))


def said(folder: Path) -> list[tuple[str, str]]:
    return [(c.library, c.label) for c in read_corrections(folder / "corrections.csv")]


def correct(client: Client, *numbers: int, label: str = "dead", library: str = "PanNuke") -> dict[str, object]:
    answer = client.post("/api/corrections", json={"numbers": numbers, "library": library, "label": label})
    assert answer.status_code == 200, answer.text
    facts: dict[str, object] = answer.json()
    return facts


def test_a_correction_stands_in_the_file_at_once_and_relabels_all(client: Client, view: Viewed, folder: Path) -> None:
    assert client.get("/api/result").json()["corrections"]["count"] == 0
    store = view.result.store
    for k in range(12):
        facts = correct(client, k, label="dead" if k % 2 else "epithelial")
    assert (facts["count"], facts["canUndo"]) == (12, True)
    corrections = read_corrections(folder / "corrections.csv")
    assert [c.id for c in corrections] == store.ids[:12].tolist()
    assert all(c.when for c in corrections)
    np.testing.assert_allclose([(c.x, c.y) for c in corrections], store.centroids_l0[:12], atol=0.005)
    adapted, p = view.nuclei.labels("PanNuke", adapted=True)
    base, _ = view.nuclei.labels("PanNuke")
    labels = store.info.outputs.library("PanNuke").labels
    assert [labels[n] for n in adapted[:12]] == ["epithelial", "dead"] * 6
    np.testing.assert_array_equal(p[:12], 1)
    np.testing.assert_array_equal(base, store.label_numbers("PanNuke"))
    assert (adapted[12:] != base[12:]).any()


def test_the_viewer_shows_what_adapt_writes(client: Client, view: Viewed, folder: Path) -> None:
    for k in range(30):
        correct(client, k, label=("dead", "epithelial", "neoplastic")[k % 3])
    correct(client, 31, label="not_a_nucleus", library="")
    result = open_result(folder)
    write(result, learn(result), [])
    stored = open_store(folder / "nuclei.zarr").adapted()
    kept = np.asarray(stored.rows)
    assert 31 not in kept
    for library in ("PanNuke", "NuCLS", "CoNSeP"):
        np.testing.assert_array_equal(view.nuclei.labels(library, adapted=True)[0][kept], stored.label_numbers(library))
    again = open_viewed(folder, None, "PanNuke")
    np.testing.assert_array_equal(
        again.nuclei.labels("PanNuke", adapted=True)[0], view.nuclei.labels("PanNuke", adapted=True)[0]
    )
    (folder / "corrections.csv").unlink()  # as on a slide that got them from another one
    from_store = open_viewed(folder, None, "PanNuke").nuclei
    np.testing.assert_array_equal(from_store.labels("PanNuke", adapted=True)[0][kept], stored.label_numbers("PanNuke"))
    assert not from_store.shown(np.array([31]), Choice("PanNuke", adapted=True)).any()
    assert from_store.shown(np.array([31]), Choice("PanNuke")).all()


def test_undo_goes_back_step_by_step_and_keeps_what_others_added(client: Client, folder: Path) -> None:
    correct(client, 3)
    correct(client, 3, label="epithelial")
    correct(client, 3, 4, label="not_a_nucleus", library="")
    assert said(folder) == [("", "not_a_nucleus")] * 2
    path = folder / "corrections.csv"
    write_corrections(path, [*read_corrections(path), Correction(1, 1, "NuCLS", "tumor")])
    assert client.post("/api/corrections/undo", json={}).json()["count"] == 2
    assert said(folder) == [("NuCLS", "tumor"), ("PanNuke", "epithelial")]
    client.post("/api/corrections/undo", json={})
    assert sorted(said(folder)) == [("NuCLS", "tumor"), ("PanNuke", "dead")]
    assert client.post("/api/corrections/undo", json={}).json()["canUndo"] is False
    assert said(folder) == [("NuCLS", "tumor")]
    assert client.post("/api/corrections/undo", json={}).status_code == 200


def test_the_last_undo_leaves_no_file_and_the_base_labels(client: Client, view: Viewed, folder: Path) -> None:
    correct(client, 3)
    assert view.nuclei.adapted is not None
    assert client.post("/api/corrections/undo", json={}).json()["generation"] == 0
    assert not (folder / "corrections.csv").exists()
    assert view.nuclei.adapted is None


def test_more_nuclei_at_once_than_it_takes_are_refused_and_none_is_corrected(tmp_path: Path) -> None:
    folder = random_store(tmp_path / "slide", MOST_AT_ONCE + 1, SIZE).path.parent
    answer = Client(viewer_app(open_viewed(folder, None, "PanNuke"))).post(
        "/api/corrections", json={"numbers": list(range(MOST_AT_ONCE + 1)), "library": "PanNuke", "label": "dead"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"] == "20,001 nuclei: one correction speaks of 20,000 at most; draw round fewer."
    assert not (folder / "corrections.csv").exists()


def test_counts_and_tiles_are_of_the_labels_that_are_asked_for(client: Client) -> None:
    base = client.get("/api/counts", params={"library": "PanNuke"}).json()
    facts = correct(client, *range(40), label="dead")
    for labels, same in (("base", True), (f"adapted.{facts['generation']}", False)):
        query = {"library": "PanNuke", "labels": labels}
        assert (client.get("/api/counts", params=query).json() == base) is same
    tiles = [
        client.get("/tiles/nuclei/12/0_0.png", params={"library": "PanNuke", "labels": labels}).content
        for labels in ("base", "adapted.1")
    ]
    assert tiles[0] != tiles[1]
    one = client.get("/api/nuclei/5").json()
    assert one["corrected"] == {"PanNuke": "dead"}
    assert one["adapted"]["PanNuke"][0] == {**one["adapted"]["PanNuke"][0], "name": "dead", "p": 1.0, "chosen": True}
    assert sum(label["p"] for label in one["labels"]["PanNuke"]) == pytest.approx(1, abs=1e-5)


def test_nuclei_inside_a_line_are_those_whose_centroid_is(client: Client, view: Viewed) -> None:
    line = [[100, 100], [1500, 200], [900, 900], [300, 1500]]
    found = client.post("/api/nuclei/inside?library=PanNuke", json={"polygon": line}).json()
    x, y = view.result.store.centroids_l0.T
    assert found == sorted(found)
    assert set(found) == set(np.flatnonzero(shapely.contains_xy(shapely.Polygon(line), x, y)).tolist())
    assert len(found) > 20
    crossing = [[0, 0], [2400, 1800], [2400, 0], [0, 1800]]
    assert client.post("/api/nuclei/inside", json={"polygon": crossing}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/corrections", {"numbers": [400], "library": "PanNuke", "label": "dead"}, "numbers"),
        ("/api/corrections", {"numbers": [], "library": "PanNuke", "label": "dead"}, "numbers"),
        ("/api/corrections", {"numbers": [1], "library": "PanNuke", "label": "cat"}, "is not one of PanNuke's"),
        ("/api/corrections", {"numbers": [1], "library": "Cats", "label": "dead"}, "unknown library"),
        ("/api/corrections", {"numbers": [1], "library": "PanNuke"}, "expected a library"),
        ("/api/corrections", {"numbers": [1], "library": "PanNuke", "label": "not_a_nucleus"}, "expected a library"),
        ("/api/corrections", [1], "JSON object"),
        ("/api/nuclei/inside", {"polygon": [[0, 0], [1, 1]]}, "three or more"),
        ("/api/nuclei/inside", {"polygon": "all"}, "expected a list"),
        ("/api/nuclei/inside", {"polygon": [[0, 0], [1], [2, 2]]}, "three or more pairs"),
        ("/api/nuclei/inside", {"polygon": ["a", {}, []]}, "three or more pairs"),
        ("/api/nuclei/inside", {"polygon": [[10**400, 1]] * 3}, "three or more pairs"),
        ("/api/nuclei/inside?off=-100", {"polygon": [[0, 0], [1, 0], [1, 1]]}, "expected numbers of labels"),
        ("/api/corrections", {"numbers": [True], "library": "PanNuke", "label": "dead"}, "numbers"),
        ("/api/corrections", {"numbers": [1], "library": "PanNuke", "label": "\ud800"}, "'?' is not one of"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    client: Client, folder: Path, path: str, body: object, words: str
) -> None:
    # Half a character comes as JSON may write it.
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert not (folder / "corrections.csv").exists()


@pytest.mark.parametrize(
    ("content", "words"), [(b"[" * 200_000, "JSON object"), (b" " * 5_000_000, "at most 4,000,000 bytes")]
)
def test_endless_json_is_refused(client: Client, content: bytes, words: str) -> None:
    answer = client.post("/api/corrections", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, words in answer.json()["error"]) == (400, True)


def test_numbers_without_end_name_nothing(client: Client) -> None:
    assert client.get(f"/api/nuclei/{'9' * 5000}").status_code == 404


def test_a_label_is_kept_as_its_library_writes_it(client: Client, folder: Path) -> None:
    correct(client, 3, library="pannuke", label="Dead")
    assert said(folder) == [("PanNuke", "dead")]


def test_a_correction_takes_the_place_of_one_beside_the_same_nucleus(client: Client, folder: Path) -> None:
    x, y = open_store(folder / "nuclei.zarr").centroids_l0[3]
    write_corrections(folder / "corrections.csv", [Correction(x + 0.3, y, "", "not_a_nucleus")])
    assert correct(client, 3, label="dead")["count"] == 1
    assert said(folder) == [("PanNuke", "dead")]
    client.post("/api/corrections/undo", json={})
    assert said(folder) == [("", "not_a_nucleus")]


def test_another_result_in_the_place_of_the_viewed_one_gets_no_corrections(client: Client, folder: Path) -> None:
    """Numbers of nuclei are those of the first one; the second one's were corrected instead."""
    correct(client, 1)
    (folder / "nuclei.zarr").rename(folder / "first.zarr")
    for other in (True, False):
        if other:
            random_store(folder, 400, SIZE, seed=1)
        answer = client.post("/api/corrections", json={"numbers": [2], "library": "PanNuke", "label": "dead"})
        assert answer.status_code == 409
        assert "was replaced or taken away" in answer.json()["error"]
        assert client.get("/api/nuclei/2").status_code == 409
        shutil.rmtree(folder / "nuclei.zarr", ignore_errors=True)
    (folder / "first.zarr").rename(folder / "nuclei.zarr")
    assert correct(client, 2)["count"] == 2


def test_corrections_of_two_viewers_at_once_are_all_kept(folder: Path) -> None:
    pages = [Client(viewer_app(open_viewed(folder, None, "PanNuke"))) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda k: [correct(pages[k], 2 * n + k) for n in range(4)], range(2)))
    assert len(said(folder)) == 8


def test_a_page_of_another_site_corrects_nothing(client: Client, folder: Path) -> None:
    body = '{"numbers": [1], "library": "PanNuke", "label": "dead"}'
    plain = client.post("/api/corrections", content=body, headers={"content-type": "text/plain"})
    assert plain.status_code == 400
    asked = client.ask("OPTIONS", "/api/corrections", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in asked.headers
    assert not (folder / "corrections.csv").exists()


def test_a_broken_file_of_corrections_is_said_when_the_viewer_opens(folder: Path) -> None:
    (folder / "corrections.csv").write_text("nonsense\n", "utf-8")
    with pytest.raises(DataError, match="first line lacks"):
        open_viewed(folder, None, "PanNuke")


def test_contradictions_of_the_file_are_listed(folder: Path, tmp_path: Path) -> None:
    x, y = open_store(folder / "nuclei.zarr").centroids_l0[9]
    both = [Correction(x, y, "PanNuke", "dead"), Correction(x, y, "PanNuke", "epithelial")]
    write_corrections(folder / "corrections.csv", both)
    client = Client(viewer_app(open_viewed(folder, None, "PanNuke")))
    assert client.get("/api/corrections").json()["contradictions"] == [
        f"x {x:.1f}, y {y:.1f}: PanNuke dead or epithelial"
    ]
    assert correct(client, 9, label="dead")["contradictions"] == []


def test_suggestions_are_spread_over_labels_and_the_slide_and_are_not_corrected_yet(client: Client) -> None:
    correct(client, *range(20))
    query = {"library": "PanNuke", "labels": "adapted.1", "count": 20}
    found = client.get("/api/nuclei/suggested", params=query).json()
    assert len(found) == len(set(found)) == 20
    assert not set(found) & set(range(20))
