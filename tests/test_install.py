"""What the README promises about installing agrees with pyproject.toml, constraints.txt, the hints and .ci/run."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from nucpipe.optional.extras import install_command

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = [ROOT / name for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
SOURCES = [path for package in PACKAGES for path in package.rglob("*.py")]
LINE = re.compile(
    r"python3 -m venv \.venv && \.venv/bin/pip install -c (?P<constraints>\S+) (?P<target>\S+)"
    r" && \.venv/bin/(?P<program>\S+)(?P<arguments>.*)"
)


def constraints() -> dict[str, Version]:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.]*)", line) for line in lines]
    # Old pips take no URL, no extra and no hash in constraints, and PyPI has no local versions such as 2.12.1+cpu.
    assert [line for line, pin in zip(lines, pins, strict=True) if pin is None] == []
    versions = {pin[1]: Version(pin[2]) for pin in pins if pin}
    assert len(versions) == len(lines)
    return versions


def readme_lines() -> list[str]:
    block = re.search(r"^<!-- \.ci/run .*-->\n```\n(.*?)```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert block is not None
    return block[1].splitlines()


def test_the_first_block_of_the_readme_installs_and_runs() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    fences = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    assert fences[0].splitlines() == readme_lines()
    parsed = [LINE.fullmatch(line) for line in readme_lines()]
    assert all(parsed)
    job, tests = (match.groupdict() for match in parsed if match)
    assert (ROOT / job["constraints"]).is_file()
    assert (ROOT / tests["constraints"]).is_file()
    assert (job["target"], tests["target"]) == (".", '".[dev]"')
    assert job["program"] in PROJECT["scripts"]
    assert job["arguments"].split()[0] == "demo"
    assert (tests["program"], tests["arguments"]) == ("pytest", "")
    assert "pytest" in {Requirement(line).name for line in EXTRAS["dev"]}


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_the_constraints_satisfy_the_requirements(extra: str | None) -> None:
    versions = constraints()
    for requirement in map(Requirement, PROJECT["dependencies"] if extra is None else EXTRAS[extra]):
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= EXTRAS.keys()
            continue
        # Without a lower bound an old pip may go back for years before it finds a set that fits.
        name = canonicalize_name(requirement.name)
        assert name in versions, name
        assert versions[name] in requirement.specifier, requirement
        if extra != "dev":
            assert any(bound.operator in (">=", "==") for bound in requirement.specifier), requirement


def test_whatever_comes_with_the_requirements_is_constrained() -> None:
    """A package that is not in constraints.txt is one whose versions pip tries."""
    versions = constraints()
    todo = [
        Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    ]
    missing, seen = {}, set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, *sorted(requirement.extras))
        if key in seen or name == PROJECT["name"]:
            continue
        seen.add(key)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another Python or another platform
        if name not in versions:
            missing[name] = requirement
        elif found.version == str(versions[name]):
            for inner in map(Requirement, found.requires or []):
                if inner.marker is None or any(
                    inner.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
                ):
                    inner_name = canonicalize_name(inner.name)
                    assert inner_name not in versions or versions[inner_name] in inner.specifier, (name, inner)
                    todo.append(inner)
    assert missing == {}
    assert len(seen) > 100


def test_setuptools_is_one_for_every_python() -> None:
    """On Python 3.11 the environment brings one; from 3.12 on the constraint decides, and old ones cannot run there."""
    # pkg_resources used pkgutil.ImpImporter, which left Python with 3.12.
    assert constraints()["setuptools"] >= Version("66.1")


def test_dev_contains_every_part() -> None:
    inner = [Requirement(line) for line in EXTRAS["dev"] if Requirement(line).name == PROJECT["name"]]
    assert {name for requirement in inner for name in requirement.extras} == EXTRAS.keys() - {"dev"}


def test_hints_say_what_works() -> None:
    """nucpipe is on no index, so ``pip install "nucpipe[serve]"`` finds nothing."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").iterdir()]
    for path in [*SOURCES, *(page for page in pages if page.is_file())]:
        text = path.read_text("utf-8")
        assert f"{PROJECT['name']}[" not in text, path
        for target in re.findall(r'pip install (?:-c constraints\.txt )?"\.\[([\w,]+)\]"', text):
            assert set(target.split(",")) <= EXTRAS.keys(), path
    code = "\n".join(path.read_text("utf-8") for path in SOURCES)
    named = set(re.findall(r"install_command\(['\"](\w+)['\"]\)", code))
    assert named >= {"cluster", "parquet", "s3", "serve", "train"}
    assert named <= EXTRAS.keys()
    assert install_command("s3").startswith('pip install -c constraints.txt ".[s3]"')
    assert install_command().startswith("pip install -c constraints.txt . ")


def test_supported_pythons_are_the_same_everywhere() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [int(line.removeprefix(prefix)) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert minors == list(range(minors[0], minors[-1] + 1))
    supported = SpecifierSet(PROJECT["requires-python"])
    assert f"3.{minors[0]}" in supported
    assert f"3.{minors[0] - 1}" not in supported
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py3{minors[0]}"
    names = [f"3.{minor}" for minor in minors]
    assert f"Python {', '.join(names[:-1])} or {names[-1]}" in (ROOT / "docs" / "install.md").read_text("utf-8")


def test_the_oldest_pip_that_is_tested_is_the_one_that_is_named() -> None:
    tested = re.search(r"^oldest_pip=(\S+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.M)
    assert tested is not None
    assert f"The oldest pip that is supported is {tested[1]}," in (ROOT / "docs" / "install.md").read_text("utf-8")
