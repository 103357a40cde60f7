"""``tools/pretrain.py --replay DUMP``: the step that ended a training, run again."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from ..engine.dump import load_weights, read_dump
from ..engine.logs import start_log
from ..engine.replay import replay_step
from .shards import open_images
from .train import Plan, build_training_model, training_loader


def replay(cfg: CfgNode, dump: str) -> dict[str, list]:
    """:func:`replay_step` of ``dump``, with the weights and images that the step had.

    Raises:
        UserError: not a dump, or one of another model or other classes.
    """
    facts = read_dump(dump)
    start_log(cfg.OUTPUT_DIR)
    image_set = open_images(cfg.DATASETS.TRAIN, facts.get("class_names") or None, window=cfg.DATALOADER.SHUFFLE_WINDOW)
    model = build_training_model(cfg, len(image_set.classes))
    load_weights(model.classifier, facts["folder"])
    batch_size = Plan.of(cfg, len(image_set), facts["processes"]).batch_size
    place = {"rank": facts["process"], "world_size": facts["processes"]}
    return replay_step(
        facts, model, training_loader(cfg, image_set, batch_size, facts["seed"], facts["iteration"], **place)
    )
