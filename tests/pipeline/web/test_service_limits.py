"""What the service refuses: no image, no pixel size, wrong fields, and more pixels or bytes than it takes."""

from __future__ import annotations

import asyncio
import contextlib
import select
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed")


from pipeline.web.service.config import ServeConfig
from pipeline.web.service.errors import ApiError
from pipeline.web.service.pixel_budget import PixelBudget
from tests.support.service import MODELS, Slow, ask, connected, expect, png, served
from tests.support.synthetic import MPP, draw_slide


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served() as one:
        yield one


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
