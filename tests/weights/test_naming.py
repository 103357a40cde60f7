"""The same logits under every library's names; translations there and back lose nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import in_memory, randomise_norms, relative_error
from torch import Tensor, nn

from resnext_det import UserError, create_model
from resnext_det.variants import list_models, parse_name
from resnext_det.weights import load_strictly
from resnext_det.weights.naming import classifier_tensors, detect, from_native, to_native

WIDE = {"wide_resnet50_2": "resnext50_1x128d", "wide_resnet101_2": "resnext101_1x128d"}
# Every network of each library that is in the family; ours of the same name unless it is in WIDE.
TORCHVISION = "resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d " + " ".join(WIDE)
TIMM = (
    "resnet26 resnet50 resnet101 resnet152 resnet200 "
    "resnext50_32x4d resnext101_32x4d resnext101_32x8d resnext101_64x4d " + " ".join(WIDE)
)
HUGE = ("resnext101_32x16d", "resnext101_32x32d")


def without_values(make: Callable[[], nn.Module]) -> nn.Module:
    """A model that holds NaN until it is given values; quicker than its own initialization."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    return model


def with_random_values(make: Callable[[], nn.Module]) -> nn.Module:
    model = without_values(make)
    for tensor in model.parameters():
        nn.init.normal_(tensor, std=(2 / tensor[0].numel()) ** 0.5)
    return randomise_norms(model)


def check_same_logits(theirs: nn.Module, name: str, logits: Callable[[Tensor], Tensor]) -> None:
    tensors = theirs.state_dict()
    source = detect(tensors, "test")
    ours = without_values(lambda: create_model(WIDE.get(name, name))).eval()
    load_strictly(ours, in_memory(to_native(tensors, source, "test"), source))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(ours(image), logits(image)) < 1e-5


@pytest.mark.parametrize("name", TORCHVISION.split())
def test_logits_of_torchvision(name: str) -> None:
    from torchvision.models import get_model

    theirs = with_random_values(lambda: get_model(name, weights=None))
    check_same_logits(theirs, name, theirs)


@pytest.mark.parametrize("name", [*TIMM.split(), *(pytest.param(name, marks=pytest.mark.slow) for name in HUGE)])
def test_logits_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = with_random_values(lambda: timm.create_model(name))
    check_same_logits(theirs, name, theirs)


@pytest.mark.parametrize("name", ["resnext101_32x4d", "resnext101_64x4d"])
def test_logits_of_pretrainedmodels(name: str) -> None:
    models = pytest.importorskip("pretrainedmodels")
    theirs = with_random_values(lambda: getattr(models, name)(pretrained=None))

    def logits(x: Tensor) -> Tensor:
        # Its pooling window is 7x7 whatever the image; the mean is the same at 224 pixels and works at 64.
        return theirs.last_linear(theirs.features(x).mean(dim=(2, 3)))

    check_same_logits(theirs, name, logits)


@pytest.mark.parametrize("name", list_models())
def test_there_and_back_is_bit_identical(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name, num_classes=10).state_dict()
    # Every tensor is recognized by its address, not its values: translation hands the tensors on as they are.
    for target in ("native", "torchvision", "timm") if parse_name(name).kind == "plain" else ("native",):
        renamed = from_native(state, target, "test")
        back = to_native(renamed, detect(renamed, "test"), "test")
        assert list(back) == list(state)
        assert all(back[key] is state[key] for key in state)


@pytest.mark.parametrize("name", ["resnetv2_50", "seresnet50", "resnet50d"])
def test_other_kinds_keep_our_names(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name, num_classes=10).state_dict()
    with pytest.raises(UserError, match="timm has no place for"):
        from_native(state, "timm", "test")


def test_detect_tells_libraries_apart() -> None:
    assert detect(["conv1.weight", "layer1.0.conv1.weight"], "f") == "torchvision"
    assert detect(["stem.conv1.weight"], "f") == "native-classifier"
    assert detect(["backbone.stem.conv1.weight"], "f") == "native-detector"
    assert detect(["conv1_w"], "f") == "detectron2-zoo"
    assert detect(["features.0.weight", "features.4.0.0.0.0.0.weight"], "f") == "cadene"
    with pytest.raises(UserError, match="^f: not a ResNet .*: its first tensor is encoder.weight$"):
        detect(["encoder.weight", "zz"], "f")


def test_a_detector_gives_its_classifier() -> None:
    one = torch.ones(1)
    detector = {"backbone.stem.conv1.weight": one, "roi_heads.res5.0.conv1.weight": one, "roi_heads.box_head.w": one}
    assert set(classifier_tensors(detector, "f")) == {"stem.conv1.weight", "res5.0.conv1.weight"}
    pyramid = {"backbone.bottom_up.res2.0.conv1.weight": one, "backbone.fpn_lateral2.weight": one}
    assert set(classifier_tensors(pyramid, "f")) == {"res2.0.conv1.weight"}
