"""The folder for QuPath. QuPath itself is not run: its scripts run on stand-ins for the part of its API they use."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

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


def test_the_scripts_run(tmp_path: Path) -> None:
    results = tmp_path / "it's \\ here"
    for name, size, seed in (("a", (4000, 3000), 1), ("a.b", (2000, 1000), 2)):
        random_store(results / name, 30, size, name=name, seed=seed)
    export_for_qupath(open_results(results), ExportOptions(primary="MoNuSAC"), results / "qupath")
    numbers = {name: open_result(results / name).labels("PanNuke").value_counts() for name in ("a", "a.b")}
    folder = str(results / "qupath").replace("\\", "\\\\").replace("'", "\\'")
    output = run_groovy(
        f"""
        import qupath.lib.objects.classes.PathClass
        import qupath.lib.scripting.QP
        QP.addImage('a.b.svs - Series 0', 2000, 1000)
        QP.addImage('a.svs', 4000, 2999)
        QP.addImage('other.svs', 5, 5)
        def images = QP.project.imageList
        def run = {{ file, change = {{ it }} ->
            new GroovyShell(this.class.classLoader).evaluate(change(new File('{folder}', file).text))
        }}
        run('import-nuclei.groovy')
        run('import-nuclei.groovy')
        println images*.data*.hierarchy*.objects*.size()
        println images*.saved
        println PathClass.known['epithelial'].color == (int) 0xffc80000
        run('import-nuclei.groovy') {{ it.replace('ALL_IMAGES = false', 'ALL_IMAGES = true') }}
        println images*.data*.hierarchy*.objects*.size()
        println images*.saved
        run('colour-by-PanNuke.groovy')
        println PathClass.known['epithelial'].color == (int) 0xff73c8ff
        println images[0].data.hierarchy.fired
        println images[0].data.hierarchy.objects.every {{ it.pathClass.name == it.metadata.PanNuke }}
        println images[1].data.hierarchy.objects.every {{ it.pathClass.name == it.metadata.MoNuSAC }}
        """,
        tmp_path,
    )
    lines = output.splitlines()
    assert lines[:5] == [
        "nucpipe: 30 nuclei on a.b.svs - Series 0",
        "nucpipe: 30 nuclei on a.b.svs - Series 0, 30 old ones replaced",
        "[30, 0, 0]",
        "[0, 0, 0]",
        "true",
    ]
    assert lines[5] == "nucpipe: 30 nuclei on a.b.svs - Series 0, 30 old ones replaced"
    assert lines[6].startswith("nucpipe: a.svs is 4000 x 2999 pixels, the nuclei are of 4000 x 3000: check")
    assert lines[7:11] == [
        "nucpipe: 30 nuclei on a.svs",
        "[30, 30, 0]",
        "[0, 1, 0]",
        "nucpipe: 30 nuclei in the labels of PanNuke",
    ]
    counted = dict(line.strip().split(": ") for line in lines[11:-4])
    assert counted == {label: str(n) for label, n in numbers["a.b"].items() if n}
    assert lines[-4:] == ["true", "30", "true", "true"]
