"""Published weights from a cache filled beforehand; one line that says what to put where when there is no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from resnext_det import UserError, create_model
from resnext_det.weights import load_strictly, preset, read_checkpoint, sources


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch and timm, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # Whoever tries to download is refused at once.
    for module, name in (("torch.hub", "download_url_to_file"), ("timm.models._hub", "hf_hub_download")):
        pytest.importorskip(module)
        monkeypatch.setattr(f"{module}.{name}", _no_network)
    monkeypatch.setattr("resnext_det.weights.sources.verify", lambda *args: None)  # the files here are made
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _no_network(*args, **kwargs):
    raise ConnectionError("no network")


def theirs() -> dict[str, torch.Tensor]:
    from torchvision.models import resnext50_32x4d

    return resnext50_32x4d().state_dict()


def test_torchvision(cache: Path) -> None:
    torch.save(theirs(), cache / "resnext50_32x4d-7cdf4587.pth")
    read = read_checkpoint("torchvision://resnext50_32x4d.IMAGENET1K_V1")
    assert read.source == "torchvision" and read.metadata["recipe"] == "IMAGENET1K_V1"
    assert read.metadata["top1_error"] == pytest.approx(22.382) and len(read.metadata["class_names"]) == 1000
    assert read.metadata["input_size"] == 224
    assert preset(read.metadata)["INPUT.FORMAT"] == "RGB"
    load_strictly(create_model("resnext50_32x4d"), read)


def test_timm(cache: Path) -> None:
    safetensors.torch.save_file(theirs(), cache / "resnext50_32x4d.a1_in1k.safetensors", {"format": "pt"})
    read = read_checkpoint("timm://resnext50_32x4d.a1_in1k")
    assert read.source == "timm" and read.metadata["recipe"] == "a1_in1k"
    assert read.metadata["pixel_mean"] == [123.675, 116.28, 103.53]
    load_strictly(create_model("resnext50_32x4d"), read)


def test_timm_statistics_come_from_timm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    config = timm.get_pretrained_cfg("resnext50_32x4d.a1_in1k")
    monkeypatch.setattr(config, "mean", (0.5, 0.5, 0.5))
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: config)
    safetensors.torch.save_file(theirs(), cache / "resnext50_32x4d.a1_in1k.safetensors")
    assert read_checkpoint("timm://resnext50_32x4d.a1_in1k").metadata["pixel_mean"] == [127.5, 127.5, 127.5]


def test_what_timm_fetches_is_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo: str, filename: str, **kwargs) -> str:
        asked.append((repo, filename))
        safetensors.torch.save_file(theirs(), tmp_path / "fetched.safetensors")
        return str(tmp_path / "fetched.safetensors")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    assert read_checkpoint("timm://resnext50_32x4d.a1_in1k").source == "timm"
    assert asked == [("timm/resnext50_32x4d.a1_in1k", "model.safetensors")]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "torchvision://resnext50_32x4d",
            "torchvision://resnext50_32x4d: could not be fetched (ConnectionError); without a network, "
            "put resnext50_32x4d-1a0047aa.pth at {cache}/resnext50_32x4d-1a0047aa.pth",
        ),
        (
            "timm://resnext50_32x4d.a1_in1k",
            "timm://resnext50_32x4d.a1_in1k: could not be fetched (ConnectionError); without a network, "
            "put model.safetensors of timm/resnext50_32x4d.a1_in1k at {cache}/resnext50_32x4d.a1_in1k.safetensors",
        ),
        ("torchvision://resnext50_32x4", "; did you mean resnext50_32x4d?"),
        ("torchvision://resnext50_32x4d.V3", "resnext50_32x4d has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm://resnext50_32x4d.a1", "; did you mean resnext50_32x4d."),
        ("timm://resnetaa50.a1h_in1k", "only timm's plain ResNets and ResNeXts fit"),
        ("http://example/x.pth", "unknown kind of address; give a file, torchvision://NAME or timm://NAME"),
    ],
)
def test_one_line_of_help(cache: Path, uri: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_checkpoint(uri)
    assert message.format(cache=cache) in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_compared_with_the_hash_in_its_name(tmp_path: Path, caplog) -> None:
    verify = sources.verify
    verify("torchvision://x", tmp_path / "x-7cdf4587.pth", "7cdf4587" + "0" * 56)
    with pytest.raises(UserError, match="x-7cdf4587.pth is not the file of that name"):
        verify("torchvision://x", tmp_path / "x-7cdf4587.pth", "0" * 64)
    caplog.set_level("INFO")
    verify("timm://x", tmp_path / "x.a1_in1k.safetensors", "0" * 64)
    assert "timm://x: not verified" in caplog.text
