"""Configurations by name: the package's own, behind whatever file of that name the user has."""

from __future__ import annotations

from pathlib import Path

import pytest

import resnext_det
from resnext_det.config_files import find_config, list_configs
from resnext_det.detection.config import setup
from resnext_det.errors import UserError

NAME = "detection/coco/X_50_32x4d_C4_1x.yaml"


def test_by_name_with_and_without_its_folder() -> None:
    path = Path(resnext_det.config_path(NAME))
    assert path.is_file() and path.as_posix().endswith("configs/" + NAME)
    assert resnext_det.config_path(f"configs/{NAME}") == str(path)
    assert NAME in list_configs() and "imagenet/resnext50_32x4d.yaml" in list_configs()


def test_mistyped_name_has_a_hint_and_nothing_outside_is_found() -> None:
    with pytest.raises(UserError, match="did you mean detection/coco/X_50_32x4d_C4_.x.yaml"):
        resnext_det.config_path("detection/coco/X_50_32x4d_C4_4x.yaml")
    with pytest.raises(UserError, match="not among the configs"):
        resnext_det.config_path("../setup.py")


def test_the_users_own_file_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(NAME) == resnext_det.config_path(NAME)
    own = tmp_path / NAME
    own.parent.mkdir(parents=True)
    own.write_text("MODEL: {DEVICE: cpu, RESNETS: {NUM_GROUPS: 7}}\n", "utf-8")
    assert find_config(NAME) == NAME
    assert setup(NAME).MODEL.RESNETS.NUM_GROUPS == 7
    own.unlink()
    assert setup(NAME, ["MODEL.DEVICE", "cpu"]).MODEL.RESNETS.NUM_GROUPS == 32


def test_a_config_that_is_nowhere_is_named_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file; did you mean detection/coco/X_50_32x4d_C4_.x.yaml"):
        setup("detection/coco/X_50_32x4d_C4.yaml")
    with pytest.raises(UserError, match=r"no such file .nor a folder x/y"):
        setup("x/y/zzz.yaml")
