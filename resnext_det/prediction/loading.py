"""The front door to a detector in Python, whatever kind of file it lies in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .detector import Detector


def load_detector(
    file_or_folder: str | os.PathLike,
    *,
    dtype: str = "auto",
    device: str = "auto",
    config: str | os.PathLike = "",
    score_threshold: float | None = None,
    examples: Iterable[Any] = (),
    trust_pickle: bool = False,
) -> Detector:
    """A trained detector from its weights, which hold its configuration and class names, or from an export.

    Args:
        file_or_folder: a checkpoint of a training, its OUTPUT_DIR, of which the newest is taken, or what
            ``resnext-det export``, ``quantize`` or ``tune`` wrote: the folder or ``detector.onnx`` alone; or
            ``hf://USER/MODEL@REVISION``, a folder on the Hugging Face Hub. An export needs neither torch nor
            detectron2, and takes "auto" and no ``config`` or ``examples``.
        dtype: how it computes: "fp32", "bf16", "fp16", "int8", "auto" for what the hardware is good at, "off" for the
            layers of training as they are.
        device: "cpu", "cuda", ...; "auto" is a GPU where there is one.
        config: YAML file, for weights that do not hold theirs.
        score_threshold: detections below it are left out; by default the best of each class, as the evaluation in
            training has found it, or 0.5 where the weights do not say.
        examples: images like those to come, on which "int8" measures its ranges; needed by it only.
        trust_pickle: also open weights that may run code.

    Raises:
        UserError: no weights there, none that are a detector's, no configuration in them, or a damaged export.

    Example:
        >>> detector = resnext_det.load_detector("output/model_final.pth")
        >>> result = detector("photo.jpg")
        >>> result.names, result.boxes
    """
    from ..artifacts.about import is_artifact
    from ..errors import UserError
    from .hub import local

    file_or_folder = local(file_or_folder)
    given = list(examples)
    if not is_artifact(file_or_folder):
        trained = import_module("resnext_det.detection.prediction.detector").load_trained
        return trained(
            file_or_folder, dtype=dtype, device=device, config=config, score_threshold=score_threshold,
            examples=given, trust_pickle=trust_pickle,
        )  # fmt: skip
    if dtype != "auto" or device not in ("auto", "cpu") or config or given:
        raise UserError(f"{os.fspath(file_or_folder)}: an export has its precision and runs on the CPU: leave out "
                        "dtype, device, config and examples")  # fmt: skip
    from ..artifacts.running import ArtifactPredictor
    from .detector import Detector
    from .run import DEFAULT_THRESHOLD

    predictor = ArtifactPredictor(file_or_folder)
    about = predictor.about
    threshold = about.thresholds or DEFAULT_THRESHOLD if score_threshold is None else score_threshold
    return Detector(predictor, about.class_names, about.category_ids, score_threshold=threshold)
