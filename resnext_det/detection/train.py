"""Train, resume and evaluate a detector: the whole of ``tools/train_net.py``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from torch import nn

from ..annotations.dataset import Dataset
from ..engine.averaging import WeightAverage, average_of
from ..engine.checkpoint import BestCheckpointer, RunCheckpointer
from ..engine.config import save_config
from ..engine.determinism import make_deterministic
from ..engine.evaluations import EarlyStop, Evaluations
from ..engine.hooks import settings_of, settle, standard_hooks, writers
from ..engine.logs import start_log
from ..engine.processes import decided_by_main, wrap_distributed
from ..engine.sampler import seed_everything
from ..engine.trainer import Trainer, choose_seed, weak
from ..errors import UserError
from .config_check import check_config
from .data.checked_sets import check_sets_from_config
from .data.loaders import known_sets, register_sets, train_dicts_from_config, train_loader_from_config
from .evaluate import evaluate_model, validation_loss
from .initial_weights import apply_preset, architecture, check_against_config, load_initial_weights
from .solver import precision_of, resolve_schedule

logger = logging.getLogger(__name__)


def run(cfg: CfgNode, resume: bool, eval_only: bool, trust_pickle: bool = False) -> dict[str, dict]:
    """One process of a run: evaluate MODEL.WEIGHTS, or train and then evaluate.

    Args:
        trust_pickle: also open a MODEL.WEIGHTS that may run code.

    Returns:
        The last evaluation, ``{"bbox": {"AP": ..., "AP50": ...}}``, or by set where DATASETS.TEST has several; it is
        also in ``OUTPUT_DIR/results.json``.
    """
    check_config(cfg, eval_only=eval_only, resume=resume)
    make_deterministic(cfg.DETERMINISTIC, cfg.SEED)
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TEST, "TEST")
    if not eval_only:
        known_sets(cfg.DATASETS.TRAIN, "TRAIN")
    start_log(cfg.OUTPUT_DIR)
    cfg = apply_preset(cfg, trust_pickle=trust_pickle)
    _log_run(cfg)
    sets = check_sets_from_config(cfg, training=not eval_only)
    if eval_only:
        return _evaluate_only(cfg, sets, resume, trust_pickle)
    return _train(cfg, sets, resume, trust_pickle)


def _log_run(cfg: CfgNode) -> None:
    devices = (
        torch.cuda.get_device_name() if cfg.MODEL.DEVICE.startswith("cuda") else f"{torch.get_num_threads()} threads"
    )
    logger.info(
        "torch %s on %s (%s), %d processes", torch.__version__, cfg.MODEL.DEVICE, devices, comm.get_world_size()
    )
    logger.info("the whole config is in %s", save_config(cfg, cfg.OUTPUT_DIR))


def load_to_evaluate(cfg: CfgNode, model: nn.Module, *, newest: bool, trust_pickle: bool = False) -> list[str]:
    """Load trained weights: MODEL.WEIGHTS, or the newest checkpoint of OUTPUT_DIR (with EMA_DECAY its average).

    Returns:
        The names of the model's classes, as far as the file holds them.

    Raises:
        UserError: none there, or they do not fit.
    """
    if not newest:
        found = load_initial_weights(cfg, model, allow_new_heads=False, trust_pickle=trust_pickle)
        return detector_names(found)
    average = average_of(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
    saved = {} if average is None else {"model_ema": average}
    facts: list[Mapping[str, Any]] = []

    def check(found: Mapping[str, Any], where: str) -> None:
        facts.append(found)
        check_against_config(cfg, found, where)

    if RunCheckpointer(model, cfg.OUTPUT_DIR, {}, **saved).resume(check) is None:
        raise UserError(f"{cfg.OUTPUT_DIR} holds no checkpoint: give the weights to evaluate, MODEL.WEIGHTS FILE")
    if average is not None:
        model.load_state_dict(average.module.state_dict())
        logger.info("evaluating model_ema, the average of the weights")
    return detector_names(facts[-1]) if facts else []


def detector_names(found: Mapping[str, Any]) -> list[str]:
    """The class names in a detector's checkpoint; files of classifiers name what the classifier tells apart."""
    return [] if "source" in found else list(found.get("class_names", ()))


