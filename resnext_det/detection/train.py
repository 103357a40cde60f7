"""Train, resume and evaluate a detector: the whole of ``tools/train_net.py``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from torch import nn

from ..annotations.dataset import Dataset
from ..artifacts.about import is_artifact
from ..artifacts.running import ArtifactPredictor
from ..engine.averaging import average_of
from ..engine.checkpoint import RunCheckpointer
from ..engine.config import save_config
from ..engine.determinism import make_deterministic
from ..engine.folder import locked
from ..engine.hooks import PreciseBatchNorm
from ..engine.logs import start_log
from ..engine.processes import enough_open_files
from ..engine.run import NEW_RUN, SET_SIZE, Run, RunOptions
from ..engine.sampler import seed_everything
from ..engine.trainer import choose_seed
from ..errors import UserError
from ..weights import Reader, ReadOnce, read_checkpoint
from .channels import with_statistics
from .class_count import class_count_from_config
from .config_check import check_config
from .data.checked_sets import check_sets_from_config
from .data.loaders import known_sets, register_sets, train_dicts_from_config, train_loader_from_config
from .evaluate import check_metric, evaluate_model, in_order_of_model, thresholds_of, validation_loss
from .export.artifact import evaluate_artifact
from .initial_weights import (
    apply_preset,
    architecture,
    check_against_config,
    class_names_of,
    detector_names,
    load_initial_weights,
    weights_of,
)
from .solver import precision_of, resolve_schedule

logger = logging.getLogger(__name__)


def run(cfg: CfgNode, options: RunOptions = NEW_RUN) -> dict[str, dict]:
    """One process of a run: evaluate MODEL.WEIGHTS, or train and then evaluate.

    Returns:
        The last evaluation, ``{"bbox": {"AP": ..., "AP50": ...}}``, or by set where DATASETS.TEST has several; it is
        also in ``OUTPUT_DIR/results.json``.
    """
    odd = check_config(cfg, eval_only=options.eval_only, resume=options.resume, given=options.given)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.get("FLOAT32_PRECISION"):  # of detectron2's main branch
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    enough_open_files(cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
    make_deterministic(cfg.DETERMINISTIC, cfg.SEED)
    register_sets(cfg.DATASETS.REGISTER)
    if cfg.DATASETS.TEST or options.eval_only:
        known_sets(cfg.DATASETS.TEST, "TEST")
    if not options.eval_only:
        known_sets(cfg.DATASETS.TRAIN, "TRAIN")
    start_log(cfg.OUTPUT_DIR)
    for line in [*odd, *([] if cfg.DATASETS.TEST else ["DATASETS.TEST is empty: nothing is evaluated"])]:
        logger.warning("%s", line)
    read = ReadOnce(options.trust_pickle)
    newest, data = RunCheckpointer(nn.Module(), cfg.OUTPUT_DIR, {}).newest_whole() if options.resume else (None, None)
    cfg, found = _preset(cfg, read, newest), {} if data is None else data.get("metadata", {})
    del data  # its tensors
    _log_run(cfg.MODEL.DEVICE)
    sets = check_sets_from_config(cfg, training=not options.eval_only)
    if options.eval_only and not options.resume and is_artifact(cfg.MODEL.WEIGHTS):
        predictor = ArtifactPredictor(cfg.MODEL.WEIGHTS)
        return evaluate_artifact(cfg, predictor, predictor.about.class_names, sets=sets)
    if options.eval_only:
        if cfg.INPUT.CHANNELS != 3 and not found:
            found = weights_of(cfg, read).metadata
        cfg = with_statistics(cfg, found)
        save_config(cfg, cfg.OUTPUT_DIR)
        model = build_model(cfg)
        names = load_to_evaluate(cfg, model, newest=options.resume, read=read)
        return evaluate_model(cfg, model, sets=sets, class_names=names)
    if newest is not None and class_count_from_config(cfg) is not None:
        sets = _in_saved_order(sets, found, newest)
    with locked(cfg.OUTPUT_DIR):
        return _train(cfg, options, sets, found, read)


def _preset(cfg: CfgNode, read: Reader, newest: Path | None) -> CfgNode:
    """INPUT.PRESET applied: from the newest checkpoint of a resumed run, else from MODEL.WEIGHTS."""
    if newest is None or cfg.INPUT.PRESET != "auto":
        return apply_preset(cfg, read)
    weights, cfg = cfg.MODEL.WEIGHTS, cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(newest)
    cfg = apply_preset(cfg)
    cfg.MODEL.WEIGHTS = weights
    cfg.freeze()
    return cfg


def _in_saved_order(sets: dict[str, Dataset], found: Mapping[str, Any], where: Path) -> dict[str, Dataset]:
    """The sets with their classes in the order of the checkpoint that the run resumes."""
    try:
        return in_order_of_model(sets, detector_names(found), model=str(where))
    except UserError as error:
        raise UserError(
            f"{error}; without --resume, --init-from {where} keeps what the classes have in common"
        ) from None


def _log_run(device: str) -> None:
    devices = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    logger.info("torch %s on %s (%s), %d processes", torch.__version__, device, devices, comm.get_world_size())


def load_to_evaluate(cfg: CfgNode, model: nn.Module, *, newest: bool, read: Reader = read_checkpoint) -> list[str]:
    """Load trained weights: MODEL.WEIGHTS, or the newest checkpoint of OUTPUT_DIR (with EMA_DECAY its average).

    Returns:
        The names of the model's classes, as far as the file holds them.

    Raises:
        UserError: none there, or they do not fit.
    """
    if not newest:
        found = load_initial_weights(cfg, model, allow_new_heads=False, read=read)
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


def _precise_batch_norm(cfg: CfgNode, model: nn.Module, dicts: Sequence[dict]) -> list[HookBase]:
    if not cfg.TEST.PRECISE_BN.ENABLED:
        return []

    def data(seed: int, done: int) -> Iterable:
        return train_loader_from_config(cfg, seed, done, dicts)

    return [PreciseBatchNorm(model, data, cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.NUM_ITER)]


def _train(
    cfg: CfgNode, options: RunOptions, sets: dict[str, Dataset], found: Mapping[str, Any], read: ReadOnce
) -> dict[str, dict]:
    """``found``: metadata of the checkpoint that is resumed."""
    dicts = train_dicts_from_config(cfg, sets)
    cfg = with_statistics(cfg, found, dicts)
    config = cfg.dump()
    cfg = resolve_schedule(cfg, len(dicts))
    seed = choose_seed(cfg.SEED)
    seed_everything((seed,))  # of the weights that start anew
    names = class_names_of(cfg, sets)
    if cfg.DATASETS.TEST:
        proposals = cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"
        check_metric(cfg.TEST.BEST_METRIC, names, cfg.TEST.MAX_DETECTIONS, proposals=proposals)
    model = build_model(cfg)
    try:
        optimizer = build_optimizer(cfg, model)
        scheduler = build_lr_scheduler(cfg, optimizer)
    except ValueError as error:  # a name or number that torch or detectron2 refuses
        raise UserError(f"SOLVER: {error}") from error
    run = Run(
        model,
        optimizer,
        scheduler,
        folder=cfg.OUTPUT_DIR,
        # Enough to use the weights without any other file.
        metadata={**architecture(cfg), "class_names": names, SET_SIZE: len(dicts), "config": cfg.dump()},
        iterations=cfg.SOLVER.MAX_ITER,
        seed=seed,
        given_seed=cfg.SEED >= 0,
        precision=precision_of(cfg),
        accumulate=cfg.SOLVER.ACCUMULATE,
        ema_decay=cfg.SOLVER.EMA_DECAY,
        batch=cfg.SOLVER.IMS_PER_BATCH,
        config=config,
        before_saving=_precise_batch_norm(cfg, model, dicts),
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        keep_checkpoints=cfg.SOLVER.KEEP_CHECKPOINTS or None,
        tracker=cfg.TRACKER,
    )

    def evaluate(model: nn.Module, done: int) -> dict[str, dict]:
        loss = validation_loss(cfg, model, sets=sets) if cfg.TEST.VALIDATION_LOSS else {}
        return {**evaluate_model(cfg, model, sets=sets), **({"validation_loss": loss} if loss else {})}

    def describe(results: Mapping[str, Any]) -> dict[str, Any]:
        return thresholds_of(results, architecture(cfg)["class_names"])

    if cfg.DATASETS.TEST:
        run.evaluate_with(
            evaluate, cfg.TEST.EVAL_PERIOD, metric=cfg.TEST.BEST_METRIC, patience=cfg.TEST.PATIENCE, describe=describe
        )
    start = run.begin(
        resume=options.resume,
        check=partial(check_against_config, cfg, class_names=names),
        load_initial_weights=lambda: load_initial_weights(cfg, model, read=read, class_names=names),
    )
    read.forget()
    return run.train(train_loader_from_config(cfg, run.trainer.seed, start, dicts, sets=sets), start)
