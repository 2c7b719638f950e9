"""The service over real HTTP: its answers are those of a run, whoever else is served, and nothing brings it down."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from pipeline.run_slide import run_slide
from pipeline.store.run_record import SilentReporter
from pipeline.web.service.config import ServeConfig
from pipeline.web.service.metrics import Metrics
from pipeline.web.service.request_limits import RequestLimits
from pipeline.web.service.worker import warm_up
from segmentation.nuclei import Nuclei
from tests.support.service import MODELS, Slow, ask, expect, png, served
from tests.support.synthetic import MPP, DarkSpots, draw_slide


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served() as one:
        yield one


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


# ---- who may ask


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
