"""Which of detectron2's own keys have an effect in a run: the others are refused or named before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import reduce
from typing import NamedTuple

from detectron2.config import CfgNode, get_cfg

from ..errors import UserError, listed

C4_HEADS = ("ResNeXtC4ROIHeads", "Res5ROIHeads")
_STANDARD_HEADS = (*C4_HEADS, "StandardROIHeads", "CascadeROIHeads")
_TWO_STAGES, _PROPOSALS, _ONE_STAGE = "GeneralizedRCNN", "ProposalNetwork", "RetinaNet"
_TRUNKS = ("build_resnext_backbone", "build_resnet_backbone")
_SCHEDULER = "SOLVER.LR_SCHEDULER_NAME"
_STEPPED, _COSINE, _GAMMA = "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"


class Row(NamedTuple):
    """Keys, and when they have no effect.

    Attributes:
        keys: a pattern of full names.
        idle: whether nothing reads them in a run of this config.
        reader: what would read them; "" where nothing does, whatever the config.
        instead: what to do where nothing does.
    """

    keys: str
    idle: Callable[[CfgNode], bool]
    reader: str = ""
    instead: str = "leave it out"


def has_rpn(cfg: CfgNode) -> bool:
    """The detector finds its proposals itself."""
    return cfg.MODEL.META_ARCHITECTURE == _PROPOSALS or (
        has_roi_heads(cfg) and not cfg.MODEL.LOAD_PROPOSALS and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN"
    )


def has_roi_heads(cfg: CfgNode) -> bool:
    """The detector has a second stage."""
    return cfg.MODEL.META_ARCHITECTURE == _TWO_STAGES


def _is(key: str, *values: object) -> Callable[[CfgNode], bool]:
    """Whether ``key`` has one of ``values``; a key that only the main branch of detectron2 has may be missing."""
    return lambda cfg: reduce(lambda node, part: (node or {}).get(part), key.split("."), cfg) in values


# A detector or head of another project is in no condition: what it reads is its own affair.
ROWS = (
    Row("GLOBAL.HACK", lambda cfg: True),
    Row("VERSION", lambda cfg: True, instead="key names are those of version 2"),
    Row(
        "SOLVER.REFERENCE_WORLD_SIZE",
        lambda cfg: True,
        instead="set SOLVER.REFERENCE_BATCH, by which the schedule follows the batch",
    ),
    Row("TEST.EXPECTED_RESULTS", lambda cfg: True, instead="compare OUTPUT_DIR/results.json"),
    Row("DATALOADER.RANDOM_SUBSET_RATIO", lambda cfg: True, instead="set DATASETS.FRACTION"),
    Row(r"MODEL\.(SEM_SEG_HEAD|PANOPTIC_FPN)\..*", lambda cfg: True, instead="only things are learned here"),
    Row(
        r"DATALOADER\.REPEAT_.*",
        _is("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
        "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler",
    ),
    Row(
        r"DATASETS\.(PRECOMPUTED_PROPOSAL_TOPK|PROPOSAL_FILES)_.*",
        _is("MODEL.LOAD_PROPOSALS", False),
        "MODEL.LOAD_PROPOSALS True",
    ),
    Row(r"INPUT\.CROP\.(SIZE|TYPE)", _is("INPUT.CROP.ENABLED", False), "INPUT.CROP.ENABLED True"),
    Row(r"INPUT\.MASK_FORMAT|MODEL\.ROI_MASK_HEAD\..*", _is("MODEL.MASK_ON", False), "MODEL.MASK_ON True"),
    Row(
        r"MODEL\.ROI_MASK_HEAD\.POOLER_.*",
        _is("MODEL.ROI_HEADS.NAME", *C4_HEADS),
        "a MODEL.ROI_HEADS.NAME with pooling of its own for masks (StandardROIHeads)",
    ),
    Row(
        r"MODEL\.ROI_KEYPOINT_HEAD\..*|TEST\.KEYPOINT_OKS_SIGMAS",
        _is("MODEL.KEYPOINT_ON", False),
        "MODEL.KEYPOINT_ON True",
    ),
    Row(
        r"MODEL\.ANCHOR_GENERATOR\.ANGLES",
        _is("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
        "MODEL.ANCHOR_GENERATOR.NAME RotatedAnchorGenerator",
    ),
    Row(
        r"MODEL\.(RPN\..*|PROPOSAL_GENERATOR\.MIN_SIZE|ANCHOR_GENERATOR\..*)",
        lambda cfg: has_roi_heads(cfg) and _is("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")(cfg),
        "MODEL.PROPOSAL_GENERATOR.NAME RPN",
    ),
    Row(
        r"MODEL\.(RPN|PROPOSAL_GENERATOR)\..*",
        _is("MODEL.META_ARCHITECTURE", _ONE_STAGE),
        "a MODEL.META_ARCHITECTURE with an RPN",
    ),
    Row(r"MODEL\.FPN\..*", _is("MODEL.BACKBONE.NAME", *_TRUNKS), "a MODEL.BACKBONE.NAME with a feature pyramid"),
    Row(
        r"MODEL\.RESNETS\.DEFORM_(MODULATED|NUM_GROUPS)",
        lambda cfg: "resnext" in cfg.MODEL.BACKBONE.NAME,
        "detectron2's own ResNet",
    ),
    Row(
        r"MODEL\.RETINANET\..*",
        _is("MODEL.META_ARCHITECTURE", _TWO_STAGES, _PROPOSALS),
        f"MODEL.META_ARCHITECTURE {_ONE_STAGE}",
    ),
    Row(
        r"MODEL\.(ROI_.*|KEYPOINT_ON|MASK_ON)",
        _is("MODEL.META_ARCHITECTURE", _PROPOSALS, _ONE_STAGE),
        f"MODEL.META_ARCHITECTURE {_TWO_STAGES}",
    ),
    Row(
        r"MODEL\.ROI_BOX_CASCADE_HEAD\..*",
        lambda cfg: cfg.MODEL.ROI_HEADS.NAME != "CascadeROIHeads" and cfg.MODEL.ROI_HEADS.NAME in _STANDARD_HEADS,
        "MODEL.ROI_HEADS.NAME CascadeROIHeads",
    ),
    Row(
        r"MODEL\.ROI_BOX_HEAD\.(CONV_DIM|FC_DIM|NAME|NORM|NUM_CONV|NUM_FC|TRAIN_ON_PRED_BOXES)",
        _is("MODEL.ROI_HEADS.NAME", *C4_HEADS),
        "a MODEL.ROI_HEADS.NAME without res5 (StandardROIHeads)",
    ),
    Row(
        r"MODEL\.ROI_BOX_HEAD\.FED_LOSS_.*",
        _is("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", False),
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS True",
    ),
    Row("VIS_PERIOD", _is("MODEL.META_ARCHITECTURE", _PROPOSALS), f"MODEL.META_ARCHITECTURE {_TWO_STAGES}"),
    Row("SOLVER.STEPS", _is(_SCHEDULER, _COSINE, _GAMMA), f"{_SCHEDULER} {_STEPPED}"),
    Row("SOLVER.GAMMA", _is(_SCHEDULER, _COSINE), f"{_SCHEDULER} {_STEPPED}"),
    Row("SOLVER.BASE_LR_END", _is(_SCHEDULER, _STEPPED, _GAMMA), f"{_SCHEDULER} {_COSINE}"),
    Row("SOLVER.NUM_DECAYS", _is(_SCHEDULER, _STEPPED, _COSINE), f"{_SCHEDULER} {_GAMMA}"),
    Row(
        r"SOLVER\.CLIP_GRADIENTS\.(CLIP_|NORM_).*",
        _is("SOLVER.CLIP_GRADIENTS.ENABLED", False),
        "SOLVER.CLIP_GRADIENTS.ENABLED True",
    ),
    Row(r"TEST\.AUG\.(FLIP|M.*)", _is("TEST.AUG.ENABLED", False), "TEST.AUG.ENABLED True"),
    Row("TEST.PRECISE_BN.NUM_ITER", _is("TEST.PRECISE_BN.ENABLED", False), "TEST.PRECISE_BN.ENABLED True"),
)
"""Keys that no row holds are read by every run; ``tests/test_stock_keys.py`` records it."""


def check_stock_keys(cfg: CfgNode, given: Collection[str] = ()) -> list[str]:
    """Hold detectron2's own keys against what a run of ``cfg`` reads.

    One that nothing reads whatever the config is refused, and so is one of ``given`` that this config gives no reader.
    The others are no mistake: detectron2's own YAML files set the keys of heads that they leave off.

    Args:
        given: keys that the user has named for this run, on the command line.

    Returns:
        A line for each reader that this config lacks, with the keys.

    Raises:
        UserError: a key with its value, and what would read it.
    """
    idle: dict[str, list[str]] = {}
    for key, value, default, row in keys_without_effect(cfg):
        if not row.reader:
            raise UserError(f"{key} {value}: has no effect here; {row.instead}, and leave it at {default!r}")
        if key in given:
            raise UserError(f"{key} {value}: has no effect with this config, which lacks {row.reader}; leave it out")
        idle.setdefault(row.reader, []).append(f"{key} {value}")
    return [f"without effect, as this config lacks {reader}: {listed(keys, 8)}" for reader, keys in idle.items()]


def keys_without_effect(cfg: CfgNode) -> Iterator[tuple[str, object, object, Row]]:
    """(key, value, default, reason) of each stock key that differs from its default, and that nothing reads."""
    defaults = get_cfg()
    for key in _leaves(defaults):
        value, default = (reduce(getattr, key.split("."), node) for node in (cfg, defaults))
        row = next((row for row in ROWS if re.fullmatch(row.keys, key) and row.idle(cfg)), None)
        if row is not None and value != default:
            yield key, value, default, row


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key
