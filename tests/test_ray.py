"""Ray's workers against one process: the same bytes, of a new run and of one that was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray")
pytest.importorskip("onnxruntime")

from artifacts.made import about, write  # noqa: E402

from resnext_det import UserError  # noqa: E402
from resnext_det.commands import predict as command  # noqa: E402
from resnext_det.ray import predict  # noqa: E402


@pytest.mark.slow  # Ray starts a cluster
def test_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    folder = write(tmp_path / "export", about(min_size=0))
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.fromarray(np.full((20, 30 + i, 3), 9 * i, dtype=np.uint8)).save(tmp_path / "photos" / f"{i:02}.png")
    words = ["--weights", folder, "--input", tmp_path / "photos", "--no-drawings", "--output", tmp_path / "alone"]
    command.main([str(word) for word in words])
    alone = (tmp_path / "alone" / "detections.json").read_bytes()
    assert len(json.loads(alone)["annotations"]) == 12
    output = tmp_path / "ray"
    assert predict(folder, [str(tmp_path / "photos")], output, workers=2, cpus=0.5, batch_size=2).frames == 12
    assert (output / "detections.json").read_bytes() == alone
    (part,) = (output / "parts").glob("*.jsonl")
    part.write_bytes(part.read_bytes()[:700])
    (output / "detections.json").unlink()
    (tmp_path / "photos" / "05.png").write_bytes(b"")
    choices = {"workers": 2, "cpus": 0.5, "batch_size": 2, "resume": True}
    with pytest.raises(UserError, match="05.png"):
        predict(folder, [str(tmp_path / "photos")], output, **choices)
    Image.fromarray(np.full((20, 35, 3), 45, dtype=np.uint8)).save(tmp_path / "photos" / "05.png")
    predict(folder, [str(tmp_path / "photos")], output, **choices)
    assert (output / "detections.json").read_bytes() == alone
