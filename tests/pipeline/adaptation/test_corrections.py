"""The file of corrections: read, written, merged, matched with nuclei; and what QuPath's GeoJSON says."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nucpipe.errors import DataError, OutputError
from pipeline.adaptation.clicks import clicks_of
from pipeline.adaptation.corrections import (
    Correction,
    agreed,
    contradictions,
    locate,
    merged,
    read_corrections,
    replaced,
    spelled,
    write_corrections,
)
from pipeline.cli.main import main
from pipeline.export.geojson.write import write_geojson
from pipeline.store.reader import Store, open_store
from tests.support.stores import published_outputs, random_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store"))


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    said = [
        Correction(10.25, 20.5, "PanNuke", "neoplastic", "some-id", "2026-01-02T03:04:05+00:00"),
        Correction(11.0, 20.5, "", "not_a_nucleus"),
    ]
    write_corrections(path, said)
    assert read_corrections(path) == said
    assert path.read_text("utf-8").splitlines()[:2] == [
        "x,y,library,label,id,when",
        "10.25,20.50,PanNuke,neoplastic,some-id,2026-01-02T03:04:05+00:00",
    ]
    write_corrections(path, [])
    assert not path.exists()
    assert read_corrections(path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y,label\n1,2,tumor\n", "first line lacks library"),
        ("x,y,library,label\n1,b,NuCLS,tumor\n", "line 2: expected numbers for x and y, found '1', 'b'"),
        ("x,y,library,label\n1,nan,NuCLS,tumor\n", "line 2: expected numbers"),
        ("x,y,library,label\n1,2,NuCLS,\n", "line 2: expected a library and one of its labels"),
        ("x,y,library,label\n1,2,NuCLS,not_a_nucleus\n", "without a library"),
        ("x,y,library,label\n1,2,,tumor\n", "line 2: expected a library"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=words):
        read_corrections(path)


def test_files_of_several_people_merge_and_contradictions_are_found() -> None:
    a = [Correction(1, 1, "PanNuke", "neoplastic", when="a"), Correction(2, 2, "NuCLS", "tumor")]
    b = [
        Correction(1.001, 1, "PanNuke", "neoplastic", when="b"),
        Correction(1, 1, "NuCLS", "tumor"),
        Correction(2, 2, "NuCLS", "lymphocyte"),
        Correction(3, 3, "", "not_a_nucleus"),
        Correction(3, 3, "CoNSeP", "other"),
    ]
    both = merged(a, b)
    assert both == [*a, *b[1:]]
    assert [str(c) for c in contradictions(both)] == [
        "x 2.0, y 2.0: NuCLS tumor or lymphocyte",
        "x 3.0, y 3.0: not_a_nucleus or CoNSeP other",
    ]
    assert agreed(both) == [a[0], b[1]]
    assert merged(both, b) == both


def test_what_is_said_anew_takes_the_place_of_what_was_said() -> None:
    old = [
        Correction(1, 1, "PanNuke", "neoplastic"),
        Correction(1, 1, "NuCLS", "tumor"),
        Correction(2, 2, "", "not_a_nucleus"),
    ]
    anew = replaced(old, [Correction(1, 1, "PanNuke", "dead"), Correction(2, 2, "NuCLS", "tumor")])
    assert anew == [old[1], Correction(1, 1, "PanNuke", "dead"), Correction(2, 2, "NuCLS", "tumor")]
    gone = replaced(anew, [Correction(1, 1, "", "not_a_nucleus")])
    assert [c.label for c in gone] == ["tumor", "not_a_nucleus"]
    assert not contradictions(gone)


def test_a_correction_finds_its_nucleus_within_three_micrometres(store: Store) -> None:
    x, y = store.centroids_l0[7]
    near, far = Correction(x + 8, y, "NuCLS", "tumor"), Correction(-500, y, "NuCLS", "tumor")
    assert locate([Correction(x, y, "NuCLS", "tumor"), far], store).tolist() == [7, -1]
    distances = np.linalg.norm(store.centroids_l0 - (x + 8, y), axis=1)
    assert locate([near], store).tolist() == [distances.argmin()]
    assert locate([], store).tolist() == []


def call(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    return f"{result.exit_code} {result.output}"


def test_classes_changed_in_qupath_become_corrections(store: Store, tmp_path: Path) -> None:
    folder = random_store(tmp_path / "r").path.parent
    write_geojson(store, tmp_path / "nuclei.geojson", "PanNuke")
    content = json.loads((tmp_path / "nuclei.geojson").read_text("utf-8"))
    features = content["features"]
    before = features[3]["properties"]["classification"]["name"]
    new = "dead" if before != "dead" else "epithelial"
    features[3]["properties"]["classification"]["name"] = new
    features[5]["properties"]["classification"] = {"name": "Ignore*"}
    del features[6]["properties"]["classification"]
    (tmp_path / "nuclei.geojson").write_text(json.dumps(content), "utf-8")
    said = call("corrections", "import", tmp_path / "nuclei.geojson", folder, "--library", "PanNuke")
    assert said.startswith("0 2 corrections added, 2 in ")
    got = read_corrections(folder / "corrections.csv")
    assert [(c.id, c.library, c.label) for c in got] == [
        (features[3]["id"], "PanNuke", new),
        (features[5]["id"], "", "not_a_nucleus"),
    ]
    np.testing.assert_allclose((got[0].x, got[0].y), store.centroids_l0[3], atol=0.01)
    assert call("corrections", "import", tmp_path / "nuclei.geojson", folder, "--library", "PanNuke").startswith(
        "0 0 corrections added, 2 in "
    )
    assert "is not one of CoNSeP's" in call(
        "corrections", "import", tmp_path / "nuclei.geojson", folder, "--library", "CoNSeP"
    )


def test_what_cannot_be_imported_is_said_in_one_line(store: Store, tmp_path: Path) -> None:
    folder = random_store(tmp_path / "r").path.parent
    (tmp_path / "no.geojson").write_text("{}", "utf-8")
    assert "1 nucpipe: " in call("corrections", "import", tmp_path / "no.geojson", folder)
    assert "no such file" in call("corrections", "import", tmp_path / "none.geojson", folder)
    other = {"type": "Feature", "id": "x", "geometry": None, "properties": {"classification": {"name": "dead"}}}
    (tmp_path / "other.geojson").write_text(json.dumps(other), "utf-8")
    assert "has the id of a nucleus" in call("corrections", "import", tmp_path / "other.geojson", folder)
    del other["id"]
    (tmp_path / "other.geojson").write_text(json.dumps(other), "utf-8")
    assert "no object of 1 has both an id and a class" in call(
        "corrections", "import", tmp_path / "other.geojson", folder
    )
    theirs = tmp_path / "corrections.csv"
    write_corrections(theirs, [Correction(1, 1, "NuCLS", "unheard of")])
    assert "is not one of NuCLS's" in call("corrections", "import", theirs, folder)
    assert not (folder / "corrections.csv").exists()


def test_a_nucleus_is_one_however_its_place_library_and_label_are_written(tmp_path: Path) -> None:
    """The last line used to win, without a word."""
    folder = random_store(tmp_path / "r").path.parent
    opened = open_store(folder / "nuclei.zarr")
    (x, y), (x1, y1), (x2, y2) = opened.centroids_l0[:3].tolist()
    said = [
        f"{x},{y},PanNuke,neoplastic",
        f"{x + 0.4},{y},pannuke,Epithelial",
        f"{x1},{y1},PanNuke,Dead",
        f"{x1},{y1 + 0.4},PANNUKE,dead",
        f"{x2},{y2},PanNuke,dead",
        f"{x2 - 0.4},{y2},,not_a_nucleus",
        "-900,5,NuCLS,tumor",
    ]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,library,label", *said]) + "\n", "utf-8")
    answer = call("corrections", "import", tmp_path / "a.csv", folder)
    assert answer == (
        "0   1 of 7 corrections lie where this result has no nucleus; they are kept, not used\n"
        f"7 corrections added, 7 in {folder / 'corrections.csv'}\n"
        f"  contradiction, not used: x {x:.1f}, y {y:.1f}: PanNuke neoplastic or epithelial\n"
        f"  contradiction, not used: x {x2:.1f}, y {y2:.1f}: not_a_nucleus or PanNuke dead\n"
    )
    clicks = clicks_of(read_corrections(folder / "corrections.csv"), opened)
    assert (clicks.rows.tolist(), clicks.no_nuclei.tolist(), clicks.lost, len(clicks.contradictions)) == ([1], [], 1, 2)


def test_a_group_of_labels_is_spelled_as_its_library_does() -> None:
    outputs = published_outputs()
    library = outputs.library("CoNSeP")
    group = next(group for some in library.groups.values() for group, labels in some.items() if len(labels) > 1)
    (found,) = spelled([Correction(1, 1, "consep", group.upper().replace("_", " "))], outputs, Path("c.csv"))
    assert (found.library, found.label) == ("CoNSeP", group)
    with pytest.raises(DataError, match=r"^c\.csv: unknown library 'Foo'"):
        spelled([Correction(1, 1, "Foo", "tumor")], outputs, Path("c.csv"))


def test_corrections_that_cannot_be_removed_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "corrections.csv").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_corrections(tmp_path / "corrections.csv", [])
