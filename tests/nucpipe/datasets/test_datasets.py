"""Readers of published data sets: generated files in each layout, and the real sets where they are at hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from classifier.dataset import extract_patches
from classifier.labels.label_mapping import make_matching
from classifier.labels.libraries import published_libraries
from nucpipe.datasets import AnnotatedImage, check_hold_out, open_dataset, split_groups
from nucpipe.errors import DataError, UsageError
from tests.support.paths import SHARED


def picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def make_consep(root: Path) -> None:
    instances = np.zeros((40, 50))
    instances[10:20, 5:15] = 3
    instances[30:34, 40:50] = 7
    picture(root / "Train/Images/train_1.png", 50, 40)
    (root / "Train/Labels").mkdir()
    mat = {"inst_map": instances, "type_map": instances, "inst_type": np.array([[4], [7]]), "inst_centroid": 0}
    scipy.io.savemat(root / "Train/Labels/train_1.mat", mat)


def make_monusac(root: Path) -> None:
    picture(root / "TCGA-A/TCGA-A_1.tif", 50, 40)
    square = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ((5, 10), (14, 10), (14, 19), (5, 19)))
    line = "".join(f'<Vertex X="{x}" Y="30" Z="0"/>' for x in (20, 30))
    (root / "TCGA-A/TCGA-A_1.xml").write_text(
        f"""<Annotations MicronsPerPixel="0.24">
        <Annotation Name=""><Attributes><Attribute Name="Lymphocyte" Id="0"/></Attributes>
        <Regions><Region><Vertices>{square}</Vertices></Region></Regions></Annotation>
        <Annotation Name="Macrophage"><Regions><Region><Vertices>{line}</Vertices></Region></Regions></Annotation>
        <Annotation><Attributes><Attribute Name="Ambiguous"/></Attributes>
        <Regions><Region><Vertices>{square}</Vertices></Region></Regions></Annotation></Annotations>"""
    )


def make_brecahad(root: Path) -> None:
    picture(root / "images/Case_3-02.png", 50, 40)
    (root / "groundTruth").mkdir()
    points = {"mitosis": [{"x": 0.2, "y": 0.375}], "non_mitosis": [], "tubule": [{"x": 0.9, "y": 0.8}], "tumor": []}
    (root / "groundTruth/Case_3-02.json").write_text(json.dumps(points))


def make_nucls(root: Path) -> None:
    stem = "TCGA-A1-A0SP-DX1_id-5ea4095addda5f8398977ebc_left-7053_top-53967_bottom-54231_right-7311"
    picture(root / f"rgb/{stem}.png", 50, 40)
    (root / "csv").mkdir()
    (root / f"csv/{stem}.csv").write_text(
        "raw_classification,main_classification,super_classification,type,xmin,ymin,xmax,ymax,coords_x,coords_y\n"
        "correction_tumor,tumor_nonMitotic,tumor_any,rectangle,5,10,15,20,,\n"
        'unlabeled,AMBIGUOUS,AMBIGUOUS,polyline,0,0,8,8,"0,8,8,0","0,0,8,8"\n'
        'unlabeled,AMBIGUOUS,sTIL,polyline,40,30,50,34,"40,50,50,40","30,30,34,34"\n'
    )


def make_points(root: Path) -> None:
    (root / "library.toml").write_text('name = "Lab"\nlabels = ["round", "long"]\nmpp = 0.5\nlicence = "ours"\n')
    picture(root / "images/slide 1.jpg", 50, 40)
    (root / "labels").mkdir()
    (root / "labels/slide 1.csv").write_text("x,y,label,group\n10,15,Round,patient 1\n45,32,long,patient 1\n")


def label_image(root: Path, suffix: str) -> None:
    """Write two nuclei, with the ids 3 and 70000 or 7, as the tools do."""
    instances = np.zeros((40, 50), np.int32)
    instances[10:20, 5:15], instances[30:34, 40:50] = 3, 70000 if suffix in (".tif", ".npy") else 7
    file = root / f"labels/patient 1/slide 1{suffix}"
    file.parent.mkdir(parents=True)
    if suffix == ".npy":
        np.save(file, instances)
    elif suffix == ".tif":
        tifffile.imwrite(file, instances)
    else:
        assert cv2.imwrite(str(file), instances.astype(np.uint16))


def make_outlines(root: Path, suffix: str) -> None:
    (root / "library.toml").write_text("mpp = 0.5\n")
    picture(root / "images/patient 1/slide 1.png", 50, 40)
    label_image(root, suffix)


def make_geojson(root: Path) -> None:
    (root / "library.toml").write_text("mpp = 0.5\n")
    picture(root / "images/patient 1/slide 1.png", 50, 40)
    boxes = [(5, 10, 15, 20, "Tumor"), (40, 30, 55, 34, "Immune cells"), (0, 0, 50, 40, "Region*")]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [X, y], [X, Y], [x, Y], [x, y]]]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for x, y, X, Y, name in boxes
    ]
    (root / "labels/patient 1").mkdir(parents=True)
    (root / "labels/patient 1/slide 1.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )


def make_pannuke(root: Path) -> None:
    images, masks = root / "Fold 1/images/fold1", root / "Fold 1/masks/fold1"
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    layers = np.zeros((1, 40, 50, 6))
    layers[0, 10:20, 5:15, 1] = 5
    layers[0, 30:34, 40:50, 4] = 5
    np.save(images / "images.npy", np.full((1, 40, 50, 3), 200.0))
    np.save(images / "types.npy", np.array(["Liver"]))
    np.save(masks / "masks.npy", layers)


# name: (maker, image's name, group, mpp, labels, centroids, areas of the instances)
FIRST = [10.0, 15.0]
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, str, float, list[str], list[list[float]], list[int] | None]] = {
    "consep": (
        make_consep,
        "train_1",
        "train_1",
        0.25,
        ["malignant_epithelial", "endothelial"],
        [FIRST, [45.0, 32.0]],
        [100, 40],
    ),
    "monusac": (
        make_monusac,
        "TCGA-A_1",
        "TCGA-A",
        0.24,
        ["lymphocyte", "macrophage"],
        [FIRST, [25.5, 30.5]],
        [100, 11],
    ),
    "brecahad": (make_brecahad, "Case_3-02", "Case_3", 0.25, ["mitosis", "tubule"], [FIRST, [45.0, 32.0]], None),
    "nucls": (
        make_nucls,
        "TCGA-A1-A0SP-DX1_id-5ea4095addda5f8398977ebc_left-7053_top-53967_bottom-54231_right-7311",
        "TCGA-A1-A0SP",
        0.2,
        ["tumor", "sTIL"],
        [FIRST, [45.0, 32.0]],
        None,
    ),
    **{
        f"outlines {suffix}": (
            functools.partial(make_outlines, suffix=suffix),
            "patient 1/slide 1",
            "patient 1",
            0.5,
            ["", ""],
            [FIRST, [45.0, 32.0]],
            [100, 40],
        )
        for suffix in (".png", ".tif", ".npy")
    },
    "geojson": (
        make_geojson,
        "patient 1/slide 1",
        "patient 1",
        0.5,
        ["Tumor", "Immune cells"],
        [FIRST, [47.5, 32.0]],  # half of the second one lies beyond the image
        [100, 40],
    ),
    "points": (make_points, "slide 1", "patient 1", 0.5, ["Round", "long"], [FIRST, [45.0, 32.0]], None),
    "pannuke": (
        make_pannuke,
        "fold1_0",
        "Liver",
        0.25,
        ["inflammatory", "epithelial"],
        [FIRST, [45.0, 32.0]],
        [100, 40],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_reader_gives_the_same_kind_of_answer(layout: str, tmp_path: Path) -> None:
    make, name, group, mpp, labels, centroids, areas = LAYOUTS[layout]
    make(tmp_path)
    (image,) = open_dataset(tmp_path)
    assert (image.name, image.group, image.mpp) == (name, group, mpp)
    pixels, annotation = image.pixels(), image.annotation()
    assert pixels.shape == (40, 50, 3)
    assert pixels.dtype == np.uint8
    assert list(annotation.labels) == labels
    np.testing.assert_allclose(annotation.centroids, centroids, atol=1e-9)
    if areas is None:
        assert annotation.instances is None
    else:
        assert annotation.instances is not None
        assert annotation.instances.shape == (40, 50)
        assert np.bincount(annotation.instances.ravel())[1:].tolist() == areas  # nucleus k has the id k + 1


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("human_umbilical_cord_03", "umbilical_cord"),
        ("mouse_spleen_12", "spleen"),
        ("human_spleen_1", "spleen"),
        ("07_2", "07"),
        ("test_10", "test_10"),
        ("7_2", "7_2"),
    ],
)
def test_names_of_images_say_what_a_split_keeps_together(name: str, group: str, tmp_path: Path) -> None:
    make_consep(tmp_path)
    for folder, suffix in (("Images", ".png"), ("Labels", ".mat")):
        (tmp_path / f"Train/{folder}/train_1{suffix}").rename(tmp_path / f"Train/{folder}/{name}{suffix}")
    (image,) = open_dataset(tmp_path)
    assert (image.name, image.group) == (name, group)


@pytest.mark.parametrize(
    ("layout", "broken"),
    [
        ("consep", "Train/Labels/train_1.mat"),
        ("monusac", "TCGA-A/TCGA-A_1.xml"),
        ("monusac", "TCGA-A/TCGA-A_1.tif"),
        ("brecahad", "groundTruth/Case_3-02.json"),
        ("brecahad", "images/Case_3-02.png"),
        ("pannuke", "Fold 1/masks/fold1/masks.npy"),
        ("points", "library.toml"),
    ],
)
def test_a_half_downloaded_or_missing_file_is_named(layout: str, broken: str, tmp_path: Path) -> None:
    LAYOUTS[layout][0](tmp_path)
    if layout == "monusac":  # the layout is recognised by another tile's outlines
        for suffix in (".tif", ".xml"):
            shutil.copy(tmp_path / f"TCGA-A/TCGA-A_1{suffix}", tmp_path / f"TCGA-A/TCGA-A_2{suffix}")
    file = tmp_path / broken
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=file.name.replace(".", r"\.") if layout != "pannuke" else "fold1") as caught:
        open_dataset(tmp_path)[0].annotation()
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match=file.stem):
        open_dataset(tmp_path)


def test_numbers_of_a_palette_are_read_and_not_its_colours(tmp_path: Path) -> None:
    make_outlines(tmp_path, ".png")
    file = tmp_path / "labels/patient 1/slide 1.png"
    stored = cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.uint8)
    picture_of = Image.frombytes("P", (50, 40), stored.tobytes())
    picture_of.putpalette([9, 9, 9] * 256)  # all of one colour
    picture_of.save(file)
    instances = open_dataset(tmp_path)[0].annotation().instances
    assert instances is not None
    assert np.bincount(instances.ravel())[1:].tolist() == [100, 40]


def test_what_is_wrong_with_a_users_outlines_is_told(tmp_path: Path) -> None:
    def told(file: str | None = None, content: bytes = b"") -> str:
        if file is not None:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_dataset(tmp_path)[0].annotation()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    make_geojson(tmp_path)
    labels = tmp_path / "labels/patient 1/slide 1.geojson"
    far = labels.read_text().replace("[5, 10]", "[5000, 10]").replace("15,", "5015,").replace("[5, 20]", "[5000, 20]")
    assert "lies outside its image of 50 x 40 pixels; expected outlines in pixels of the image" in told(
        "labels/patient 1/slide 1.geojson", far.encode()
    )
    whole = '{"type": "Polygon", "coordinates": [[[0, 0], [900000, 0], [900000, 700000], [0, 700000], [0, 0]]]}'
    assert "lies outside its image of 50 x 40 pixels" in told("labels/patient 1/slide 1.geojson", whole.encode())
    flat = '{"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [5, 1], [1, 1]]]}'
    assert "slide 1.geojson: the outline at (1, 1) encloses nothing" in told(
        "labels/patient 1/slide 1.geojson", flat.encode()
    )
    assert "slide 1.geojson: expected GeoJSON" in told("labels/patient 1/slide 1.geojson", b"{")
    assert "slide 1.tif: slide 1.png has the same name" in told("images/patient 1/slide 1.tif", b"")
    (tmp_path / "images/patient 1/slide 1.tif").unlink()
    assert "slide 1.png: slide 1.geojson has the same name" in told("labels/patient 1/slide 1.png", b"")
    assert "expected files of one kind" in told("labels/more.csv", b"x,y,label\n")
    shutil.rmtree(tmp_path / "labels")
    assert "found .jpg" in told("labels/slide 1.jpg", b"")
    assert "slide 1.png: its label file is missing; expected" in told("labels/slide 2.npy", b"")
    (tmp_path / "images/patient 1/slide 1.png").unlink()
    assert "slide 2.npy: its image is missing; expected" in told()
    for mpp, found in (('"0.25"', "'0.25'"), ("25", "25"), ("true", "True"), ("nan", "nan")):
        assert "library.toml: expected mpp, the pixel size in micrometres, a number from 0.05 to 1.2" in (
            said := told("library.toml", f"mpp = {mpp}".encode())
        )
        assert said.endswith(f"found {found}.")
    assert told("library.toml", b"").endswith("found none.")


@pytest.mark.parametrize("layout", ["consep", "pannuke", "brecahad", "nucls"])
def test_a_users_pixel_size_holds_in_a_published_layout(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout][0](tmp_path)
    (tmp_path / "library.toml").write_text("mpp = 0.5\n")
    (image,) = open_dataset(tmp_path)
    assert image.mpp == 0.5


def test_folders_of_a_published_layout_may_be_small_letters(tmp_path: Path) -> None:
    make_consep(tmp_path)
    for name in ("Images", "Labels"):
        (tmp_path / "Train" / name).rename(tmp_path / "Train" / name.lower())
    (image,) = open_dataset(tmp_path)
    assert image.annotation().labels == ("malignant_epithelial", "endothelial")


def test_an_unknown_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set recognised"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "none")


def test_monusac_refuses_document_types_and_unknown_classes(tmp_path: Path) -> None:
    make_monusac(tmp_path)
    xml = tmp_path / "TCGA-A/TCGA-A_1.xml"
    good = xml.read_text()
    xml.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + good)
    with pytest.raises(DataError, match="document type"):
        open_dataset(tmp_path)
    xml.write_text(good.replace("Lymphocyte", "Lymph"))
    with pytest.raises(DataError, match="unknown class 'Lymph'"):
        open_dataset(tmp_path)[0].annotation()
    xml.write_text(good.replace('"0.24"', '"24"'))
    with pytest.raises(DataError, match="MicronsPerPixel"):
        open_dataset(tmp_path)


def test_brecahad_refuses_unknown_labels_and_points_outside(tmp_path: Path) -> None:
    make_brecahad(tmp_path)
    points = tmp_path / "groundTruth/Case_3-02.json"
    points.write_text('{"tumor": [{"x": 410, "y": 0.1}]}')
    with pytest.raises(DataError, match="from 0 to 1"):
        open_dataset(tmp_path)[0].annotation()
    points.write_text('{"stroma": [{"x": 0.5, "y": 0.1}]}')
    libraries = published_libraries()
    with pytest.raises(DataError, match=r"Case_3-02\.json: label 'stroma' is not one of BreCaHAD's"):
        extract_patches(libraries[1], open_dataset(tmp_path), make_matching(libraries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "lacks label"),
        ("x,y,label\n1,b,round\n", "line 2: x and y are not numbers"),
        ("x,y,label\n1,2,\n", "line 2: it has no label"),
        ("x,y,label\n1,2,round\n51,2,round\n", "outside its image of 50 x 40"),
        ("x,y,label,group\n1,2,round,a\n1,2,round,b\n", "one group, found a, b"),
    ],
)
def test_a_broken_table_of_points_is_told(tmp_path: Path, text: str, message: str) -> None:
    make_points(tmp_path)
    (tmp_path / "labels/slide 1.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path)[0].annotation()
    assert "slide 1.csv" in str(caught.value)


@pytest.mark.parametrize("layout", ["consep", "monusac", "pannuke"])
def test_a_users_library_in_a_published_layout_has_its_own_labels(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout][0](tmp_path)
    names = ["lymphocyte", "b", "c", "d", "macrophage", "f", "g"] if layout != "pannuke" else list("abcde")
    (tmp_path / "library.toml").write_text(f'name = "Lab"\nlabels = {names}\nmpp = 0.25\nlicence = "ours"\n')
    labels = open_dataset(tmp_path)[0].annotation().labels
    assert labels == {"consep": ("d", "g"), "monusac": ("lymphocyte", "macrophage"), "pannuke": ("b", "e")}[layout]


SPOTS = np.arange(40)[:, None] % 8 // 4 * (np.arange(50) % 10 // 5)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"inst_map": SPOTS},
            "inst_map: expected one number for each nucleus; found a mask with a single number for 25",
        ),
        ({"inst_map": SPOTS * 255.0}, "found a mask with a single number for 25 areas"),
        ({"inst_map": SPOTS * (1 + np.arange(50) // 20)}, "found a mask with 3 numbers for 25 areas"),
        ({"inst_map": SPOTS * 0.5}, "inst_map: expected whole numbers, one for each nucleus; found 0.5"),
        ({"inst_map": SPOTS * np.nan}, "expected whole numbers"),
        ({"inst_map": np.where(SPOTS, np.inf, 0)}, "expected whole numbers, one for each nucleus; found inf"),
        ({"inst_map": -SPOTS}, "expected 0 for the background and numbers above it for nuclei; found -1"),
        ({"inst_map": np.zeros((40, 50, 3))}, "inst_map: expected a map of numbers, found 3 dimensions"),
        (
            {"type_map": SPOTS, "x": 1},
            r"expected the array inst_map, with one number for each nucleus; found type_map, x\.",
        ),
    ],
)
def test_a_map_that_is_none_of_instances_is_told(tmp_path: Path, arrays: dict[str, object], said: str) -> None:
    make_consep(tmp_path)
    scipy.io.savemat(tmp_path / "Train/Labels/train_1.mat", arrays)
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(tmp_path)[0].annotation()
    assert "train_1.mat: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_nuclei_may_be_large_and_few_nuclei_in_pieces(tmp_path: Path) -> None:
    make_consep(tmp_path)
    instances = np.zeros((40, 50))
    instances[5:10, 5:10], instances[5:10, 12:15], instances[20:25, 5:10] = 70000, 70000, 5
    instances[20:25, 12:15] = 5
    for k in range(9):  # specks, as of a tool's post-processing
        instances[30, 4 * k] = 5
    scipy.io.savemat(tmp_path / "Train/Labels/train_1.mat", {"inst_map": instances})
    annotation = open_dataset(tmp_path)[0].annotation()
    assert annotation.instances is not None
    assert np.bincount(annotation.instances.ravel())[1:].tolist() == [49, 40]
    np.testing.assert_allclose(annotation.centroids[1], [(7.5 * 25 + 13.5 * 15) / 40, 7.5])


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png"])
def test_a_broken_label_image_is_told_in_one_line(tmp_path: Path, suffix: str) -> None:
    make_outlines(tmp_path, ".png")
    (tmp_path / "labels/patient 1/slide 1.png").unlink()
    file = tmp_path / f"labels/patient 1/slide 1{suffix}"
    image = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)
    if suffix == ".tif":
        tifffile.imwrite(file, image, compression="zlib")
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] + b"x" * (len(content) - len(content) // 2))
    elif suffix == ".npy":
        with file.open("wb") as archive:
            np.savez(archive, image)
    else:
        file.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"slide 1\.\w+: expected a label image") as caught:
        open_dataset(tmp_path)[0].annotation()
    assert "\n" not in str(caught.value)


def test_a_split_never_divides_a_group(tmp_path: Path) -> None:
    make_brecahad(tmp_path)
    for case in range(4, 12):
        for image in range(1, 4):
            shutil.copy(tmp_path / "images/Case_3-02.png", tmp_path / f"images/Case_{case}-{image:02}.png")
            shutil.copy(tmp_path / "groundTruth/Case_3-02.json", tmp_path / f"groundTruth/Case_{case}-{image:02}.json")
    images = open_dataset(tmp_path)
    for hold_out in ((), ("Case_5",), ("Case_5", "Case_1?")):
        train, held = split_groups(images, hold_out)
        assert len(train) + len(held) == len(images) == 25
        assert held
        assert not {i.group for i in train} & {i.group for i in held}
    assert {i.group for i in split_groups(images, ("Case_5", "Case_1?"))[1]} == {"Case_5", "Case_10", "Case_11"}
    with pytest.raises(UsageError, match="hold out fewer"):
        split_groups(images, ("Case_*",))


def test_what_is_held_out_by_itself_has_nuclei(tmp_path: Path) -> None:
    make_outlines(tmp_path, ".npy")
    names = [f"slide {k}" for k in range(1, 9)]
    for name in names[1:]:
        picture(tmp_path / f"images/patient 1/{name}.png", 50, 40)
        np.save(tmp_path / f"labels/patient 1/{name}.npy", np.zeros((40, 50), np.uint16))
    for part, suffix in (("images", "png"), ("labels", "npy")):
        for name in names:  # each a group of its own
            (tmp_path / f"{part}/patient 1/{name}.{suffix}").rename(tmp_path / f"{part}/{name}.{suffix}")
    train, held = split_groups(open_dataset(tmp_path))
    assert [image.name for image in held] == ["slide 1"]
    assert len(train) == 7


def test_a_name_to_hold_out_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    make_brecahad(tmp_path)
    images = open_dataset(tmp_path)
    check_hold_out(("Case_3", "*-02"), images)
    tile = dataclasses.replace(images[0], name="slide [x=0,y=0]", group="slide [x=0,y=0]")
    check_hold_out(("slide [x=0,y=0]",), [tile])
    with pytest.raises(UsageError, match=r"hold out Cas_3, x: no image or group .* such as Case_3"):
        check_hold_out(("Cas_3", "Case_*", "x"), images)


def counts(images: list[AnnotatedImage]) -> Counter[str]:
    return Counter(label for image in images for label in image.annotation().labels)


# As ../shared/data/README.md states them.
REAL = {
    "consep": {
        "other": 371,
        "inflammatory": 3941,
        "healthy_epithelial": 1117,
        "malignant_epithelial": 4420,
        "fibroblast": 4765,
        "muscle": 901,
        "endothelial": 40,
    },
    "monusac": {"epithelial": 3371, "lymphocyte": 3790, "macrophage": 94, "neutrophil": 78},
    "brecahad": {"tumor": 2447, "non_tumor": 260, "apoptosis": 56, "mitosis": 49, "lumen": 22, "non_lumen": 92},
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_their_published_counts(name: str) -> None:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not at hand")
    images = open_dataset(folder)
    assert counts(images) == REAL[name]
    for image in images[:2]:
        annotation, (height, width, _) = image.annotation(), image.pixels().shape
        assert ((annotation.centroids >= 0) & (annotation.centroids <= (width, height))).all()
