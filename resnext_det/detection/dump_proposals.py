"""Run an RPN over sets and keep its boxes: the first half of the paper's detectors (Sec. 5.4), for the second."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import ProposalNetwork, build_model
from detectron2.utils import comm
from torch import nn

from ..annotations.dataset import Dataset
from ..engine.logs import start_log
from ..engine.processes import decided_by_main
from ..errors import UserError
from ..weights import ReadOnce
from .data.checked_sets import check_sets_from_config
from .data.loaders import component_of, known_sets, register_sets, test_loader_from_config
from .data.proposals import Proposals, write_proposals
from .initial_weights import apply_preset
from .train import load_to_evaluate

logger = logging.getLogger(__name__)


def proposal_network(model: nn.Module) -> ProposalNetwork:
    """The part of a detector that proposes boxes, its weights shared; a :class:`ProposalNetwork` is that already.

    Raises:
        UserError: the detector has none.
    """
    if isinstance(model, ProposalNetwork):
        return model
    if getattr(model, "proposal_generator", None) is None:
        raise UserError("this detector has no proposal generator: give the config of an RPN or of a Faster R-CNN")
    statistics = {name: getattr(model, name).flatten().tolist() for name in ("pixel_mean", "pixel_std")}
    network = ProposalNetwork(backbone=model.backbone, proposal_generator=model.proposal_generator, **statistics)
    return network.to(model.device)


class ProposalRecorder(DatasetEvaluator):
    """Collects the proposals of all processes; ``evaluate`` gives them to the first one, sorted by image id."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._found: list[tuple] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to("cpu")
            boxes, logits = proposals.proposal_boxes.tensor.numpy(), proposals.objectness_logits.numpy()
            self._found.append((given["image_id"], boxes, logits))

    def evaluate(self) -> Proposals:
        """Everything on the first process, nothing on the others; an image that came twice counts once."""
        found = {part[0]: part for parts in comm.gather(self._found) for part in parts}
        ids = sorted(found, key=lambda image: (str(type(image)), image))
        return ids, [found[i][1] for i in ids], [found[i][2] for i in ids]


def dump_proposals(
    cfg: CfgNode,
    model: nn.Module,
    names: Sequence[str],
    folder: str | os.PathLike,
    *,
    sets: Mapping[str, Dataset] | None = None,
) -> list[Path]:
    """Write ``folder/NAME.pkl`` for each of the sets ``names``: up to MODEL.RPN.POST_NMS_TOPK_TEST boxes an image.

    Returns:
        The files, in the order of ``names``.
    """
    network = proposal_network(model)
    files = [Path(folder, f"{component_of(name)}.pkl") for name in names]
    for name, path in zip(names, files, strict=True):
        found = inference_on_dataset(network, test_loader_from_config(cfg, name, sets), ProposalRecorder())
        decided_by_main(lambda path=path, found=found: _save(path, *found))
    return files


def _save(path: Path, ids: Sequence, boxes: Sequence, logits: Sequence) -> None:
    write_proposals(path, ids, boxes, logits)
    number = sum(len(part) for part in boxes) / max(len(ids), 1)
    logger.info("%s: %.0f proposals for each of %d images", path, number, len(ids))


def run(cfg: CfgNode, names: Sequence[str] | None, folder: str | None, weights_given: bool, trust_pickle: bool) -> None:
    """One process of ``resnext-det proposals``: ``names`` is DATASETS.TRAIN and TEST by default.

    Raises:
        UserError: a set, or weights, that cannot be used.
    """
    register_sets(cfg.DATASETS.REGISTER)
    names = names or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    known_sets(names, "TRAIN and TEST")
    start_log(cfg.OUTPUT_DIR)
    sets = check_sets_from_config(cfg, training=True)
    read = ReadOnce(trust_pickle)
    cfg = apply_preset(cfg, read)
    model = build_model(cfg)
    load_to_evaluate(cfg, model, newest=not weights_given, read=read)
    dump_proposals(cfg, model, names, folder or os.path.join(cfg.OUTPUT_DIR, "proposals"), sets=sets)
