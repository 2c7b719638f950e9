"""XML that anybody may have written: no document type, and so no entities that make a small file large."""

from __future__ import annotations

import xml.parsers.expat
from xml.etree import ElementTree


def parse_xml(text: str | bytes) -> ElementTree.Element:
    """The root element.

    Raises:
        ValueError: no XML, or XML that declares a document type, through which entities could swell a small file or
            name other files.
    """

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, which is refused")

    scanner = xml.parsers.expat.ParserCreate()
    scanner.StartDoctypeDeclHandler = refuse
    try:
        scanner.Parse(text, True)
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, xml.parsers.expat.ExpatError, LookupError) as error:
        raise ValueError(f"no XML: {error}") from error
