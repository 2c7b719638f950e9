"""A service in this process behind a real socket, and what its tests ask it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import httpx
import numpy as np

from pipeline.inference.models import Models
from pipeline.web.connections import ConnectionLimits
from pipeline.web.server import LIMITS, Server, listen
from pipeline.web.service.app import service_app
from pipeline.web.service.config import ServeConfig
from tests.support.synthetic import MPP, DarkSpots, models

MODELS = models()


@contextmanager
def served(
    config: ServeConfig | None = None, with_models: Models = MODELS, limits: ConnectionLimits = LIMITS
) -> Iterator[httpx.Client]:
    """A client of a service that runs in this process, behind a real socket."""
    listener = listen("127.0.0.1", 0)
    app = service_app(with_models, config or ServeConfig(), "PanNuke", with_models.classifier.batch_size)
    server = Server(app, limits=limits)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.01)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def ask(client: httpx.Client, image: bytes, mpp: Any = MPP, name: str = "tile.png", **fields: Any) -> httpx.Response:
    return client.post("/v1/nuclei", files={"image": (name, image)}, data={"mpp": mpp, **fields})


def expect(answer: httpx.Response, status: int, code: str, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert error["code"] == code
    assert all(word in error["message"] for word in words), error["message"]


class Slow(DarkSpots):
    """A detector that waits until it may go on."""

    def __init__(self) -> None:
        self.begun, self.may_go_on = threading.Semaphore(0), threading.Event()

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        self.begun.release()
        assert self.may_go_on.wait(60)
        return super().predict(pixels)


def connected(client: httpx.Client, stack: contextlib.ExitStack, sent: str) -> socket.socket:
    """A connection on which so much has been sent."""
    address = client.base_url.host, client.base_url.port or 0
    connection = stack.enter_context(socket.create_connection(address, timeout=30))
    connection.sendall(sent.encode())
    return connection
