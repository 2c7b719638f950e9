"""The service's addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import Depends, FastAPI, File, Form, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from classifier.decision_rule import DecisionRule
from classifier.predictions import Predictions
from nucpipe._version import __version__
from nucpipe.errors import UsageError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP
from pipeline.inference.models import Models
from pipeline.slide.identity import slide_name
from pipeline.store.memory import MemoryStore
from pipeline.store.schema import StoreInfo
from pipeline.web.server import with_safe_headers
from pipeline.web.service import schemas
from pipeline.web.service.config import ServeConfig
from pipeline.web.service.errors import ApiError, documented, handle_errors
from pipeline.web.service.images import read_image, read_nucleus, stated_pixels
from pipeline.web.service.metrics import Metrics
from pipeline.web.service.pixel_budget import PixelBudget
from pipeline.web.service.request_limits import RequestLimits
from pipeline.web.service.threads import Threads
from pipeline.web.service.worker import Busy, CropsJob, ImageJob, Worker
from segmentation.nuclei import Nuclei

STATIC = Path(str(resources.files("pipeline.web") / "service" / "static"))
AT_ONCE = 4
"""Images that are decoded, and answers that are written, at a time."""
MAX_IMAGES_HELD = 2
"""Images of the most pixels that are held at a time, or as many smaller ones as have as many pixels together: the
largest takes some 300 MB while it is decoded."""

T = TypeVar("T")
Mpp = Annotated[
    float,
    Form(ge=MIN_MPP, le=MAX_MPP, description="Micrometres per pixel; about 0.25 at 40x, 0.5 at 20x."),
]
Decide = Annotated[
    Literal["argmax", "best"] | None,
    Form(
        description="The likeliest label of each library; or that label only where it reaches the threshold. "
        "Without it: argmax, or best where a threshold is given."
    ),
]
Threshold = Annotated[float | None, Form(gt=0, le=1, description="Least probability of a label.")]
REFUSALS = documented(400, 401, 403, 404, 408, 413, 415, 422, 500, 503, 504)

DESCRIPTION = """Finds and outlines the nuclei of H&E images, and names each in the words of five label systems.
For research only; it is not a medical device."""


@dataclass(frozen=True)
class Service:
    """State of the service: the models behind their worker, and the limits."""

    config: ServeConfig
    worker: Worker
    metrics: Metrics
    primary: str
    threads: Threads
    budget: PixelBudget

    @property
    def models(self) -> Models:
        """The models."""
        return self.worker.models

    async def nuclei_of(self, image: UploadFile, mpp: float) -> tuple[tuple[int, int], Nuclei, Predictions]:
        """Return (width, height) of an image that was sent, and its nuclei, when its turn has come."""
        pixels = await self.threads.do(partial(stated_pixels, image.file, mpp, self.config.max_pixels))
        await self.budget.take(pixels)
        try:
            job = ImageJob(await self.threads.do(partial(read_image, image.file, mpp)))
            size = job.image.size_l0
            self._submit(job)
        except BaseException:
            self.budget.give_back(pixels)
            raise
        # Once the worker has let go of the image, also where the client has given up before.
        asyncio.wrap_future(job.answer).add_done_callback(lambda answer: self._image_done(answer, pixels))
        return size, *await self._answer(job.answer)

    def _image_done(self, answer: asyncio.Future[Any], pixels: int) -> None:
        answer.cancelled() or answer.exception()  # looked at, or asyncio says that nobody did
        self.budget.give_back(pixels)

    async def labels_of(self, images: list[UploadFile], mpp: float) -> Predictions:
        """Return the labels of images of single nuclei that were sent, at least one; one of them is held at a time."""
        sizes, left = list[int](), self.config.max_pixels
        for image in images:  # all of them before any is decoded, for that may be the last one's fault
            try:
                sizes.append(await self.threads.do(partial(stated_pixels, image.file, mpp, left)))
            except ApiError as error:
                if error.status != 413 or not sizes:
                    raise
                message = f"more than {self.config.max_pixels:,} pixels in {len(images):,} images together; send fewer."
                raise ApiError(413, message) from error
            left -= sizes[-1]
        patches: list[npt.NDArray[np.uint8]] = []
        for image, pixels in zip(images, sizes, strict=True):
            async with self.budget.lent(pixels):
                patches.append(await self.threads.do(partial(read_nucleus, image.file, mpp)))
        job = CropsJob(np.stack(patches))
        self._submit(job)
        return await self._answer(job.answer)

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Give a request up that is not answered in time.

        Raises:
            ApiError: 504.
        """
        try:
            async with asyncio.timeout(self.config.timeout_s):
                yield
        except TimeoutError:
            raise ApiError(504, f"not finished within {self.config.timeout_s:g} s; send a smaller image.") from None

    def _submit(self, job: ImageJob | CropsJob) -> None:
        try:
            self.worker.submit(job)
        except Busy:
            raise ApiError(503, f"{self.config.max_waiting} requests wait already; try again later.") from None

    async def _answer(self, future: Future[T]) -> T:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled() and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise ApiError(503, "the service is being stopped.") from None
            raise


