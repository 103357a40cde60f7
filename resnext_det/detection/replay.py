"""``tools/train_net.py --replay DUMP``: the step that ended a training, run again."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..engine.dump import load_weights, read_dump
from ..engine.logs import start_log
from ..engine.replay import replay_step
from ..files import shown
from .class_count import class_count_from_config
from .data.checked_sets import check_sets_from_config
from .data.loaders import known_sets, register_sets, train_loader_from_config
from .evaluate import in_order_of_model


def replay(cfg: CfgNode, dump: str) -> dict[str, list]:
    """:func:`replay_step` of ``dump``, with the weights and images that the step had.

    Raises:
        UserError: not a dump, or one of another model or other classes.
    """
    facts = read_dump(dump)
    start_log(cfg.OUTPUT_DIR)
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TRAIN, "TRAIN")
    sets = check_sets_from_config(cfg, training=True)
    if class_count_from_config(cfg) is not None:
        sets = in_order_of_model(sets, facts.get("class_names", ()), model=shown(dump))
    model = build_model(cfg)
    load_weights(model, facts["folder"])
    place = {"rank": facts["process"], "world_size": facts["processes"]}
    return replay_step(
        facts, model, train_loader_from_config(cfg, facts["seed"], facts["iteration"], sets=sets, **place)
    )
