"""The same logits under every library's names; translations there and back lose nothing."""

from __future__ import annotations

import pytest
import torch
from helpers import in_memory, randomise_norms, relative_error

from resnext_det import UserError, create_model
from resnext_det.variants import list_models
from resnext_det.weights import load_strictly
from resnext_det.weights.naming import TARGETS, classifier_tensors, detect, from_native, to_native

TORCHVISION = {
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d",
    "wide_resnet50_2": "resnext50_1x128d",
    "wide_resnet101_2": "resnext101_1x128d",
}
TIMM = (
    "resnet26 resnet50 resnet101 resnet152 resnet200 resnext50_32x4d resnext101_32x4d resnext101_32x8d resnext101_64x4d"
)
HUGE = ("resnext101_32x16d", "resnext101_32x32d")


def check_same_logits(theirs, ours, picture: torch.Tensor, logits) -> None:
    tensors = theirs.state_dict()
    source = detect(tensors, "test")
    load_strictly(ours.eval(), in_memory(to_native(tensors, source, "test"), source))
    with torch.no_grad():
        assert relative_error(ours(picture), logits(picture)) < 1e-5


@pytest.mark.parametrize("name", TORCHVISION)
def test_logits_of_torchvision(name: str) -> None:
    from torchvision.models import get_model

    theirs = randomise_norms(get_model(name, weights=None))
    check_same_logits(theirs, create_model(TORCHVISION[name]), torch.rand(1, 3, 64, 64), theirs)


@pytest.mark.parametrize("name", [*TIMM.split(), *(pytest.param(name, marks=pytest.mark.slow) for name in HUGE)])
def test_logits_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = randomise_norms(timm.create_model(name))
    check_same_logits(theirs, create_model(name), torch.rand(1, 3, 64, 64), theirs)


@pytest.mark.parametrize("name", ["resnext101_32x4d", "resnext101_64x4d"])
def test_logits_of_pretrainedmodels(name: str) -> None:
    models = pytest.importorskip("pretrainedmodels")
    theirs = randomise_norms(getattr(models, name)(pretrained=None))

    def logits(x: torch.Tensor) -> torch.Tensor:
        # Its pooling window is 7x7 whatever the picture; the mean is the same at 224 pixels and works at 64.
        return theirs.last_linear(theirs.features(x).mean(dim=(2, 3)))

    check_same_logits(theirs, create_model(name), torch.rand(1, 3, 64, 64), logits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in list_models() if "101" not in name and "152" not in name])
def test_there_and_back_is_bit_identical(name: str, target: str) -> None:
    with torch.device("meta"):
        state = create_model(name, num_classes=10).state_dict()
    # Every tensor is told apart by its address, not its values: translation hands the tensors on as they are.
    renamed = from_native(state, target, "test")
    back = to_native(renamed, detect(renamed, "test"), "test")
    assert list(back) == list(state)
    assert all(back[key] is state[key] for key in state)


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
