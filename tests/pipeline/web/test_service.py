"""The service over real HTTP: its answers are those of a run, whoever else is served, and nothing brings it down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="FastAPI is not installed")

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.inference.models import Models
from pipeline.run_slide import run_slide
from pipeline.store.run_record import SilentReporter
from pipeline.web.connections import ConnectionLimits, QuietAccepts
from pipeline.web.server import LIMITS, Server, listen
from pipeline.web.service.app import service_app
from pipeline.web.service.config import ServeConfig
from pipeline.web.service.errors import ApiError
from pipeline.web.service.metrics import Metrics
from pipeline.web.service.pixel_budget import PixelBudget
from pipeline.web.service.request_limits import RequestLimits
from pipeline.web.service.threads import Threads
from pipeline.web.service.worker import warm_up
from segmentation.nuclei import Nuclei
from tests.support.synthetic import MPP, DarkSpots, draw_slide, models

MODELS = models()


@contextmanager
def served(
    config: ServeConfig | None = None, with_models: Models = MODELS, limits: ConnectionLimits = LIMITS
) -> Iterator[httpx.Client]:
    """A client of a service that runs in this process, behind a real socket."""
    listener = listen("127.0.0.1", 0)
    app = service_app(with_models, config or ServeConfig(), "PanNuke")
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


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served() as one:
        yield one


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


# ---- answers


def test_the_answer_is_that_of_a_run(client: httpx.Client, tmp_path: Path) -> None:
    path = draw_slide(420, 300, seed=3).save(tmp_path / "tile.png")
    run_slide(path, tmp_path / "out", MODELS, RunConfig(mpp=MPP, tissue="none", primary="CoNSeP"), SilentReporter())
    answer = ask(client, path.read_bytes(), format="geojson", primary="consep")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/geo+json"
    assert answer.content == (tmp_path / "out" / "nuclei.geojson").read_bytes()


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.37])
def test_json_has_the_same_nuclei_with_five_labels(client: httpx.Client, mpp: float) -> None:
    image = png(draw_slide(300, 260).image)
    answer = ask(client, image, mpp, probabilities=True).json()
    features = json.loads(ask(client, image, mpp, format="geojson").content)["features"]
    assert (answer["width"], answer["height"], answer["mpp"]) == (300, 260, mpp)
    assert answer["count"] == len(answer["nuclei"]) == len(features) > 10
    for nucleus, feature in zip(answer["nuclei"], features, strict=True):
        assert nucleus["id"] == feature["id"]
        ring = feature["geometry"]["coordinates"][0]
        assert {tuple(point) for point in nucleus["outline"]} == {tuple(point) for point in ring}
        assert {name: label["label"] for name, label in nucleus["labels"].items()} == feature["properties"]["metadata"]
        for name, every in nucleus["probabilities"].items():
            assert sum(every.values()) == pytest.approx(1, abs=1e-3)
            assert every[nucleus["labels"][name]["label"]] == max(every.values())
        assert "plasma_cell" not in nucleus["labels"]


def test_a_threshold_leaves_labels_out(client: httpx.Client) -> None:
    image = png(draw_slide(200, 200).image)
    answer = ask(client, image, decide="best", threshold=0.99).json()
    assert {label for nucleus in answer["nuclei"] for label in nucleus["labels"].values()} == {None}
    assert "probabilities" not in answer["nuclei"][0]
    assert ask(client, image, threshold=0.99).json() == answer


def test_images_of_every_kind_and_nothing_found(client: httpx.Client, tmp_path: Path) -> None:
    image = draw_slide(300, 260).image
    wanted = ask(client, png(image)).json()["count"]
    for suffix in (".tif", ".jpg"):
        path = tmp_path / f"x{suffix}"
        cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        assert ask(client, path.read_bytes()).json()["count"] == wanted
    blank = ask(client, png(np.full((64, 50, 3), 255, np.uint8)))
    assert blank.json() == {"width": 50, "height": 64, "mpp": MPP, "count": 0, "nuclei": []}
    assert json.loads(ask(client, png(np.full((8, 8, 3), 255, np.uint8)), format="geojson").content)["features"] == []


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_images_of_single_nuclei_are_named(client: httpx.Client, mpp: float) -> None:
    rng = np.random.default_rng(0)
    side = round(16 / mpp)
    crops = rng.integers(0, 256, (5, side, side, 3), np.uint8)
    files = [("images", (f"{k}.png", png(crop))) for k, crop in enumerate(crops)]
    answer = client.post("/v1/labels", files=files, data={"mpp": mpp})
    assert answer.status_code == 200, answer.text
    expected = MODELS.classifier(crops).probabilities
    images = answer.json()["images"]
    assert [image["image"] for image in images] == [f"{k}.png" for k in range(5)]
    for image, row in zip(images, expected, strict=True):
        for name, columns in MODELS.outputs.slices.items():
            labels = MODELS.outputs.library(name).labels
            trained = MODELS.outputs.trained[columns]
            known = [(x, p) for x, p, t in zip(labels, row[columns], trained, strict=True) if t]
            assert image["probabilities"][name] == pytest.approx({x: float(p) for x, p in known}, abs=1e-5)
            assert image["labels"][name]["p"] == pytest.approx(max(p for _, p in known), abs=1e-4)


# ---- many at once


def test_clients_are_served_together_as_if_alone(client: httpx.Client) -> None:
    """Images of several sizes and pixel sizes at once: each gets its own nuclei."""
    jobs = [(png(draw_slide(150 + 13 * k, 300 - 9 * k, seed=k).image), (0.25, 0.5)[k % 2]) for k in range(16)]
    alone = [ask(client, image, mpp).json() for image, mpp in jobs]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda job: ask(client, *job).json(), jobs))
    for one, other in zip(alone, together, strict=True):
        assert one["count"] == other["count"] > 5
        for a, b in zip(one["nuclei"], other["nuclei"], strict=True):
            assert a["id"] == b["id"]
            assert a["outline"] == b["outline"]
            for name in a["labels"]:
                assert a["labels"][name]["p"] == pytest.approx(b["labels"][name]["p"], abs=2e-4)
    counts = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    sheets, images = (float(counts[f"nucpipe_images_together_{what}"]) for what in ("count", "sum"))
    assert images > sheets


def test_one_that_waits_joins_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    image = png(draw_slide(120, 120).image)
    with served(with_models=replace(MODELS, detector=slow)) as client, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, client, image) for _ in range(3)]
        assert slow.begun.acquire(timeout=30)
        slow.may_go_on.set()
        assert {answer.result().json()["count"] for answer in answers} == {ask(client, image).json()["count"]}


def test_what_is_too_much_is_turned_away_and_the_rest_served() -> None:
    slow = Slow()
    image = png(draw_slide(120, 120).image)
    with (
        served(ServeConfig(max_waiting=2), replace(MODELS, detector=slow)) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        first = pool.submit(ask, client, image)
        assert slow.begun.acquire(timeout=30)
        # Of another pixel size, so that they wait instead of joining.
        others = [pool.submit(ask, client, image, 0.5) for _ in range(8)]
        deadline = time.monotonic() + 30
        while sum(other.done() for other in others) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        turned_away = [other.result() for other in others if other.done()]
        assert len(turned_away) == 6
        for answer in turned_away:
            expect(answer, 503, "busy", "2 requests wait already")
            assert answer.headers["retry-after"] == "2"
        slow.may_go_on.set()
        assert first.result().status_code == 200
        assert sorted(other.result().status_code for other in others) == [200, 200, *[503] * 6]


def test_the_requests_that_are_answered_at_a_time_are_limited() -> None:
    async def requests() -> None:
        may_go_on, statuses = asyncio.Event(), list[int]()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await receive()
                await may_go_on.wait()
                await PlainTextResponse("done")(scope, receive, send)
            except HTTPException as error:
                await PlainTextResponse(error.detail, error.status_code)(scope, receive, send)

        async def one() -> None:
            messages = iter([{"type": "http.request", "body": b"all", "more_body": False}])

            async def receive() -> Any:
                return next(messages, None) or await asyncio.Event().wait()

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await limits({"type": "http", "method": "POST", "path": "/v1/nuclei", "headers": []}, receive, send)

        limits = RequestLimits(app, ServeConfig(max_waiting=2), Metrics())
        tasks = [asyncio.create_task(one()) for _ in range(6)]
        while len(statuses) < 2:
            await asyncio.sleep(0)
        may_go_on.set()
        await asyncio.gather(*tasks)
        assert statuses == [503, 503, 200, 200, 200, 200]
        await one()
        assert statuses[-1] == 200

    asyncio.run(requests())


def test_warming_up_does_all_that_an_answer_needs() -> None:
    found: list[int] = []

    class Counts(DarkSpots):
        def nuclei(self, prediction: np.ndarray, mpp: float) -> Nuclei:
            nuclei = super().nuclei(prediction, mpp)
            found.append(len(nuclei))
            return nuclei

    warm_up(replace(MODELS, detector=Counts()), 64)
    assert sum(found) >= 4  # four, and their mirror images: no answer lacks nuclei to measure and to name


def test_what_takes_too_long_is_given_up() -> None:
    slow = Slow()
    image = png(draw_slide(120, 120).image)
    with served(ServeConfig(timeout_s=0.3), replace(MODELS, detector=slow)) as client:
        expect(ask(client, image), 504, "timeout", "not finished within 0.3 s")
        slow.may_go_on.set()
        for _ in range(100):
            if (answer := ask(client, image)).status_code == 200:
                break
        assert answer.status_code == 200


def test_a_failure_is_told_and_the_next_is_served(caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(DarkSpots):
        left = 1

        def predict(self, pixels: np.ndarray) -> np.ndarray:
            if self.left:
                self.left = 0
                raise RuntimeError("out of luck")
            return super().predict(pixels)

    image = png(draw_slide(120, 120).image)
    with served(with_models=replace(MODELS, detector=Breaks())) as client:
        expect(ask(client, image), 500, "internal", "RuntimeError")
        assert ask(client, image).status_code == 200
    assert "out of luck" in caplog.text


def test_twenty_clients_for_a_while(client: httpx.Client) -> None:
    """Nothing fails. The two minutes with a look at the memory are benchmarks/serve.py."""
    images = [png(draw_slide(120 + k, 140, seed=k).image) for k in range(20)]
    expected = [ask(client, image).json()["count"] for image in images]

    def work(k: int) -> list[int]:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            return [ask(own, images[k]).json()["count"] for _ in range(5)]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(work, range(20))) == [[count] * 5 for count in expected]


# ---- what is refused


def test_what_is_no_image_is_refused(client: httpx.Client) -> None:
    good = png(draw_slide(120, 120).image)
    expect(ask(client, b"hello"), 415, "no_image", "expected a PNG, JPEG or TIFF")
    expect(ask(client, b""), 415, "no_image")
    expect(ask(client, good[: len(good) // 2]), 415, "no_image", "cut off or broken")
    expect(ask(client, b"II*\0" + bytes(50)), 415, "no_image", "broken")
    expect(ask(client, png(np.zeros((7, 90, 3), np.uint8))), 422, "invalid", "at least 8 x 8")


@pytest.mark.parametrize("mpp", ["", "x", "nan", "inf", "-1", "0", "5", "1e999"])
def test_a_pixel_size_is_needed(client: httpx.Client, mpp: str) -> None:
    expect(ask(client, png(draw_slide(120, 120).image), mpp), 422, "invalid", "mpp")


def test_wrong_fields_are_named(client: httpx.Client) -> None:
    good = png(draw_slide(120, 120).image)
    expect(ask(client, good, primary="Mars"), 422, "invalid", "unknown library 'Mars'")
    expect(ask(client, good, format="xml"), 422, "invalid", "format")
    expect(ask(client, good, threshold="1.5"), 422, "invalid", "threshold")
    expect(ask(client, good, decide="best"), 422, "invalid", "threshold")
    expect(client.post("/v1/nuclei", data={"mpp": 0.25}), 422, "invalid", "image")
    expect(
        client.post("/v1/nuclei", content=b"\xff", headers={"content-type": "multipart/form-data"}), 400, "bad_request"
    )
    expect(client.get("/v1/nuclei"), 405, "method_not_allowed")
    expect(client.get("/v1/nothing"), 404, "not_found")


def test_sizes_are_limited_before_anything_is_decoded() -> None:
    with served(ServeConfig(max_bytes=20_000, max_pixels=10_000, max_crops=2)) as client:
        expect(ask(client, png(np.zeros((101, 100, 3), np.uint8))), 413, "too_large", "10,000")
        expect(ask(client, png(np.zeros((80, 80, 3), np.uint8)), 1.0), 413, "too_large", "160 x 160")
        expect(ask(client, bytes(30_000)), 413, "too_large", "20,000 bytes")

        def chunks() -> Iterator[bytes]:
            yield b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield bytes(1000)

        # Without a length that could be looked at beforehand.
        answer = client.post(
            "/v1/nuclei", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"}
        )
        expect(answer, 413, "too_large")
        files = [("images", ("a.png", png(np.zeros((64, 64, 3), np.uint8))))] * 3
        expect(client.post("/v1/labels", files=files, data={"mpp": 0.25}), 413, "too_large", "3 images")
        assert ask(client, png(np.zeros((100, 100, 3), np.uint8))).status_code == 200


def test_patches_are_cut_at_once_and_no_image_is_kept() -> None:
    white = png(np.full((1000, 1000, 3), 255, np.uint8))
    with served() as client:
        files = [("images", (f"{k}.png", white)) for k in range(12)]
        tracemalloc.start()
        try:
            answer = client.post("/v1/labels", files=files, data={"mpp": MPP})
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(answer.json()["images"]) == 12
    # One image takes 3 MB, all of them 36 MB.
    assert most < 20e6


def test_the_pixels_of_a_request_are_limited_together() -> None:
    image = png(np.full((100, 100, 3), 255, np.uint8))
    with served(ServeConfig(max_pixels=25_000)) as client:

        def labels(count: int) -> httpx.Response:
            files = [("images", (f"{k}.png", image)) for k in range(count)]
            return client.post("/v1/labels", files=files, data={"mpp": MPP})

        assert labels(2).status_code == 200
        expect(labels(3), 413, "too_large", "more than 25,000 pixels in 3 images together")


def test_the_pixels_of_all_requests_are_limited_together() -> None:
    async def requests() -> None:
        budget = PixelBudget(20_000, max_waiting=2)
        await budget.take(8_000)
        async with budget.lent(12_000):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await budget.take(1)
            turns = [asyncio.create_task(budget.take(pixels)) for pixels in (30_000, 5_000)]
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as full:
                await budget.take(1)
            assert (full.value.status, full.value.message) == (503, "2 requests wait already; try again later.")
            turns[0].cancel()  # who has gone holds nobody up
        await turns[1]
        budget.give_back(5_000)
        budget.give_back(8_000)
        await budget.take(30_000)  # alone

    asyncio.run(requests())


def test_a_request_that_has_given_up_returns_its_pixels() -> None:
    """The first holds its image as long as the detector does; those that wait let go of theirs."""
    image = png(draw_slide(100, 100).image)
    config, slow = ServeConfig(max_pixels=10_000, timeout_s=0.5), Slow()
    with served(config, replace(MODELS, detector=slow)) as client:
        try:
            assert [ask(client, image).status_code for _ in range(4)] == [504] * 4
        finally:
            slow.may_go_on.set()


def test_the_bytes_of_all_requests_are_limited_together() -> None:
    """Five requests that are never sent to their end are more than may be held: the last to be read is turned away."""
    with served(ServeConfig(max_bytes=1000)) as client, contextlib.ExitStack() as stack:
        head = "POST /v1/labels HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"
        head += "content-type: multipart/form-data; boundary=b\r\n\r\n"
        part = '--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
        sent = head + part + "0" * (990 - len(part))
        unfinished = [connected(client, stack, sent) for _ in range(5)]
        [refused], _, _ = select.select(unfinished, [], [], 60)
        with refused.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 503 ")
            assert any(b"too many large requests at a time" in line for line in iter(answer.readline, b""))


def test_a_request_that_trickles_is_given_up() -> None:
    with served(ServeConfig(timeout_s=0.5)) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port or 0), timeout=30) as connection:
            head = "POST /v1/nuclei HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"
            connection.sendall(f"{head}content-type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def connected(client: httpx.Client, stack: contextlib.ExitStack, sent: str) -> socket.socket:
    """A connection on which so much has been sent."""
    address = client.base_url.host, client.base_url.port or 0
    connection = stack.enter_context(socket.create_connection(address, timeout=30))
    connection.sendall(sent.encode())
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes a connection, within half a minute."""
    try:
        while connection.recv(2**16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_head_that_does_not_end_is_given_up() -> None:
    with served(limits=ConnectionLimits(head_s=0.2)) as client, contextlib.ExitStack() as stack:
        whole = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for sent in ("", "GET /health HTTP/1.1\r\nhost: loc", whole + "GET /health HT"):
            assert ended(connected(client, stack, sent))
        assert client.get("/health").status_code == 200


def test_slow_connections_stop_nobody() -> None:
    """Connections that send nothing, half a head or half a body make way; no answer is lost for them."""
    half = "POST /v1/nuclei HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n"
    slow, image = Slow(), png(draw_slide(120, 120).image)
    limits = ConnectionLimits(most=8, head_s=1e6)
    with (
        served(ServeConfig(timeout_s=1e6), replace(MODELS, detector=slow), limits) as client,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            answer = pool.submit(ask, client, image)
            assert slow.begun.acquire(timeout=30)
            lines = []
            for sent in ("", "GET /he", half):
                lines += [connected(client, stack, sent) for _ in range(20)]
                time.sleep(0.3)  # of those that come at the same moment the last are refused
            with httpx.Client(base_url=client.base_url, timeout=60) as other:
                assert other.get("/health").status_code == 200
            assert all(ended(one) for one in lines[:40])
        finally:
            slow.may_go_on.set()
        assert answer.result().status_code == 200


def test_a_connection_too_many_gets_503_where_all_are_answered() -> None:
    slow, image = Slow(), png(draw_slide(120, 120).image)
    limits = ConnectionLimits(most=1)
    with (
        served(None, replace(MODELS, detector=slow), limits) as client,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            answer = pool.submit(ask, client, image)
            assert slow.begun.acquire(timeout=30)
            assert connected(client, stack, "").recv(100).startswith(b"HTTP/1.1 503 ")
        finally:
            slow.may_go_on.set()
        assert answer.result().status_code == 200


def test_a_client_that_has_gone_is_not_worked_for() -> None:
    slow, image = Slow(), png(draw_slide(120, 120).image)
    with (
        served(None, replace(MODELS, detector=slow)) as client,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(2) as pool,
    ):

        def waiting() -> int:
            return int(float(re.findall(r"^nucpipe_waiting (.*)", client.get("/metrics").text, re.M)[0]))

        def wait_for(number: int) -> None:
            deadline = time.monotonic() + 30
            while waiting() != number and time.monotonic() < deadline:
                time.sleep(0.02)
            assert waiting() == number

        request = client.build_request("POST", "/v1/nuclei", files={"image": image}, data={"mpp": 0.5})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        whole = f"POST /v1/nuclei HTTP/1.1\r\n{head}\r\n".encode() + request.read()
        try:
            first = pool.submit(ask, client, image)
            assert slow.begun.acquire(timeout=30)
            lines = [connected(client, stack, "") for _ in range(3)]
            for line in lines:
                line.sendall(whole)
            wait_for(3)
            for line in lines[1:]:
                line.close()
            wait_for(1)
        finally:
            slow.may_go_on.set()
        assert first.result().status_code == 200
        assert lines[0].recv(100).startswith(b"HTTP/1.1 200 ")


def test_what_a_thread_has_begun_is_held_until_it_has_ended() -> None:
    """Else images of clients that have gone would be decoded beside those that are counted."""

    async def requests(threads: Threads) -> None:
        begun, may_go_on = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            assert may_go_on.wait(30)

        given_up = asyncio.create_task(threads.do(work))
        later = asyncio.create_task(threads.do(lambda: None))
        assert await asyncio.to_thread(begun.wait, 30)
        later.cancel()
        given_up.cancel()
        assert (await asyncio.wait([later, given_up], timeout=0.2))[0] == {later}
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await given_up

    with Threads(1) as threads:
        asyncio.run(requests(threads))


def test_little_is_answered_to_who_does_not_read() -> None:
    with served() as client, contextlib.ExitStack() as stack:
        connected(client, stack, "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1000)

        def answered() -> float:
            counted = re.findall(r"^nucpipe_requests_total{(.*)} (.*)", client.get("/metrics").text, re.M)
            return sum(float(number) for labels, number in counted if "/metrics" not in labels)

        before, deadline = -1.0, time.monotonic() + 30
        while ((now := answered()) != before or now < 2) and time.monotonic() < deadline:
            before = now
            time.sleep(0.3)
        assert 2 <= now < 2**20 / len(client.get("/openapi.json").content)


def test_an_answer_that_is_not_read_is_given_up() -> None:
    with served(limits=ConnectionLimits(unread_s=0.3)) as client, contextlib.ExitStack() as stack:
        one = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
        connection = connected(client, stack, one * 1000)  # some 20 MB, more than the system takes for us
        poll = select.poll()
        poll.register(connection, select.POLLHUP | select.POLLERR)
        assert poll.poll(30_000)
        assert client.get("/health").status_code == 200


def test_accepting_fails_quietly(caplog: pytest.LogCaptureFixture) -> None:
    loop, quiet = asyncio.new_event_loop(), QuietAccepts()
    for _ in range(1000):
        quiet(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many files")})
    assert [record.getMessage() for record in caplog.records] == [
        "no connection can be accepted for a moment ([Errno 24] Too many files)."
    ]
    loop.close()


def test_the_token_opens_what_it_guards() -> None:
    image = png(draw_slide(120, 120).image)
    with served(ServeConfig(token="sesame")) as client:
        for path in ("/health", "/ready", "/", "/openapi.json"):
            assert client.get(path).status_code == 200
        for header in (
            {},
            {"authorization": "Bearer sesam"},
            {"authorization": "Basic sesame"},
            {"authorization": "é"},
        ):
            for path in ("/v1/libraries", "/v1/models", "/metrics"):
                expect(client.get(path, headers={k: v.encode() for k, v in header.items()}), 401, "no_token", "Bearer")
        expect(ask(client, image), 401, "no_token")
        client.headers["authorization"] = "Bearer sesame"
        assert ask(client, image).status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.get("/openapi.json").json()["paths"]["/v1/nuclei"]["post"]["security"] == [{"HTTPBearer": []}]


def test_pages_of_other_sites_are_turned_away(client: httpx.Client) -> None:
    good = png(draw_slide(120, 120).image)
    for origin in ("http://evil.example", "http://[", "null", "evil"):
        client.headers["origin"] = origin
        expect(ask(client, good), 403, "other_site")
    client.headers["origin"] = str(client.base_url).rstrip("/")
    assert ask(client, good).status_code == 200
    del client.headers["origin"]
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
    with served(ServeConfig(local_only=False)) as everybody:
        assert everybody.get("/health", headers={"host": "nuclei.example"}).status_code == 200


# ---- state and pages


def test_state_and_facts(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    libraries = client.get("/v1/libraries").json()
    assert [one["library"] for one in libraries] == ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]
    assert sum(len(one["labels"]) for one in libraries) == 35
    assert [label["label"] for one in libraries for label in one["labels"] if not label["trained"]] == [
        "lymphocyte",
        "non_mitosis",
    ]
    assert [one["name"] for one in client.get("/v1/models").json()] == ["dark spots", "random"]
    before = client.get("/metrics").text
    assert 'nucpipe_requests_total{path="/health",status="200"}' in before
    client.get("/v1/no/such/path")
    client.get("/v1/nor/this")
    assert 'path="other",status="404"' in client.get("/metrics").text
    assert "no/such" not in client.get("/metrics").text


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("serve.js", "serve.css"):
        assert f"/static/{name}" in page.text
        text = client.get(f"/static/{name}")
        assert text.status_code == 200
        assert "http://" not in text.text
        assert "https://" not in text.text
    assert client.get("/docs").status_code == 404


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, words in [
            (["--port", port], f"cannot listen on 127.0.0.1, port {port}"),
            (["--token-file", tmp_path / "none"], "cannot be read"),
            (["--timeout", "0"], "--timeout: expected more than 0"),
            (["--classifier", "none"], "no such model"),
            (["--primary", "Mars"], "unknown library"),
            (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        ]:
            done = CliRunner().invoke(main, ["serve", "--device", "cpu", *map(str, arguments)])
            assert done.exit_code == 2, done.output
            assert words in done.output
            assert "Traceback" not in done.output


def test_the_schema_fuzzer_finds_no_server_error(client: httpx.Client, tmp_path: Path) -> None:
    # Beside the Python that runs, whether its environment is activated or not.
    program = shutil.which("schemathesis", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("schemathesis is not installed")
    command = [
        program,
        "run",
        f"{client.base_url}/openapi.json",
        "--max-examples",
        "10",
        "--phases",
        "examples,fuzzing",
    ]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command += ["--checks", checks, "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
