"""``OUT/summary.csv``: a line a slide, added as soon as the slide is finished."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from nucpipe.errors import OutputError
from nucpipe.files import cannot_write, spreadsheet_text, written_whole
from pipeline.batch.lock import Lock, waiting_for
from pipeline.slide.identity import printable
from pipeline.store.run_record import SlideResult

SUMMARY = "summary.csv"
LOCK = ".summary"
"""Folder of the lock on it, alone, for a lock lists its folder, and all slides' folders may lie beside the summary."""
COLUMNS = ["slide", "folder", "status", "nuclei", "tissue_mm2", "seconds", "cause"]
BEFORE = "finished before"
GOOD = ("done", BEFORE)
TAIL_BYTES = 4096
"""Of what was read of the file: they are compared to see that another process has only added lines since."""


class Summary:
    """The summary of everything that was ever run into a folder, by however many processes.

    After ``COLUMNS`` comes a column for each label, ``<library>:<label>``, with the number of nuclei that have it, or
    empty where nothing taught the classifier the label, and before these ``out_of_distribution``, the share of nuclei
    unlike the training data, where the classifier can tell. A line is added at the end of the file. The whole file is
    written only for a column that it lacks, and by :meth:`tidy`, which drops the lines of slides that have a newer one.
    """

    def __init__(self, out: Path) -> None:
        """Make the folder, and check that an existing summary is one.

        Raises:
            OutputError: it cannot be written, or the file is another's.
        """
        self.out, self.path = out, out / SUMMARY
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(out, error) from error
        self._forget()
        self._read_on()

    def write(self, results: Sequence[tuple[SlideResult, Path]]) -> bool:
        """Add slides' lines, which replace earlier ones; those of other slides stay, whoever writes them.

        Args:
            results: what became of the slides, and the folder of each one's results as seen from the summary, so that
                it means the same from everywhere.

        Returns:
            False where nothing was to be written: the lines of finished slides are there.

        Raises:
            OutputError: they cannot be written.
        """
        lines = [self._line(result, folder) for result, folder in results]
        self._read_on()
        if not any(map(self._is_news, lines)):
            return False
        with waiting_for(Lock(self.out / LOCK)):
            self._read_on()
            news = list(filter(self._is_news, lines))
            if self._is_torn or not set().union(*news) <= set(self._columns):
                self._write_all(news)
            else:
                self._append(news)
        return True

    def _is_news(self, line: dict[str, str]) -> bool:
        return line["status"] != BEFORE or self._statuses.get(line["folder"]) not in GOOD

    def _line(self, result: SlideResult, folder: Path) -> dict[str, str]:
        line = {
            "slide": _cell(result.slide),
            "folder": _cell(folder),
            "status": result.status,
            "nuclei": str(result.nuclei),
            "tissue_mm2": f"{result.tissue_mm2:.6f}",
            "seconds": f"{result.seconds:.1f}",
            "cause": _cell(result.cause),
        }
        if result.out_of_distribution is not None:
            line["out_of_distribution"] = f"{result.out_of_distribution:.4f}"
        for library, labels in result.counts.items():
            line |= {f"{library}:{label}": "" if count is None else str(count) for label, count in labels.items()}
        return line

    def tidy(self) -> bool:
        """Leave one line a slide, the newest; False where that was so already.

        Raises:
            OutputError: it cannot be written.
        """
        self._read_on()
        if not self._outdated and not self._is_torn:
            return False
        with waiting_for(Lock(self.out / LOCK)):
            self._write_all()
        return True

    def _forget(self) -> None:
        self._columns: list[str] = []
        self._statuses: dict[str, str] = {}  # by folder
        self._outdated = 0  # lines
        self._is_torn = False
        self._end, self._tail = 0, b""  # of what was read of the file

    def _read_on(self) -> list[dict[str, str]]:
        """Return the lines that were added since the last time; all where the file was written anew."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._end - len(self._tail))
                content = file.read()
                if self._is_torn or not content.startswith(self._tail):
                    self._forget()
                    file.seek(0)
                    content = file.read()
        except FileNotFoundError:
            self._forget()
            return []
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({error}); move it away or use another --out.") from error
        return self._take(content[len(self._tail) :])

    def _take(self, content: bytes) -> list[dict[str, str]]:
        """Return the lines in what was read, and remember which slides they are of."""
        if not content:
            return []
        try:
            rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline="")) if row]
        except csv.Error as error:
            raise OutputError(f"{self.path}: cannot be read ({error}); move it away or use another --out.") from error
        if not self._columns and rows:
            self._columns = rows.pop(0)
        self._is_torn = not content.endswith(b"\n")  # the power went while the last line was written
        if self._is_torn and rows and len(rows[-1]) < len(self._columns):
            rows.pop()
        if not set(self._columns) >= set(COLUMNS) or any(len(row) != len(self._columns) for row in rows):
            raise OutputError(f"{self.path}: not a summary of nucpipe; move it away or use another --out.")
        lines = [dict(zip(self._columns, row, strict=True)) for row in rows]
        for line in lines:
            self._outdated += line["folder"] in self._statuses
            self._statuses[line["folder"]] = line["status"]
        self._end, self._tail = self._end + len(content), content[-TAIL_BYTES:]
        return lines

    def _append(self, lines: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, restval="").writerows(lines)
        content = text.getvalue().encode()
        try:
            with self.path.open("ab") as file:
                try:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:  # a full disk: half a line would spoil the next one
                    os.truncate(self.path, self._end)
                    raise
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._take(content)

    def _write_all(self, news: Sequence[dict[str, str]] = ()) -> None:
        """Write the whole file anew, with some lines more."""
        self._forget()
        lines: dict[str, dict[str, str]] = {}
        for one in [*self._read_on(), *news]:
            lines[one["folder"]] = one
        columns = dict.fromkeys([*COLUMNS, *self._columns, *(name for line in news for name in line)])
        with written_whole(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), restval="")
            writer.writeheader()
            writer.writerows(lines.values())
        self._forget()
        self._read_on()


def _cell(text: object) -> str:
    return spreadsheet_text(printable(text))
