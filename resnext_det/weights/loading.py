"""Weights into a model: every key accounted for, all or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .metadata import architecture_of
from .naming import COUNTER, is_detector, trunk_name

# Layers with one output per class: the part of the name, and the dimension that the classes are in.
_CLASS_LAYERS = {
    "fc": 0,
    "roi_heads.box_predictor": 0,
    "roi_heads.mask_head.predictor": 0,
    "roi_heads.keypoint_head.score_lowres": 1,
    "head.cls_score": 0,  # RetinaNet
}


@dataclass
class LoadReport:
    """What :func:`load_strictly` did, in tensors by part of the model (``num_batches_tracked`` is not counted).

    Attributes:
        loaded: {part: (loaded, all of it)}.
        new: {part: tensors that keep their initial values}.
        unused: {part of the file: tensors that the model has no place for}.
    """

    loaded: dict[str, tuple[int, int]] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    @classmethod
    def complete(cls, names: Iterable[str]) -> LoadReport:
        """Of a model whose every tensor was loaded."""
        counts = Counter(part_of(name) for name in names if not name.endswith(COUNTER))
        return cls({part: (count, count) for part, count in counts.items()})

    def __str__(self) -> str:
        """Such as ``backbone 215/215, res5 50/50, new: box_predictor 4, unused: fc 2``."""
        parts = [f"{part} {count}/{total}" for part, (count, total) in self.loaded.items()]
        for title, counts in (("new", self.new), ("unused", self.unused)):
            if counts:
                parts.append(f"{title}: " + " ".join(f"{part} {count}" for part, count in counts.items()))
        return ", ".join(parts)


def part_of(name: str) -> str:
    """The part of a model a tensor belongs to: ``backbone``, ``res5`` (of a C4 head), ``box_predictor``, ``fc``, ..."""
    if name.startswith("roi_heads.res5.norm."):  # MODEL.RESNEXT.RES5_EXTRA_NORM
        return "res5.norm"
    if name.startswith("roi_heads."):
        return name.split(".")[1]
    if name.startswith(("backbone.fpn_", "fpn_")):
        return "fpn"
    return "backbone" if trunk_name(name) else name.split(".")[0]


def load_strictly(model: nn.Module, checkpoint: Any, *, allow_missing: Iterable[str] = ()) -> LoadReport:
    """Load a checkpoint into a classifier, a backbone or a detector, and account for every key.

    A classifier's trunk finds its places in a detector (``backbone.*``, ``backbone.bottom_up.*`` under a feature
    pyramid, ``roi_heads.res5.*`` in a C4 head) and a detector's in a classifier. Two things may stay new without being
    named: the heads of a detector that starts from a classifier, and a layer with one output per class if the number of
    classes differs. Either the whole checkpoint is loaded or the model is left as it was.

    Args:
        model: or the DistributedDataParallel that wraps it.
        checkpoint: a :class:`~resnext_det.weights.Checkpoint`.
        allow_missing: parts (:func:`part_of`) or prefixes of names that may be missing on either side, or of another
            shape; the model's then stay new.

    Raises:
        UserError: a missing, unexpected or wrongly shaped key.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    own = model.state_dict()
    plan = _plan(own, checkpoint.tensors, tuple(allow_missing))
    if plan.wrong:
        raise UserError(_complaint(plan.wrong, own, checkpoint))
    if not plan.report.loaded.keys() & {"backbone", "res5"}:
        raise UserError(f"{checkpoint.path}: gives the backbone none of its tensors; take weights of the same network")
    with torch.no_grad():
        own.update(plan.values)
        model.load_state_dict(own)
    return plan.report


@dataclass
class _Plan:
    values: dict[str, Tensor]  # by name in the model
    wrong: dict[str, str]  # by name, a phrase for each key that does not fit
    report: LoadReport


