"""Names and widths of the family."""

from __future__ import annotations

import pytest

from resnext_det import UserError, list_models
from resnext_det.variants import block_parameters, parse_name, width_for_cardinality


@pytest.mark.parametrize(("cardinality", "width"), [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)])
def test_widths_of_table_2(cardinality: int, width: int) -> None:
    assert width_for_cardinality(cardinality) == width
    assert block_parameters(cardinality, width) == pytest.approx(70_000, rel=0.03)


@pytest.mark.parametrize("name", list_models())
def test_names_read_back(name: str) -> None:
    assert parse_name(name).name == name


@pytest.mark.parametrize("name", ["resnext50", "resnext50_32x4", "resnext51_32x4d", "resnext30_8x64d_cifar", "vgg16"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        parse_name(name)
