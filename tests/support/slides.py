"""Slides made in code: the same picture in every format that is read, small and exact."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

Image = npt.NDArray[np.uint8]

TILE = 128


def tissue_texture(width: int, height: int, seed: int = 0) -> Image:
    """(h, w, 3) pink and purple, with structure at every scale and noise in every pixel."""
    rng = np.random.default_rng(seed)
    stain = np.zeros((height, width), np.float32)
    for sigma in (2, 8, 30):
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma)
        stain += noise / noise.std()
    amount = np.clip(0.5 + 0.2 * stain, 0, 1)[..., None]
    pink, purple = np.array([228, 180, 208]), np.array([96, 60, 140])
    image = pink * (1 - amount) + purple * amount + rng.normal(0, 4, (height, width, 3))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def halved(image: Image) -> Image:
    """The next level of a pyramid."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return np.asarray(cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA))


def pyramid(image: Image, levels: int) -> list[Image]:
    """``levels`` images, each half the size of the one before."""
    images = [image]
    while len(images) < levels:
        images.append(halved(images[-1]))
    return images


def write_tiled_tiff(path: Path, image: Image, mpp: float | None = None, levels: int = 3) -> None:
    """A pyramid that OpenSlide opens as generic-tiff; its resolution tags state ``mpp``."""
    density = None if mpp is None else (10000 / mpp, 10000 / mpp)
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(pyramid(image, levels)):
            file.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                subfiletype=0 if i == 0 else 1,
                resolution=None if density is None else (density[0] / 2**i, density[1] / 2**i),
                resolutionunit=None if density is None else "CENTIMETER",
                metadata=None,
            )


def write_ome_tiff(path: Path, image: Image, mpp: float | None = None, levels: int = 3, tiled: bool = True) -> None:
    """An OME-TIFF whose smaller levels stand in sub-IFDs, as QuPath and bioformats2raw write it."""
    size = {} if mpp is None else {"PhysicalSizeX": mpp * 1000, "PhysicalSizeXUnit": "nm"}
    size |= {} if mpp is None else {"PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    tile = (TILE, TILE) if tiled else None
    with tifffile.TiffWriter(path, ome=True) as file:
        first, *others = pyramid(image, levels)
        file.write(first, tile=tile, photometric="rgb", subifds=len(others), metadata={"axes": "YXS", **size})
        for level in others:
            file.write(level, tile=tile, photometric="rgb", subfiletype=1, metadata=None)


def write_plain_tiff(path: Path, image: Image, mpp: float | None = None) -> None:
    """A TIFF in strips; its resolution tags (per inch) state ``mpp``."""
    density = None if mpp is None else (25400 / mpp, 25400 / mpp)
    tifffile.imwrite(path, image, photometric="rgb", resolution=density, resolutionunit="INCH", metadata=None)


def write_image(path: Path, image: Image) -> None:
    """PNG or JPEG by the extension; neither states a pixel size."""
    assert cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))


def write_ngff(path: Path, image: Image, mpp: float | None = None, levels: int = 3) -> None:
    """An NGFF 0.4 folder (zarr 2) with axes t, c, z, y, x, as bioformats2raw writes it."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2)
    datasets = []
    for i, level in enumerate(pyramid(image, levels)):
        planes = np.moveaxis(level, 2, 0)[None, :, None]
        array = group.create_array(str(i), shape=planes.shape, chunks=(1, 1, 1, TILE, TILE), dtype="uint8")
        array[:] = planes
        scale = [1.0, 1.0, 1.0, *([2.0**i * (mpp or 1)] * 2)]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    length = {} if mpp is None else {"unit": "micrometer"}
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", **length} for axis in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def write_dicom(folder: Path, image: Image, mpp: float) -> None:
    """A DICOM folder of one uncompressed, fully tiled level."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

    folder.mkdir()
    height, width = image.shape[:2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.full((rows * TILE, columns * TILE, 3), 255, np.uint8)
    padded[:height, :width] = image
    frames = padded.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)

    def item(**values: object) -> Dataset:
        one = Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        return one

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pixel_measures = item(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.001, SpacingBetweenSlices=0.0)
    frame_type = item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    dataset = item(
        SOPClassUID=meta.MediaStorageSOPClassUID,
        SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        FrameOfReferenceUID=generate_uid(),
        PatientID="made-in-code",
        Modality="SM",
        Manufacturer="made in code",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        DimensionOrganizationType="TILED_FULL",
        Rows=TILE,
        Columns=TILE,
        NumberOfFrames=rows * columns,
        TotalPixelMatrixRows=height,
        TotalPixelMatrixColumns=width,
        TotalPixelMatrixFocalPlanes=1,
        NumberOfOpticalPaths=1,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        ImagedVolumeWidth=width * mpp / 1000,
        ImagedVolumeHeight=height * mpp / 1000,
        ImagedVolumeDepth=0.001,
        ImageOrientationSlide=[0, -1, 0, -1, 0, 0],
        TotalPixelMatrixOriginSequence=[item(XOffsetInSlideCoordinateSystem=0.0, YOffsetInSlideCoordinateSystem=0.0)],
        OpticalPathSequence=[item(OpticalPathIdentifier="1", ObjectiveLensPower=40)],
        SharedFunctionalGroupsSequence=[
            item(PixelMeasuresSequence=[pixel_measures], WholeSlideMicroscopyImageFrameTypeSequence=[frame_type])
        ],
        PixelData=np.ascontiguousarray(frames).tobytes(),
    )
    dataset.file_meta = meta
    pydicom.dcmwrite(folder / "level0.dcm", dataset, enforce_file_format=True)


def write_mask(path: Path, mask: npt.NDArray[np.bool_]) -> None:
    """A PNG, white where ``mask`` is true."""
    assert cv2.imwrite(str(path), mask.astype(np.uint8) * 255)


def write_geojson(path: Path, *rings: list[tuple[float, float]]) -> None:
    """One annotation polygon as QuPath writes it: the outer ring, then holes."""
    closed = [[*ring, ring[0]] for ring in rings]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": closed},
        "properties": {"objectType": "annotation"},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
