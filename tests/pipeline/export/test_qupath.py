"""The folder for QuPath. QuPath itself is not run: its scripts run on stand-ins for the part of its API they use."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from classifier.decision_rule import DecisionRule
from nucpipe.errors import OutputError, UsageError
from pipeline.cli.main import main
from pipeline.export.registry import ExportOptions, export_for_qupath, export_result
from pipeline.result import open_result, open_results
from tests.support.paths import ROOT
from tests.support.stores import random_store

STUBS = ROOT / "tests" / "support" / "qupath_stubs"
LIBRARIES = ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, size, seed in (("a", (4000, 3000), 1), ("a.b", (2000, 1000), 2)):
        random_store(tmp_path / "results" / name, 30, size, name=name, seed=seed)
    return tmp_path / "results"


def test_the_folder_of_many_slides(results: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(results), "--to", "qupath", "--primary", "consep"])
    assert done.exit_code == 0, done.output
    folder = results / "qupath"
    assert done.output == f"60 nuclei -> {folder}\n"
    about = json.loads((folder / "classes.json").read_text("utf-8"))
    assert about["primary"] == "CoNSeP"
    assert list(about["libraries"]) == LIBRARIES
    assert about["libraries"]["PanNuke"]["neoplastic"] == [200, 0, 0]
    assert {name: (slide["width"], slide["height"]) for name, slide in about["slides"].items()} == {
        "a": (4000, 3000),
        "a.b": (2000, 1000),
    }
    for name, slide in about["slides"].items():
        features = json.loads(gzip.decompress((folder / slide["file"]).read_bytes()))["features"]
        labels = open_result(results / name).labels("CoNSeP").tolist()
        assert [feature["properties"]["classification"]["name"] for feature in features] == labels
    scripts = sorted(path.name for path in folder.glob("*.groovy"))
    assert scripts == sorted(["import-nuclei.groovy", *(f"colour-by-{name}.groovy" for name in LIBRARIES)])
    for script in scripts:
        assert "@" not in (folder / script).read_text("utf-8")


def test_one_slide(results: Path, tmp_path: Path) -> None:
    ((path, count),) = export_result(open_result(results / "a"), "qupath")
    assert (path, count) == (results / "a" / "qupath", 30)
    empty = ExportOptions(bbox_l0=(0, 0, 10, 10))
    with pytest.raises(OutputError, match="qupath: already exists; give another --out, or --overwrite"):
        export_result(open_result(results / "a"), "qupath", empty)
    assert nuclei_in(path) == 30
    mine = [tmp_path / name for name in ("mine", "results/a/qupath.old", "results/a/qupath.partial")]
    for folder in mine:
        folder.mkdir()
        (folder / "precious").write_text("")
    export_result(open_result(results / "a"), "qupath", empty, overwrite=True)
    assert nuclei_in(path) == 0
    with pytest.raises(OutputError, match="already exists and is not an export"):
        export_result(open_result(results / "a"), "qupath", None, tmp_path / "mine", overwrite=True)
    assert all((folder / "precious").is_file() for folder in mine)
    assert {p.name for p in path.parent.iterdir()} == {"nuclei.zarr", "qupath", "qupath.old", "qupath.partial"}


def nuclei_in(folder: Path) -> int:
    return int(json.loads((folder / "classes.json").read_text("utf-8"))["slides"]["a"]["nuclei"])


def test_two_slides_of_one_name(results: Path, tmp_path: Path) -> None:
    random_store(results / "sub" / "a", 5, name="a")
    with pytest.raises(UsageError, match="two slides are named a"):
        export_for_qupath(open_results(results), ExportOptions(), tmp_path / "qupath")
    assert not (tmp_path / "qupath").exists()


def run_groovy(script: str, tmp_path: Path) -> str:
    groovy = shutil.which("groovy")
    if groovy is None:
        pytest.skip("there is no groovy here to run QuPath's scripts with")
    (tmp_path / "test.groovy").write_text(script, "utf-8")
    command = [groovy, "-cp", str(STUBS), str(tmp_path / "test.groovy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SETUP = """
