"""An S3-compatible server on this machine, whose answers a test can break."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class Faults:
    """What becomes of requests.

    Attributes:
        on_request: called with method and path; may give an answer in the request's place: its status, S3's code for
            the error, and a message.
        keys: access keys that are let in; None: all.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self.on_request: Callable[[str, str], tuple[str, str, str] | None] = lambda method, path: None
        self.keys: frozenset[str] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self.on_request(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        key = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        if self.keys is not None and key not in self.keys:
            answer = "403 Forbidden", "InvalidAccessKeyId", "The AWS Access Key Id does not exist in our records."
        if answer is None:
            return self.app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code, message = answer
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Faults]]:
    """Yield a file system with an empty ``bucket``, and the server's faults; the environment leads to the server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    werkzeug = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto's server")
    from werkzeug.serving import make_server

    faults = Faults(werkzeug.DomainDispatcherApplication(werkzeug.create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True, request_handler=werkzeug.MotoRequestHandler)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for key, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", **KEYS}.items():
        monkeypatch.setenv(key, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    remove_buckets()  # moto keeps its buckets from server to server
    files = fsspec.filesystem("s3")
    files.mkdir("bucket")
    yield files, faults
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


def remove_buckets() -> None:
    """Remove every bucket, whatever is in it."""
    from moto.backends import get_backend

    for account in get_backend("s3").values():
        for backend in account.values():
            backend.reset()
