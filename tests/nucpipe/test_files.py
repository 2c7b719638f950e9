"""Files and folders are written whole, and nothing that somebody else made is touched."""

from pathlib import Path

import pytest

from nucpipe.errors import OutputError
from nucpipe.files import EXPORTED, folder_written_whole, written_whole


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(ZeroDivisionError), written_whole(path) as partial:
        1 / partial.write_text("")
    assert list(tmp_path.iterdir()) == []
    with written_whole(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "whole"


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "table.csv"
    with (
        pytest.raises(OutputError, match=f"{path}: cannot be written \\(Not a directory\\)"),
        written_whole(path) as partial,
    ):
        partial.write_text("")


def test_the_neighbours_of_what_is_written_stay(tmp_path: Path) -> None:
    mine = {"bar.csv.partial": "mine", "foo.old/a": "mine", "foo.partial/b": "mine"}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for _ in range(2):
        with written_whole(tmp_path / "bar.csv") as partial:
            partial.write_text("theirs")
        with folder_written_whole(tmp_path / "foo", "about.json") as partial:
            (partial / "about.json").write_text(EXPORTED)
    for name, text in mine.items():
        assert (tmp_path / name).read_text() == text
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == ["bar.csv", "bar.csv.partial", "foo", "foo.old", "foo.partial"]