import qupath.lib.objects.PathObject
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP
def run = {{ file, change = {{ it }} ->
    new GroovyShell(this.class.classLoader).evaluate(change(new File('{folder}', file).text))
}}
"""


def folder_for_scripts(tmp_path: Path, **options: Any) -> tuple[Path, str]:
    """Return a folder of results of two slides with the folder for QuPath, and the lines that begin a script."""
    results = tmp_path / "it's \\ here"
    for name, size, seed in (("a", (4000, 3000), 1), ("a.b", (2000, 1000), 2)):
        random_store(results / name, 30, size, name=name, seed=seed)
    export_for_qupath(open_results(results), ExportOptions(**options), results / "qupath")
    folder = str(results / "qupath").replace("\\", "\\\\").replace("'", "\\'")
    return results, SETUP.format(folder=folder)


def test_the_scripts_run(tmp_path: Path) -> None:
    results, setup = folder_for_scripts(tmp_path, primary="MoNuSAC")
    numbers = {name: open_result(results / name).labels("PanNuke").value_counts() for name in ("a", "a.b")}
    output = run_groovy(
        setup
        + """
        QP.addImage('a.b.svs - Series 0', 2000, 1000)
        QP.addImage('a.svs', 4000, 3000)
        QP.addImage('other.svs', 5, 5)
        def images = QP.project.imageList
        run('colour-by-PanNuke.groovy')
        def mine = new PathObject(id: UUID.randomUUID(), pathClass: PathClass.fromString('mine', 1))
        images[0].data.hierarchy.addObjects([mine])
        run('colour-by-PanNuke.groovy')
        run('import-nuclei.groovy')
        run('import-nuclei.groovy')
        println images*.data*.hierarchy*.objects*.size()
        println images*.saved
        println PathClass.known['epithelial'].color == (int) 0xffc80000
        run('import-nuclei.groovy') { it.replace('ALL_IMAGES = false', 'ALL_IMAGES = true') }
        println images*.data*.hierarchy*.objects*.size()
        println images*.saved
        run('colour-by-PanNuke.groovy')
        println PathClass.known['epithelial'].color == (int) 0xff73c8ff
        println images[0].data.hierarchy.fired
        def first = images[0].data.hierarchy.objects - mine
        println first.every { it.pathClass.name == it.metadata.PanNuke }
        println images[1].data.hierarchy.objects.every { it.pathClass.name == it.metadata.MoNuSAC }
        println mine.pathClass.name
        """,
        tmp_path,
    )
    lines = output.splitlines()
    nothing = "nucpipe: nothing was recoloured: a.b.svs - Series 0 shows none of the 30 nuclei in "
    assert lines[0].startswith(nothing)
    assert lines[0].endswith("(of 0 detections); run import-nuclei.groovy first")
    assert lines[1].startswith(nothing)
    assert lines[1].endswith("(of 1 detections); run import-nuclei.groovy first")
    assert lines[2:9] == [
        "nucpipe: 30 nuclei on a.b.svs - Series 0",
        "nucpipe: 30 nuclei on a.b.svs - Series 0, 30 old ones replaced",
        "[31, 0, 0]",
        "[0, 0, 0]",
        "true",
        "nucpipe: 30 nuclei on a.b.svs - Series 0, 30 old ones replaced",
        "nucpipe: 30 nuclei on a.svs",
    ]
    assert lines[9:12] == ["[31, 30, 0]", "[0, 1, 0]", "nucpipe: 30 nuclei in the labels of PanNuke"]
    counted = dict(line.strip().split(": ") for line in lines[12:-5])
    assert counted == {label: str(n) for label, n in numbers["a.b"].items() if n}
    assert lines[-5:] == ["true", "30", "true", "true", "mine"]


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    _, setup = folder_for_scripts(tmp_path)
    output = run_groovy(
        setup
        + """
        QP.addImage('other.svs', 5, 5)
        QP.addImage('a.svs', 4000, 2999)
        QP.addImage('a.b', 2000, 1000)
        def images = QP.project.imageList
        run('import-nuclei.groovy') { it.replace('ALL_IMAGES = false', 'ALL_IMAGES = true') }
        println images*.data*.hierarchy*.objects*.size()
        println images*.saved
        run('colour-by-CoNSeP.groovy')
        run('import-nuclei.groovy') { it.replaceFirst("FOLDER = '[^\\n]*", "FOLDER = '/nowhere'") }
        run('colour-by-NuCLS.groovy') { it.replaceFirst("FOLDER = '[^\\n]*", "FOLDER = '/nowhere'") }
        """,
        tmp_path,
    )
    lines = output.splitlines()
    assert lines[:4] == [
        "nucpipe: nothing was imported: a.svs is 4000 x 2999 pixels, and the nuclei of a are of 4000 x 3000; "
        "open the image that was analysed",
        "nucpipe: 30 nuclei on a.b",
        "[0, 0, 30]",
        "[0, 0, 1]",
    ]
    assert lines[4].startswith("nucpipe: nothing was recoloured: no nuclei for other.svs in ")
    moved = "nucpipe: /nowhere/classes.json is not there; set FOLDER in the first lines of this script to where it lies"
    assert lines[5:] == [moved, moved]


def test_the_scripts_run_where_nuclei_hold_no_labels(tmp_path: Path) -> None:
    """Before QuPath 0.6 a detection has no metadata: the labels come from the folder, several by the first of them."""
    results, setup = folder_for_scripts(tmp_path, rule=DecisionRule("threshold", 0.35))
    output = run_groovy(
        setup
        + """
        QP.VERSION.minor = 5
        QP.addImage('a', 4000, 3000)
        run('import-nuclei.groovy')
        run('colour-by-PanNuke.groovy')
        QP.currentImageData.hierarchy.objects.each { println "${it.ID} ${it.metadata} ${it.pathClass}" }
        """,
        tmp_path,
    )
    features = json.loads(gzip.decompress((results / "qupath" / "nuclei" / "a.geojson.gz").read_bytes()))["features"]
    labels = {feature["id"]: feature["properties"]["metadata"].get("PanNuke", "null") for feature in features}
    assert any(";" in label for label in labels.values())
    assert "null" in labels.values()
    assert output.splitlines()[-30:] == [f"{name} null {label.split(';')[0]}" for name, label in labels.items()]


def test_nuclei_stay_in_their_annotations(tmp_path: Path) -> None:
    """Imported anew they go where the old ones were; where these lay beside the annotations, so do the new ones."""
    _, setup = folder_for_scripts(tmp_path)
    output = run_groovy(
        setup
        + """
        QP.addImage('a', 4000, 3000)
        def hierarchy = QP.currentImageData.hierarchy
        hierarchy.annotation = new Object()
        2.times { run('import-nuclei.groovy') }
        println hierarchy.objects*.parent.toSet() == [hierarchy.rootObject].toSet()
        hierarchy.resolveHierarchy()
        run('import-nuclei.groovy')
        println hierarchy.objects*.parent.toSet() == [hierarchy.annotation].toSet()
        """,
        tmp_path,
    )
    assert [line for line in output.splitlines() if not line.startswith("nucpipe:")] == ["true", "true"]
