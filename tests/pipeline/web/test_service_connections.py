"""Slow, silent and vanished clients of the service: they are given up, and the others are answered."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed")


from pipeline.web.connections import ConnectionLimits, QuietAccepts
from pipeline.web.service.config import ServeConfig
from pipeline.web.service.threads import Threads
from tests.support.service import MODELS, Slow, ask, connected, png, served
from tests.support.synthetic import draw_slide


def test_a_request_that_trickles_is_given_up() -> None:
    with served(ServeConfig(timeout_s=0.5)) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port or 0), timeout=30) as connection:
            head = "POST /v1/nuclei HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"
            connection.sendall(f"{head}content-type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


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