def _evaluate_only(cfg: CfgNode, sets: dict[str, Dataset], resume: bool, trust_pickle: bool) -> dict[str, dict]:
    model = build_model(cfg)
    names = load_to_evaluate(cfg, model, newest=resume, trust_pickle=trust_pickle)
    return evaluate_model(cfg, model, sets=sets, class_names=names)


def _train(cfg: CfgNode, sets: dict[str, Dataset], resume: bool, trust_pickle: bool) -> dict[str, dict]:
    dicts = train_dicts_from_config(cfg, sets)
    cfg = resolve_schedule(cfg, len(dicts))
    seed = choose_seed(cfg.SEED)
    seed_everything((seed,))  # of the weights that start anew
    model = build_model(cfg)
    try:
        optimizer = build_optimizer(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
    except ValueError as error:  # a name or number that torch or detectron2 refuses
        raise UserError(f"SOLVER: {error}") from error
    trainer = Trainer(
        wrap_distributed(model),
        optimizer,
        seed=seed,
        precision=precision_of(cfg),
        accumulate=cfg.SOLVER.ACCUMULATE,
    )
    saved: dict[str, Any] = {"trainer": weak(trainer)}
    judged = model
    if cfg.SOLVER.EMA_DECAY:
        average = average_of(model, cfg.SOLVER.EMA_DECAY)
        saved["model_ema"], judged = average, average.module
        trainer.register_hooks([WeightAverage(average, model)])
    facts = architecture(cfg)
    checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, facts, **saved)
    best = BestCheckpointer(model, cfg.OUTPUT_DIR, facts, **saved)
    results: dict[str, dict] = {}

    def evaluate(_done: int) -> dict[str, dict]:
        results.clear()
        results.update(evaluate_model(cfg, judged, sets=sets))
        if cfg.TEST.VALIDATION_LOSS:
            results.update(_named("validation_loss", validation_loss(cfg, judged, sets=sets)))
        model.train()
        return results

    evaluations = Evaluations(
        evaluate,
        cfg.TEST.EVAL_PERIOD,
        cfg.OUTPUT_DIR,
        metric=cfg.TEST.BEST_METRIC,
        save_best=lambda done: best.save("model_best", iteration=done - 1),
        patience=cfg.TEST.PATIENCE,
    )
    trainer.register_hooks(
        [
            *standard_hooks(
                optimizer,
                scheduler,
                checkpointer,
                checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
                keep_checkpoints=cfg.SOLVER.KEEP_CHECKPOINTS or None,
            ),
            evaluations,
            *writers(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER),
        ]
    )
    settings = settings_of(optimizer)
    last = checkpointer.resume(partial(check_against_config, cfg)) if resume else None
    if last is None:
        if resume:
            logger.info("--resume: %s holds no checkpoint yet, so this is a new run", cfg.OUTPUT_DIR)
        load_initial_weights(cfg, model, trust_pickle=trust_pickle)
    start = 0 if last is None else last + 1
    if 0 < start < cfg.SOLVER.MAX_ITER:
        settle(optimizer, scheduler, settings)
    trainer.set_data_loader(train_loader_from_config(cfg, trainer.seed, start, dicts, sets=sets))
    logger.info("training from iteration %d to %d, seed %d", start, cfg.SOLVER.MAX_ITER, trainer.seed)
    try:
        trainer.train(start, cfg.SOLVER.MAX_ITER)
    except EarlyStop as stop:
        done = stop.done
        decided_by_main(lambda: checkpointer.save("model_final", iteration=done - 1))
    return results


def _named(name: str, values: dict) -> dict[str, dict]:
    return {name: values} if values else {}
