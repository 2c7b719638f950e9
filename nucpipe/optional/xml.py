"""XML that anybody may have written: no document type, and so no entities that make a small file large."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError

from defusedxml import DTDForbidden
from defusedxml.ElementTree import fromstring


def parse_xml(text: str | bytes) -> Element:
    """Return the root element.

    Raises:
        ValueError: no XML, or XML that declares a document type, through which entities could swell a small file or
            name other files.
    """
    try:
        root: Element = fromstring(text, forbid_dtd=True)
    except DTDForbidden as error:
        raise ValueError("it declares a document type, which is refused") from error
    except (ParseError, LookupError) as error:
        raise ValueError(f"not XML: {error}") from error
    return root
