"""``tools/train_net.py --replay DUMP``: the step that ended a training, run again."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

from ..engine.dump import load_weights, read_dump, summary
from ..engine.trainer import Trainer, start_log
from .checked_sets import check_sets_from_config
from .data import known_sets, register_sets, train_loader_from_config

logger = logging.getLogger(__name__)


def replay(cfg: CfgNode, dump: str) -> dict[str, list]:
    """Run the step of ``dump`` again, with the weights, pictures and random numbers that it had, and log its losses.

    In one process, as the process of the dump: equal to what the run saw unless its batch norm was synchronised.

    Returns:
        ``{"losses": [{name: value} for each part], "recorded": the same of the dump, "gradient_norms": {name: norm}}``.

    Raises:
        UserError: not a dump, or one of another model.
    """
    facts = read_dump(dump)
    start_log(cfg.OUTPUT_DIR)
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TRAIN, "TRAIN")
    check_sets_from_config(cfg, training=True)
    model = build_model(cfg)
    load_weights(model, facts["folder"])
    trainer = Trainer(
        model,
        build_optimizer(cfg, model),
        seed=facts["seed"],
        precision=facts["precision"],
        accumulate=facts["accumulate"],
    )
    process = facts["process"]
    loader = train_loader_from_config(
        cfg, facts["seed"], facts["iteration"], rank=process, world_size=facts["processes"]
    )
    now = [{"batch": b["batch"], "samples": loader.describe(b["batch"])} for b in facts["batches"]]
    if now != facts["batches"]:
        logger.warning("the training data is not what it was: the pictures below are today's")
    trainer.set_data_loader(loader)
    with EventStorage(facts["iteration"]):
        parts, _ = trainer.losses_and_gradients(facts["iteration"], process)
    losses = [{name: loss.item() for name, loss in part.items()} for part in parts]
    norms = trainer.gradient_norms()
    logger.info("recorded: %s", summary(facts))
    logger.info("replayed: %s", summary({**facts, "losses": losses, "batches": now}))
    largest = sorted(norms, key=lambda name: norms[name] if norms[name] == norms[name] else float("inf"))[-5:]
    logger.info("largest gradients: %s", ", ".join(f"{name} {norms[name]:.4g}" for name in reversed(largest)))
    return {"losses": losses, "recorded": facts["losses"], "gradient_norms": norms}
