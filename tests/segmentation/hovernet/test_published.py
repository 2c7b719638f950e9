"""The published HoVer-Net with random weights: loading, windows, stitching, and its types in the results."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from nucpipe.errors import ModelError
from nucpipe.optional.tiatoolbox import import_tiatoolbox
from pipeline.config import RunConfig
from pipeline.inference.engine import RegionPixels, halo_w, keep_owned, read_grid_w, resize, working_px
from pipeline.inference.models import find_model
from pipeline.regions.region import cut_regions
from pipeline.regions.tissue import tissue_from
from pipeline.run_slide import run_slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter
from segmentation.hovernet.published import PublishedHoVerNet
from segmentation.hovernet.zoo import PUBLISHED, zoo_path
from segmentation.nuclei import Nuclei
from segmentation.registry import load_detector
from tests.support.synthetic import draw_slide, models

TYPES = {"fast": ("neoplastic", "inflammatory", "connective", "dead", "epithelial"), "original": tuple("abcd")}


@pytest.fixture(scope="module")
def network() -> Callable[[str], torch.nn.Module]:
    """tiatoolbox's network with random weights. A window takes seconds, so few go through it."""

    @functools.cache
    def make(mode: str) -> torch.nn.Module:
        torch.manual_seed(3)
        made = import_tiatoolbox("models.architecture.hovernet").HoVerNet(num_types=len(TYPES[mode]) + 1, mode=mode)
        assert isinstance(made, torch.nn.Module)
        return made.eval()

    return make


