"""Nuclei as SpatialData: outlines as shapes, the table that annotates them, and the slide's pixels.

Written here and not with ``spatialdata.SpatialData.write``, which wants all outlines in memory; reading is
spatialdata's own. The format is that of spatialdata 0.7: zarr format 3, shapes 0.3, tables 0.2, raster 0.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from nucpipe._version import __version__
from nucpipe.files import EXPORTED, folder_written_whole
from pipeline.export.images.pyramid import (
    channels_rgb,
    create_levels,
    image_size,
    level_sizes,
    multiscales,
    write_image,
)
from pipeline.export.tables.anndata import ZarrTable, copy_table
from pipeline.export.tables.parquet import write_table
from pipeline.slide.base import Slide
from pipeline.store.anndata_encoding import add_categorical, add_group, add_scalar, add_string_array
from pipeline.store.reader import Store
from pipeline.store.schema import CHUNK_ROWS

NUCLEI, IMAGE, TABLE = "nuclei", "slide", "table"
REGION_KEY, INSTANCE_KEY = "region", "instance_id"


def write_spatialdata(
    store: Store, path: Path, slide: Slide | None = None, image_mpp: float = 2.0, exact_outlines: bool = False
) -> None:
    """Write a folder that ``spatialdata.read_zarr`` opens.

    Shapes ``nuclei`` (outlines, indexed by UUID), the table ``table`` that annotates them (the
    store's, as in an ``.h5ad``), and the image ``slide``. The coordinate
    system ``global`` is the slide's level-0 pixels, ``um`` is micrometres. Memory does not grow
    with the number of nuclei. Without nuclei there are no shapes, for SpatialData has none that are empty.

    Args:
        store: the nuclei.
        path: of the folder, ``.zarr``.
        slide: whose pixels are embedded; None for no image.
        image_mpp: pixel size of the largest level of the image, micrometres, but never below the slide's own.
        exact_outlines: outlines along the edges of pixels, as they are stored.

    Raises:
        UsageError: pyarrow is not installed.
        OutputError: the folder cannot be written.
    """
    with folder_written_whole(path) as partial:
        software = f"nucpipe {__version__}"
        about = {"version": "0.2", "spatialdata_software_version": software}
        attributes: dict[str, Any] = {"spatialdata_attrs": about, EXPORTED: software}
        root = zarr.open_group(partial, mode="a", zarr_format=3, attributes=attributes)
        if len(store):
            _create_shapes(root, store.info.mpp)
        root.create_group("tables")
        _write_table(store, partial / "tables" / TABLE)
        if slide is not None:
            _write_image(slide, root.create_group("images"), image_mpp)
        # Last, for zarr looks at a folder's content and does not know the file.
        if len(store):
            write_table(
                store,
                partial / "shapes" / NUCLEI / "shapes.parquet",
                "Polygon",
                index="id",
                exact_outlines=exact_outlines,
            )


def _create_shapes(root: zarr.Group, mpp: float) -> None:
    root.create_group("shapes").create_group(
        NUCLEI,
        attributes={
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": _transformations("xy", {"global": 1.0, "um": mpp}),
            "spatialdata_attrs": {"version": "0.3"},
        },
    )


def _write_table(store: Store, folder: Path) -> None:
    copy_table(store, ZarrTable(folder))
    keys: dict[str, str] = {}
    if len(store):  # a table may annotate nothing, but shapes may not be empty
        keys = {"region": NUCLEI, "region_key": REGION_KEY, "instance_key": INSTANCE_KEY}
        _annotate(store, folder, keys)
    attributes = {"spatialdata-encoding-type": "ngff:regions_table", **keys, "version": "0.2"}
    zarr.open_group(folder, mode="a").attrs.update(attributes)


def _annotate(store: Store, folder: Path, keys: dict[str, str]) -> None:
    """Say which shape each row of the table is about."""
    attrs = add_group(zarr.open_group(folder / "uns", mode="a"), "spatialdata_attrs", "dict")
    for key, value in keys.items():
        add_scalar(attrs, key, value)
    obs = zarr.open_group(folder / "obs", mode="a")
    obs.attrs["column-order"] = [*obs.attrs["column-order"], REGION_KEY, INSTANCE_KEY]  # type: ignore[misc]
    add_categorical(obs, REGION_KEY, [NUCLEI], len(store), CHUNK_ROWS)[...] = np.int8(0)
    instances = add_string_array(obs, INSTANCE_KEY, len(store), CHUNK_ROWS)
    start = 0
    for part in store.batches(CHUNK_ROWS):
        instances[start : start + len(part)] = part.ids
        start += len(part)


def _write_image(slide: Slide, images: zarr.Group, mpp: float) -> None:
    shrink, width, height = image_size(slide, mpp)
    sizes = level_sizes(width, height)
    names = [f"s{k}" for k in range(len(sizes))]
    image = images.create_group(IMAGE)
    write_image(slide, shrink, create_levels(image, names, sizes, np.uint8, 3))
    (scales,) = multiscales(IMAGE, names, 1.0, True)  # in pixels of the first level, as spatialdata writes it
    for axis in scales["axes"]:
        axis.pop("unit", None)
    scales["coordinateTransformations"] = _transformations("cyx", {"global": shrink, "um": shrink * slide.mpp})
    ome: dict[str, Any] = {"version": "0.5-dev-spatialdata", "multiscales": [scales], "omero": channels_rgb()}
    image.attrs.update({"ome": ome, "spatialdata_attrs": {"version": "0.3"}})


def _transformations(axes: str, scales: dict[str, float]) -> list[dict[str, Any]]:
    """From an element's own pixels to each coordinate system, by a scale in x and y."""

    def system(name: str) -> dict[str, Any]:
        described = [
            {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", "unit": "unit"}
            for axis in axes
        ]
        return {"name": name, "axes": described}

    transformations = []
    for name, scale in scales.items():
        how: dict[str, Any] = (
            {"type": "identity"}
            if scale == 1
            else {"type": "scale", "scale": [1.0 if axis == "c" else scale for axis in axes]}
        )
        transformations.append({**how, "input": system(axes), "output": system(name)})
    return transformations
