"""``OUT/summary.csv``: a line a slide, written as soon as the slide is finished."""

from __future__ import annotations

import csv
from pathlib import Path

from nucpipe.errors import OutputError
from nucpipe.files import cannot_write, written_whole
from pipeline.batch.lock import Lock, waiting_for
from pipeline.slide.identity import printable
from pipeline.store.run_record import SlideResult

SUMMARY = "summary.csv"
COLUMNS = ["slide", "folder", "status", "nuclei", "tissue_mm2", "seconds", "cause"]
GOOD = ("done", "finished before")


class Summary:
    """The summary of everything that was ever run into a folder, by however many processes.

    After ``COLUMNS`` comes a column for each label, ``<library>:<label>``, with the number of nuclei that have it.
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
        self._read()

    def write(self, result: SlideResult, folder: Path) -> None:
        """Add a slide's line, or replace it; lines of other slides stay, whoever writes them meanwhile.

        Args:
            result: what became of the slide.
            folder: of its results as seen from the summary, so that it means the same from everywhere.

        Raises:
            OutputError: it cannot be written.
        """
        line = {
            "slide": _cell(result.slide),
            "folder": _cell(folder),
            "status": result.status,
            "nuclei": str(result.nuclei),
            "tissue_mm2": f"{result.tissue_mm2:.6f}",
            "seconds": f"{result.seconds:.1f}",
            "cause": _cell(result.cause),
        }
        for library, labels in result.counts.items():
            line |= {f"{library}:{label}": str(count) for label, count in labels.items()}
        with waiting_for(Lock(self.out, "summary")):
            lines = self._read()
            before = lines.get(line["folder"])
            if before is None or result.status != "finished before" or before["status"] not in GOOD:
                lines[line["folder"]] = line
            columns = dict.fromkeys([*COLUMNS, *(name for one in lines.values() for name in one)])
            with written_whole(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(columns), restval="")
                writer.writeheader()
                writer.writerows(lines.values())

    def _read(self) -> dict[str, dict[str, str]]:
        """Return the lines that are there, by folder."""
        try:
            with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            return {}
        except (OSError, csv.Error) as error:
            raise OutputError(f"{self.path}: cannot be read ({error}); move it away or use another --out.") from error
        if any(None in row or None in row.values() or not row.keys() >= set(COLUMNS) for row in rows):
            raise OutputError(f"{self.path}: not a summary of nucpipe; move it away or use another --out.")
        return {row["folder"]: row for row in rows}


def _cell(text: object) -> str:
    """Return a text for one cell, which no spreadsheet takes for a formula."""
    cell = printable(text)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