@pytest.fixture(scope="module")
def from_file(network: Callable[[str], torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> PublishedHoVerNet:
    """The fast network from a file as its authors save it; converting it takes long."""
    tar = tmp_path_factory.mktemp("authors") / "hovernet_fast_pannuke_type_tf2pytorch.tar"
    torch.save({"desc": {f"module.{k}": v for k, v in network("fast").state_dict().items()}}, tar)
    detector = load_detector(tar)
    assert isinstance(detector, PublishedHoVerNet)
    return detector


@pytest.mark.parametrize(("mode", "side", "step"), [("fast", 256, 164), ("original", 270, 80)])
def test_maps_are_those_of_tiatoolbox(
    network: Callable[[str], torch.nn.Module], from_file: PublishedHoVerNet, mode: str, side: int, step: int
) -> None:
    detector = from_file if mode == "fast" else PublishedHoVerNet(network(mode), TYPES[mode])
    margin = detector.margin_px
    assert detector.align_px == step
    pixels = np.random.default_rng(0).integers(0, 256, (step + 2 * margin, step + 2 * margin, 3), np.uint8)
    maps = detector.predict(pixels)
    first = margin - (side - step) // 2
    window = pixels[first : first + side, first : first + side]
    nuclear, hv, types = import_tiatoolbox("models.architecture.hovernet").HoVerNet.infer_batch(
        network(mode), torch.from_numpy(window[None].copy()), device="cpu"
    )
    assert maps.shape == (4, step, step)
    np.testing.assert_allclose(1 / (1 + np.exp(-maps[0])), nuclear[0, ..., 0], atol=1e-5)
    np.testing.assert_allclose(maps[1:3], np.moveaxis(hv[0], -1, 0), rtol=1e-4, atol=1e-5)
    assert (maps[3] == types[0, ..., 0]).mean() > 0.999  # equal scores may fall either way


class Darkness(torch.nn.Module):
    """Shaped as the fast HoVer-Net: 256 -> 164 pixels. What it says depends on where in the window a pixel lies."""

    mode = "fast"

    def __init__(self) -> None:
        super().__init__()
        self.derive = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.derive.weight.data = torch.tensor([[[1.0, 0, -1]] * 3, [[1.0] * 3, [0.0] * 3, [-1.0] * 3]])[:, None]

    def forward(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        assert windows.shape[1:] == (3, 256, 256)
        dark = torch.nn.functional.avg_pool2d((150 - windows[:, 1:2]) / 20, 5, 1, 2)
        place = torch.linspace(0, 0.5, 256).expand(256, 256)
        logit = dark + place + place.T
        scores = torch.cat([-(dark / 50 + place + place.T - k / 6).abs() for k in (9, 1, 2, 3, 4, 5)], 1)
        maps = {"np": torch.cat([-logit / 2, logit / 2], 1), "hv": self.derive(dark) / 8, "tp": scores}
        return {name: part[:, :, 46:210, 46:210] for name, part in maps.items()}


def detect(path: Path, mpp: float, detector: PublishedHoVerNet, size_w: int) -> Nuclei:
    with open_slide(path, mpp) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        tissue = tissue_from("none", slide)
        scale = working_px(detector)
        wrapped = dataclasses.replace(models(), detector=detector)
        found = []
        for region in cut_regions(grid, tissue, size_w, halo_w(wrapped.detector), *read_grid_w(wrapped.detector)):
            pixels = slide.read(grid, region.read_box_w)
            window = RegionPixels(region, pixels, resize(pixels, grid.stride, scale))
            nuclei = detector.nuclei(detector.predict(window.resized), grid.mpp_w * scale)
            found.append(keep_owned(window, nuclei, grid, tissue, scale).nuclei_l0)
    return Nuclei.concatenate(found)


def test_windows_are_stitched_on_one_grid() -> None:
    detector = PublishedHoVerNet(Darkness(), TYPES["fast"], batch_size=4)
    drawn = draw_slide(3 * 164 + 100, 2 * 164 + 100).image
    maps = detector.predict(drawn)
    assert maps.shape == (4, 2 * 164, 3 * 164)
    for row in (0, 1):
        for column in (0, 1, 2):
            window = drawn[row * 164 :, column * 164 :][:264, :264]
            part = np.s_[:, row * 164 : (row + 1) * 164, column * 164 : (column + 1) * 164]
            np.testing.assert_array_equal(maps[part], detector.predict(window))


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_region_size_changes_nothing(tmp_path: Path, mpp: float) -> None:
    side = round(150 / mpp)
    path = draw_slide(side, side - 40).save(tmp_path / "slide.png")
    detector = PublishedHoVerNet(Darkness(), TYPES["fast"])
    whole, parts = (detect(path, mpp, detector, size_w) for size_w in (2048, 224))
    assert len(whole) > 100 * (0.25 / mpp) ** 2
    order, order_of_parts = (np.lexsort(n.centroids.T) for n in (whole, parts))
    whole, parts = whole.select(order), parts.select(order_of_parts)
    np.testing.assert_array_equal(whole.centroids, parts.centroids)
    np.testing.assert_array_equal(whole.contour_points, parts.contour_points)
    np.testing.assert_array_equal(whole.detection_p, parts.detection_p)
    np.testing.assert_array_equal(whole.types, parts.types)
    assert len(set(np.asarray(whole.types).tolist())) > 1


def test_files_of_authors_and_of_the_zoo(
    network: Callable[[str], torch.nn.Module], from_file: PublishedHoVerNet, tmp_path: Path
) -> None:
    weights = network("fast").state_dict()
    assert from_file.types == TYPES["fast"]
    for name, tensor in from_file.network.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    torch.save(weights, tmp_path / "mine.pth")
    assert load_detector(tmp_path / "mine.pth").types == ("type_1", "type_2", "type_3", "type_4", "type_5")
    del weights["decoder.hv.u0.conv.bias"]
    torch.save({"desc": weights}, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"they do not fit .*decoder.hv.u0.conv.bias"):
        load_detector(tmp_path / "less.pth")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="expected the weights of a HoVer-Net as published"):
        load_detector(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ModelError, match="expected weights by name"):
        load_detector(tmp_path / "b.pth")
    torch.save({"desc": Path("x")}, tmp_path / "c.tar")  # would have to be unpickled
    with pytest.raises(ModelError, match="cannot be read safely") as refused:
        load_detector(tmp_path / "c.tar")
    assert str(refused.value) == (
        f"{tmp_path / 'c.tar'}: expected weights saved by PyTorch; it cannot be read safely (it is broken, or holds "
        "Python objects beside its tensors, which could run any code). Save its state_dict() alone, or fetch it again."
    )
    (tmp_path / "d.pth").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be read safely"):
        load_detector(tmp_path / "d.pth")
    with pytest.raises(ModelError, match="no such model file"):
        load_detector(tmp_path / "e.pth")


def test_a_named_model_comes_from_the_cache_or_the_error_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUCPIPE_CACHE", str(tmp_path))
    monkeypatch.setitem(import_tiatoolbox("").rcParam, "TIATOOLBOX_HOME", tmp_path / "home")
    name = "hovernet_original-kumar"
    assert name in PUBLISHED

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(import_tiatoolbox("models.architecture"), "hf_hub_download", offline)
    with pytest.raises(ModelError) as raised:
        find_model("segmentor", name)
    assert str(raised.value).count("\n") == 0
    for part in (name, "(no route to host)", f"resolve/main/{name}.pth", str(tmp_path / "models" / f"{name}.pth")):
        assert part in str(raised.value)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"Fetching the weights of {name} once, about 180 MB: https://huggingface.co/TIACentre/")
    assert said.endswith(f" -> {tmp_path / 'models' / f'{name}.pth'}")
    for folder in (tmp_path / "models", tmp_path / "home" / "models"):  # nucpipe's, and what tiatoolbox fetched before
        folder.mkdir(parents=True)
        (folder / f"{name}.pth").write_bytes(b"")
        assert find_model("segmentor", name) == zoo_path(name) == folder / f"{name}.pth"
    assert capsys.readouterr().err == ""


def test_types_stand_in_the_store_and_in_the_geojson(tmp_path: Path) -> None:
    slide = draw_slide(528, 500).save(tmp_path / "slide.png")
    detector = PublishedHoVerNet(Darkness(), TYPES["fast"])
    chosen = models()
    described = {**chosen.described, "segmentor": {"name": "darkness", "types": list(detector.types)}}
    chosen = dataclasses.replace(chosen, detector=detector, described=described)
    run_slide(slide, tmp_path / "out", chosen, RunConfig(mpp=0.25, tissue="none", region_size=256), SilentReporter())
    expected = detect(slide, 0.25, detector, 2048)
    whole = dict(zip(map(tuple, expected.centroids.tolist()), np.asarray(expected.types).tolist(), strict=True))
    store = open_store(tmp_path / "out" / "nuclei.zarr")
    numbers = [whole[x, y] for x, y in store.centroids_l0.tolist()]
    assert len(set(numbers)) > 1
    column = anndata.read_zarr(tmp_path / "out" / "nuclei.zarr" / "table").obs["segmentor_type"]
    assert tuple(column.cat.categories) == detector.types
    assert column.cat.codes.tolist() == store.type_numbers.tolist() == numbers
    features = json.loads((tmp_path / "out" / "nuclei.geojson").read_text("utf-8"))["features"]
    named = [feature["properties"]["metadata"].get("Segmentor type") for feature in features]
    assert named == [detector.types[number] if number >= 0 else None for number in numbers]


def test_a_file_of_the_authors_runs_in_the_engine(from_file: PublishedHoVerNet, tmp_path: Path) -> None:
    chosen = dataclasses.replace(models(), detector=from_file)
    slide = draw_slide(120, 110).save(tmp_path / "slide.png")  # one window
    result = run_slide(slide, tmp_path / "out", chosen, RunConfig(mpp=0.25, tissue="none"), SilentReporter())
    assert result.status == "done"
    assert len(open_store(tmp_path / "out" / "nuclei.zarr")) == result.nuclei
