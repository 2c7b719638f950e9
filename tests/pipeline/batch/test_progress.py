"""Lines for people: what became of a slide, and how far a run is."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.batch.progress import Bars, Lines, failure, final_line
from pipeline.store.run_record import SlideResult

FOLDER = Path("out/cut")


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("cut.svs: expected a slide; it is cut off.", "in/cut.svs: expected a slide; it is cut off."),
        ("cut.svs states no pixel size; give one.", "in/cut.svs: states no pixel size; give one."),
        ("in/cut.svs: no such file.", "in/cut.svs: no such file."),
        ("out/cut/journal: cannot be written.", "in/cut.svs: out/cut/journal: cannot be written."),
        ("cut.svs2: another file.", "in/cut.svs: cut.svs2: another file."),
    ],
)
def test_a_failure_names_the_slide_once(cause: str, told: str) -> None:
    result = SlideResult(Path("in/cut.svs"), FOLDER, "failed", cause=cause)
    assert failure(result) == told
    assert final_line(result) == f"FAILED {told}"


@pytest.mark.parametrize("share", [None, 0.0, 0.1499])
def test_nothing_is_said_of_nuclei_like_the_training_data(share: float | None) -> None:
    result = SlideResult(Path("in/a.svs"), FOLDER, "done", 7, 2.0, 3.0, out_of_distribution=share)
    assert final_line(result) == "a.svs: 7 nuclei on 2 mm² in 3 s -> out/cut"


def test_many_nuclei_unlike_the_training_data_are_told_in_a_second_line() -> None:
    result = SlideResult(Path("in/a.svs"), FOLDER, "done", 7, 2.0, 3.0, out_of_distribution=0.38)
    assert final_line(result).splitlines()[1] == (
        "a.svs: 38 % of these nuclei are unlike anything that the model was trained on (usual: 5 %); "
        "look at them before you count"
    )


def test_lines_of_a_run_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begin("a", 400.0, 40, 150.0, 11)
    lines.began, lines.last = lines.began - 1000, lines.last - 1000  # as if it had been at work for so many seconds
    lines.advance(70, 50.0)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "a: 400 mm² of tissue in 40 regions, 11 of them done before"
    assert re.fullmatch(r"a: 200 of 400 mm², 70 nuclei, 0\.050 mm²/s, 4\d\d\d s left", second)


def test_lines_of_a_new_run(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().begin("a", 4.0, 40)
    assert capsys.readouterr().err == "a: 4 mm² of tissue in 40 regions\n"


def test_the_bar_of_a_run_that_goes_on_begins_at_what_is_done() -> None:
    bars = Bars()
    written = io.StringIO()
    bars.console = Console(file=written, force_terminal=True, highlight=False)
    bars.begin("a", 4.0, 40, 1.5, 11)
    try:
        assert bars.bar is not None
        task = bars.bar.tasks[0]
        assert (task.completed, task.total) == (1.5, 4.0)
        bars.advance(70, 0.5)
        assert task.completed == 2.0
        assert float(task.fields["speed"].split()[0]) == pytest.approx(0.5 / task.elapsed, rel=0.9)
    finally:
        bars.end(SlideResult(Path("a.svs"), FOLDER, "failed", cause="stopped"))
    assert "a: 11 of 40 regions done before" in written.getvalue()
