"""The recipes for images and the Nextflow module: nobody builds them here, so that all that can be checked is."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from tests.support.paths import EXAMPLES, ROOT
from tests.support.synthetic import draw_slide

CONTAINERS = ROOT / "containers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, without comments."""
    lines = [line for line in (CONTAINERS / "Dockerfile").read_text("utf-8").splitlines() if line.strip()]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if not line.startswith("#"))]


def sections() -> dict[str, list[str]]:
    """Apptainer's: the lines of each."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in (CONTAINERS / "nucpipe.def").read_text("utf-8").splitlines():
        if line.startswith("%"):
            found[name := line] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def copied() -> dict[str, str]:
    """What the Dockerfile copies from the checkout, and to where."""
    pairs = {}
    for word, rest in instructions():
        if word in ("COPY", "ADD"):
            *sources, target = rest.split()
            pairs |= {one: f"{target}{one}" if target.endswith("/") else target for one in sources}
    return pairs


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is only there for x86 Linux")
    done = subprocess.run([hadolint, CONTAINERS / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_recipes_make_one_image_of_the_checkout_alone() -> None:
    files = copied()
    assert files == dict(line.split() for line in sections()["%files"])
    for source, target in files.items():
        assert (ROOT / source).exists(), source
        assert target == f"/src/{source}"
    needed = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    needed |= {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "containers"}
    assert set(files) == needed
    sent = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {line[1:] for line in sent if line.startswith("!")} == needed
    base = next(rest for word, rest in instructions() if word == "FROM")
    assert sections()[""] == ["Bootstrap: docker", f"From: {base}"]
    minor = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert minor is not None
    assert f"Programming Language :: Python :: {minor[1]}" in PROJECT["project"]["classifiers"]
    assert "sh /src/containers/install.sh" in [rest for word, rest in instructions() if word == "RUN"]
    assert "sh /src/containers/install.sh" in sections()["%post"]


def test_the_image_runs_as_no_special_user_with_its_cache_inside() -> None:
    last_user = [rest for word, rest in instructions() if word == "USER"][-1]
    assert int(last_user) > 0
    settings = dict(rest.split("=") for word, rest in instructions() if word == "ENV")
    assert settings == {"NUCPIPE_CACHE": "/opt/nucpipe/cache"}
    assert "export NUCPIPE_CACHE=/opt/nucpipe/cache" in sections()["%post"]
    script = (CONTAINERS / "install.sh").read_text("utf-8")
    assert 'chmod -R a+rwX "$NUCPIPE_CACHE"' in script
    assert ". /opt/nucpipe/environment.sh" in sections()["%environment"]
    # Only Debian's packages and PyPI, and nothing when it runs.
    assert not re.search(r"curl|wget|git clone|https?://", script + "".join(sections()["%post"]))


def test_the_installation_names_what_there_is() -> None:
    script = (CONTAINERS / "install.sh").read_text("utf-8")
    subprocess.run(["sh", "-n", CONTAINERS / "install.sh"], check=True)
    extras = re.search(r'pip install --no-cache-dir -c (\S+) "\.\[([\w,]+)\]"', script)
    assert extras is not None
    assert (ROOT / extras[1]).is_file()
    assert set(extras[2].split(",")) < PROJECT["project"]["optional-dependencies"].keys()
    for name in re.findall(r"containers/([\w.]+)", script):
        assert (CONTAINERS / name).is_file(), name
    from pipeline.cli.commands.run import run

    command = re.search(r"^nucpipe run (\S+) (.*)$", script, re.M)
    assert command is not None
    run.make_context("run", [str(CONTAINERS / "tile.py"), *command[2].split()])  # raises where an option is not known


def test_the_tile_has_nuclei_in_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, CONTAINERS / "tile.py", tmp_path / "tile.png"], check=True)
    picture = cv2.imread(str(tmp_path / "tile.png"))
    assert picture is not None
    count, *_ = cv2.connectedComponents((picture[..., 1] < 100).astype("uint8"))
    assert count - 1 == 64


@pytest.fixture
def inside() -> Iterator[Path]:
    """A cache that a user without rights can read and not write, as in an image, and a folder for temporary files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache" / "networks").mkdir(parents=True)
        (folder / "cache" / "networks" / "network.xml").write_text("converted")
        (folder / "tmp").mkdir()
        for path in (folder, folder / "cache", folder / "cache" / "networks"):
            path.chmod(0o555)
        (folder / "tmp").chmod(0o777)
        yield folder
        for path in (folder, folder / "cache", folder / "cache" / "networks"):
            path.chmod(0o755)


