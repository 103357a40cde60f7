"""Forms (a), (b) and (c) of Fig. 3 are one function; Fig. 4's depth-2 block is a wider dense one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnext_det import UserError, create_model
from resnext_det.weights.forms import convert_form

SMALL = {"num_classes": 7, "stem_out_channels": 8, "res2_out_channels": 32}


def small(cardinality: int, form: str, residual: bool = True) -> nn.Module:
    return create_model(f"resnext14_{cardinality}x2d", form=form, residual=residual, **SMALL).double()


def randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cardinality", [1, 2, 4, 8, 32])
def test_forms_have_equal_outputs_and_gradients(cardinality: int, training: bool, residual: bool) -> None:
    grouped = small(cardinality, "c", residual)
    randomise_norms(grouped)
    weights = {key: value.clone() for key, value in grouped.state_dict().items()}
    x = torch.randn(3, 3, 33, 33, dtype=torch.float64)
    expected = None
    for form in "cab":
        model = small(cardinality, form, residual).train(training)
        model.load_state_dict(convert_form(weights, cardinality, form))
        inputs = x.clone().requires_grad_()
        logits = model(inputs)
        logits.square().sum().backward()
        gradients = convert_form({k: p.grad for k, p in model.named_parameters()}, cardinality, "c")
        after = convert_form(model.state_dict(), cardinality, "c")
        if expected is None:
            expected = (logits, inputs.grad, gradients, after)
            continue
        torch.testing.assert_close(logits, expected[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(inputs.grad, expected[1], rtol=1e-10, atol=1e-10)
        assert gradients.keys() == expected[2].keys()
        for key, gradient in gradients.items():
            scale = expected[2][key].abs().max().clamp(min=1)
            assert (gradient - expected[2][key]).abs().max() / scale < 1e-10, key
        for key, value in after.items():  # running statistics moved alike
            torch.testing.assert_close(value, expected[3][key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["a", "b"])
def test_conversion_there_and_back_is_bit_identical(form: str) -> None:
    weights = small(4, "c").state_dict()
    back = convert_form(convert_form(weights, 4, form), 4, "c")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_conversion_names_its_mistakes() -> None:
    with pytest.raises(UserError, match="choose from a, b, c"):
        convert_form({}, 2, "d")
    with pytest.raises(UserError, match="do not divide into 3 paths"):
        convert_form(small(2, "c").state_dict(), 3, "a")


def test_paths_of_depth_two_are_a_wider_dense_block() -> None:
    """Fig. 4: with two layers per path nothing is grouped, so the sum of C paths is one dense pair of layers."""
    paths, width, channels = 4, 3, 10
    first = [torch.randn(width, channels, 3, 3, dtype=torch.float64) for _ in range(paths)]
    second = [torch.randn(channels, width, 3, 3, dtype=torch.float64) for _ in range(paths)]
    x = torch.randn(2, channels, 9, 9, dtype=torch.float64)
    total = sum(F.conv2d(F.relu(F.conv2d(x, a, padding=1)), b, padding=1) for a, b in zip(first, second, strict=True))
    dense = F.conv2d(F.relu(F.conv2d(x, torch.cat(first), padding=1)), torch.cat(second, 1), padding=1)
    torch.testing.assert_close(total, dense, rtol=1e-12, atol=1e-12)