def service_app(models: Models, config: ServeConfig, primary: str, batch_size: int) -> FastAPI:
    """Return the web application.

    Args:
        models: loaded.
        config: limits, and who may use it.
        primary: name of the library that is the classification in GeoJSON if a client names none.
        batch_size: nuclei that are classified at a time.
    """
    metrics = Metrics()
    worker = Worker(models, batch_size, config.max_waiting, metrics)
    budget = PixelBudget(MAX_IMAGES_HELD * config.max_pixels, config.max_waiting)
    service = Service(config, worker, metrics, primary, Threads(AT_ONCE), budget)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        with service.threads:
            yield
        worker.end()

    bearer = [HTTPBearer(auto_error=False, description="The service's token.")] if config.token else []
    app = FastAPI(
        title="nucpipe",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=None,  # FastAPI would write it anew for each client
        docs_url=None,  # FastAPI's own pages load their parts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    guarded = [Depends(scheme) for scheme in bearer]
    _add_pages(app, service)
    _add_facts(app, service, guarded)
    _add_work(app, service, guarded)
    handle_errors(app)
    app.add_middleware(RequestLimits, config=config, metrics=metrics)
    return with_safe_headers(app, config.local_only)


def _add_pages(app: FastAPI, service: Service) -> None:
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        """Return a form to send an image, and the description of the service."""
        return FileResponse(STATIC / "index.html")

    @cache
    def description() -> bytes:
        return schemas.dumped(app.openapi())

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        """Return the description of the service for programs."""
        return Response(description(), media_type="application/json")

    @app.get("/health", tags=["state"], response_model=schemas.Health)
    async def health() -> dict[str, str]:
        """Tell whether the process answers."""
        return {"status": "alive"}

    @app.get("/ready", tags=["state"], response_model=schemas.Health, responses=documented(503))
    async def ready() -> dict[str, str]:
        """Tell whether the models are loaded and at work."""
        if not service.worker.is_alive():
            raise ApiError(503, "the models are not at work.")
        return {"status": "ready"}


def _add_facts(app: FastAPI, service: Service, guarded: list[Any]) -> None:
    @app.get("/metrics", tags=["state"], dependencies=guarded, response_class=Response, responses=documented(401))
    def metrics() -> Response:
        """Return numbers for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get(
        "/v1/libraries",
        tags=["facts"],
        dependencies=guarded,
        response_model=list[schemas.LibraryInfo],
        responses=documented(401),
    )
    def libraries() -> list[dict[str, Any]]:
        """Return the label systems, with their labels, colours, and which labels the classifier has been taught."""
        return schemas.describe_libraries(service.models.outputs)

    @app.get(
        "/v1/models",
        tags=["facts"],
        dependencies=guarded,
        response_model=list[schemas.ModelInfo],
        responses=documented(401),
    )
    def models() -> list[dict[str, Any]]:
        """Return the models that answer."""
        return [
            {"kind": kind, "name": facts["name"], "fingerprint": facts.get("fingerprint", "")}
            for kind, facts in service.models.described.items()
        ]


def _add_work(app: FastAPI, service: Service, guarded: list[Any]) -> None:
    @app.post(
        "/v1/nuclei",
        tags=["work"],
        dependencies=guarded,
        responses={
            **REFUSALS,
            200: {
                "model": schemas.NucleiAnswer,
                "content": {"application/geo+json": {"schema": {"type": "object"}}},
                "description": "The nuclei, in the form that was asked for.",
            },
        },
    )
    async def nuclei(
        image: Annotated[UploadFile, File(description="PNG, JPEG or TIFF, 8 bits a colour.")],
        mpp: Mpp,
        form: Annotated[Literal["json", "geojson"], Form(alias="format", description="Of the answer.")] = "json",
        primary: Annotated[str, Form(description="Library of the classification in GeoJSON.")] = "",
        decide: Decide = None,
        threshold: Threshold = None,
        probabilities: Annotated[bool, Form(description="In JSON, the probability of every label too.")] = False,
    ) -> Response:
        """Find, outline and name the nuclei of an image.

        Coordinates are pixels of the image. All of the image is looked at, whether it shows tissue or not.
        """
        try:
            library = service.models.outputs.library(primary or service.primary).name
        except UsageError as error:
            raise ApiError(422, f"primary: {error}") from error
        rule = _rule(decide, threshold)
        name = slide_name(Path(image.filename or "image"))

        def answer(size: tuple[int, int], found: Nuclei, labels: Predictions) -> Response:
            info = StoreInfo(
                name, size, mpp, (0, 0), service.models.outputs, service.models.described,
                {"decide": rule.to_dict()}, __version__,
            )  # fmt: skip
            store = MemoryStore.of(found, labels, info)
            if form == "geojson":
                return Response(schemas.as_geojson(store, library, rule), media_type="application/geo+json")
            return Response(schemas.dumped(schemas.as_json(store, rule, probabilities)), media_type="application/json")

        async with service.in_time():
            size, found, labels = await service.nuclei_of(image, mpp)
            written = await service.threads.do(partial(answer, size, found, labels))
        service.metrics.nuclei.inc(len(found))
        return written

    @app.post(
        "/v1/labels",
        tags=["work"],
        dependencies=guarded,
        response_model=schemas.LabelsAnswer,
        responses=REFUSALS,
    )
    async def labels(
        images: Annotated[list[UploadFile], File(description="Each shows one nucleus, in its middle.")],
        mpp: Mpp,
        decide: Decide = None,
        threshold: Threshold = None,
    ) -> Response:
        """Name the nucleus in the middle of each image; 16 x 16 µm round the middle are looked at."""
        rule = _rule(decide, threshold)
        if len(images) > service.config.max_crops:
            raise ApiError(413, f"{len(images):,} images; at most {service.config.max_crops:,} are allowed.")
        async with service.in_time():
            found = (await service.labels_of(images, mpp)).probabilities
        outputs = service.models.outputs
        named = [
            {"image": image.filename or "", "labels": given, "probabilities": every}
            for image, given, every in zip(
                images,
                schemas.given_labels(found, outputs, rule),
                schemas.every_probability(found, outputs),
                strict=True,
            )
        ]
        return Response(schemas.dumped({"images": named}), media_type="application/json")


def _rule(decide: str | None, threshold: float | None) -> DecisionRule:
    try:
        return DecisionRule.chosen(decide, threshold)
    except UsageError as error:
        raise ApiError(422, str(error).replace("--", "")) from error