def _plan(own: Mapping[str, Tensor], given: Mapping[str, Tensor], allowed: tuple[str, ...]) -> _Plan:
    pairs, unused = _match(own, list(given))
    counters = {name: given[source] for name, source in pairs.items() if name.endswith(COUNTER)}
    own = {name: tensor for name, tensor in own.items() if not name.endswith(COUNTER)}
    unused = [name for name in unused if not name.endswith(COUNTER)]
    anew = tuple(f"{layer}." for layer in _class_layers_of_another_size(own, given, pairs))
    file_is_detector, model_is_detector = is_detector(given), is_detector(own)
    stages = {(trunk_name(name) or "").split(".")[0] for name in own}

    values, wrong, new = {}, {}, Counter()
    totals = Counter(part_of(name) for name in own)
    for name, tensor in own.items():
        source = pairs.get(name)
        # Neither half of a detector's life has the other's heads.
        is_other_head = trunk_name(name) is None and file_is_detector == name.startswith("fc.")
        fits = source is not None and given[source].shape == tensor.shape
        if source is not None and name.startswith(anew) or not fits and _is_allowed(name, allowed):
            new[part_of(name)] += 1
        elif fits:
            values[name] = given[source]
        elif source is not None:
            wrong[name] = f"{name} is {tuple(given[source].shape)} in the file and {tuple(tensor.shape)} in the model"
        elif is_other_head:
            new[part_of(name)] += 1
        else:
            wrong[name] = f"{name} is missing"
    left = Counter()
    for name in unused:
        trunk = trunk_name(name)
        if trunk:  # a model that ends at res4 has no place for res5
            has_no_place = trunk.split(".")[0] not in stages
        elif file_is_detector:
            has_no_place = not model_is_detector
        else:
            has_no_place = name.startswith("fc.") and "fc.weight" not in own
        if has_no_place or _is_allowed(name, allowed):
            left[trunk.split(".")[0] if trunk else part_of(name)] += 1
        else:
            wrong[name] = f"{name} is not in the model"
    taken = Counter(part_of(name) for name in values)
    report = LoadReport({part: (taken[part], totals[part]) for part in totals if taken[part]}, dict(new), dict(left))
    values |= {name: count for name, count in counters.items() if count.shape == ()}
    return _Plan(values, wrong, report)


def _match(own: Mapping[str, Tensor], given: list[str]) -> tuple[dict[str, str], list[str]]:
    """({name in the model: name in the file}, names in the file that nothing takes)."""
    by_trunk = {trunk_name(name): name for name in given if trunk_name(name)}
    exact = set(given)
    pairs = {}
    for name in own:
        source = name if name in exact else by_trunk.get(trunk_name(name)) if trunk_name(name) else None
        if source is not None:
            pairs[name] = source
    taken = set(pairs.values())
    return pairs, [name for name in given if name not in taken]


def _class_layers_of_another_size(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], pairs: Mapping[str, str]
) -> list[str]:
    anew = []
    for layer, class_dim in _CLASS_LAYERS.items():
        shapes = [
            (list(own[name].shape), list(given[pairs[name]].shape))
            for name in own
            if name.startswith(f"{layer}.") and name in pairs
        ]
        differ = [(a, b) for a, b in shapes if a != b]
        if differ and all(_without(a, class_dim) == _without(b, class_dim) for a, b in differ):
            anew.append(layer)
    return anew


def _without(shape: list[int], dim: int) -> list[int]:
    """The shape without its class dimension; a bias has no other."""
    return [] if len(shape) == 1 else shape[:dim] + shape[dim + 1 :]


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == entry or name.startswith(f"{entry.rstrip('.')}.") or part_of(name) == entry for entry in allowed)


def _complaint(wrong: Mapping[str, str], own: Mapping[str, Tensor], checkpoint: Any) -> str:
    theirs, ours = architecture_of(checkpoint.tensors), architecture_of(own)
    differ = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    if differ:
        fix = (
            "they are of another network (" + ", ".join(f"{key} {theirs[key]}, not {ours[key]}" for key in differ) + ")"
        )
    else:
        parts = ", ".join(f"'{part}'" for part in dict.fromkeys(map(part_of, wrong)))
        fix = f'take weights of the same network, or do without: MODEL.ALLOW_MISSING "[{parts}]"'
    return f"{checkpoint.path}: {len(wrong)} tensors do not fit, such as {next(iter(wrong.values()))}; {fix}"


def check_norm_statistics(model: nn.Module, where: str = "the model") -> None:
    """Refuse batch norms that cannot work: bad statistics anywhere, untrained ones where they are frozen.

    A frozen norm whose mean, variance, scale and shift are 0, 1, 1, 0 has never seen data: activations then grow from
    block to block until the loss overflows.

    Raises:
        UserError: naming the first such norm and what to do.
    """
    for name, module in model.named_modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            continue
        if not (torch.isfinite(mean).all() and torch.isfinite(variance).all()):
            raise UserError(f"{where}: {name} has NaN or infinite statistics; take an earlier checkpoint")
        if (variance < 0).any():
            raise UserError(f"{where}: {name} has a negative variance; take an earlier checkpoint")
        if _is_frozen(module) and _is_identity(module, mean, variance):
            raise UserError(
                f"{where}: {name} is frozen with the statistics of random weights; set MODEL.WEIGHTS to pretrained "
                "weights, or train with MODEL.RESNETS.NORM BN and MODEL.BACKBONE.FREEZE_AT 0"
            )


def _is_frozen(module: nn.Module) -> bool:
    # detectron2's FrozenBatchNorm2d and torchvision's hold buffers only.
    return not isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(True for _ in module.parameters(False))


def _is_identity(module: nn.Module, mean: Tensor, variance: Tensor) -> bool:
    scale, shift = getattr(module, "weight", None), getattr(module, "bias", None)
    return bool(
        (mean == 0).all()
        and ((variance - 1).abs() < 1e-3).all()
        and (scale is None or (scale == 1).all())
        and (shift is None or (shift == 0).all())
    )