def environment(inside: Path, script: str, **settings: str) -> str:
    """What ``environment.sh`` leaves in NUCPIPE_CACHE for a user without rights."""
    text = (CONTAINERS / "environment.sh").read_text("utf-8").replace("/opt/nucpipe/cache", str(inside / "cache"))
    user = {"user": 12345, "group": 12345, "extra_groups": []} if os.geteuid() == 0 else {}
    variables = {"PATH": os.environ["PATH"], "TMPDIR": str(inside / "tmp"), **settings}
    command = ["sh", "-euc", f'{text}\n{script}\necho "$NUCPIPE_CACHE"']
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=variables, cwd="/", **user
    ).stdout.strip()


def test_a_read_only_image_keeps_its_cache_in_a_copy(inside: Path) -> None:
    first = environment(inside, 'echo compiled > "$NUCPIPE_CACHE/networks/more"')
    assert Path(first).parent == inside / "tmp"
    assert (Path(first) / "networks" / "network.xml").read_text() == "converted"
    assert environment(inside, ":") == first
    assert (Path(first) / "networks" / "more").read_text() == "compiled\n"
    assert stat.S_IMODE(Path(first).stat().st_mode) & 0o077 == 0
    assert [path.name for path in (inside / "tmp").iterdir()] == [Path(first).name]
    assert environment(inside, ":", NUCPIPE_CACHE="/mine") == "/mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, or make another user's folder")
def test_a_copy_that_another_user_has_put_there_is_not_used(inside: Path) -> None:
    (inside / "tmp" / "nucpipe-cache-12345").mkdir()
    assert environment(inside, ":") == str(inside / "cache")


STUB = """
class Recorder {
    Map facts
    def methodMissing(String name, Object arguments) { facts[name] = arguments as List; null }
    def propertyMissing(String name) { facts[name] }
}
made = [:]
def methodMissing(String name, Object arguments) {
    if (name == 'process') return null
    if (arguments.length == 1 && arguments[0] instanceof Closure) made[name] = arguments[0]
    null
}
"""


def test_the_nextflow_module_runs_the_command(tmp_path: Path) -> None:
    """Groovy, which Nextflow's language is, fills in the script of the process; the shell and nucpipe take it."""
    groovy = shutil.which("groovy")
    if groovy is None:
        pytest.skip("there is no groovy here to fill in Nextflow's script with")
    slide = draw_slide(220, 200).save(tmp_path / "it is a slide.png")
    module = (EXAMPLES / "nextflow" / "main.nf").read_text("utf-8")
    fill_in = f"""
params = [out: 'published', slides: 'slides/*.svs']
{module}
def process = made['NUCPIPE']
process.delegate = new Recorder(facts: [slide: new File({json.dumps(str(slide))}), task: [cpus: 8], params: params])
process.resolveStrategy = Closure.DELEGATE_ONLY
println process()
assert process.delegate.facts.container == ['nucpipe']
assert made.containsKey('workflow')
"""
    (tmp_path / "dry.groovy").write_text(STUB + fill_in, "utf-8")
    filled = subprocess.run([groovy, tmp_path / "dry.groovy"], capture_output=True, text=True)
    assert filled.returncode == 0, filled.stderr
    script = filled.stdout.strip()
    assert script == f"nucpipe run '{slide}' --out results --workers 8"
    nucpipe = f"{sys.executable} -m nucpipe"
    dry = f'nucpipe() {{ {nucpipe} "$@" --mpp 0.25 --dry-run; }}\n{script}'
    done = subprocess.run(["bash", "-euc", dry], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 slide, 0 of which cannot be opened; nothing was done" in done.stdout
