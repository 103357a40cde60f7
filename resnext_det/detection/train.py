"""Train, resume and evaluate a detector: the whole of ``tools/train_net.py``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import hooks
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm

from ..engine.checkpoint import RunCheckpointer
from ..engine.cli import parse_training_arguments
from ..engine.config import load_config
from ..engine.launch import launch
from ..engine.trainer import Trainer, choose_seed, standard_hooks, start_log, weak, wrap_distributed, writers
from ..errors import UserError
from .checked_sets import check_sets_from_config
from .config import add_resnext_config
from .data import known_sets, register_sets, train_loader_from_config
from .evaluate import evaluate_model
from .initial_weights import architecture, load_initial_weights

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: parse the flags, read the config, run in as many processes as asked for."""
    args = parse_training_arguments("Train and evaluate a detector.", argv)
    cfg = setup(args.config_file, args.opts)
    launch(
        run,
        (cfg, args.resume, args.eval_only),
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
        device=cfg.MODEL.DEVICE,
    )


def setup(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The frozen config of a file and ``KEY VALUE`` pairs over it."""
    cfg = get_cfg()
    add_resnext_config(cfg)
    load_config(cfg, config_file, opts)
    cfg.freeze()
    return cfg


def run(cfg: CfgNode, resume: bool, eval_only: bool) -> dict[str, dict]:
    """One process of a run: evaluate MODEL.WEIGHTS, or train and then evaluate.

    Returns:
        The last evaluation, ``{"bbox": {"AP": ..., "AP50": ...}}``, or by set where DATASETS.TEST has several; it is
        also in ``OUTPUT_DIR/results.json``.
    """
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TEST, "TEST")
    if not eval_only:
        known_sets(cfg.DATASETS.TRAIN, "TRAIN")
    elif not cfg.MODEL.WEIGHTS and not resume:
        raise UserError("--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume for the newest of OUTPUT_DIR")
    start_log(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        _log_run(cfg)
    check_sets_from_config(cfg, training=not eval_only)
    if eval_only:
        return _evaluate_only(cfg, resume)
    return _train(cfg, resume)


def _log_run(cfg: CfgNode) -> None:
    devices = (
        torch.cuda.get_device_name() if cfg.MODEL.DEVICE.startswith("cuda") else f"{torch.get_num_threads()} threads"
    )
    logger.info(
        "torch %s on %s (%s), %d processes", torch.__version__, cfg.MODEL.DEVICE, devices, comm.get_world_size()
    )
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    path.write_text(cfg.dump(), encoding="utf-8")
    logger.info("the whole config is in %s", path)


def _evaluate_only(cfg: CfgNode, resume: bool) -> dict[str, dict]:
    model = build_model(cfg)
    if resume:
        if RunCheckpointer(model, cfg.OUTPUT_DIR, {}).resume() is None:
            raise UserError(f"--eval-only --resume: {cfg.OUTPUT_DIR} holds no checkpoint; give MODEL.WEIGHTS FILE")
    else:
        load_initial_weights(cfg, model, allow_new_heads=False)
    return evaluate_model(cfg, model)


def _train(cfg: CfgNode, resume: bool) -> dict[str, dict]:
    seed = choose_seed(cfg.SEED)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    wrapped = wrap_distributed(model)
    trainer = Trainer(wrapped, optimizer, seed=seed, precision="fp16" if cfg.SOLVER.AMP.ENABLED else "fp32")
    checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, architecture(cfg), trainer=weak(trainer))
    results: dict[str, dict] = {}

    def evaluate() -> dict[str, dict]:
        results.clear()
        results.update(evaluate_model(cfg, model))
        model.train()
        return results

    trainer.register_hooks(
        [
            *standard_hooks(optimizer, scheduler, checkpointer, checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
            *writers(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER),
        ]
    )
    last = checkpointer.resume() if resume else None
    if last is None:
        if resume:
            logger.info("--resume: %s holds no checkpoint yet, so this is a new run", cfg.OUTPUT_DIR)
        load_initial_weights(cfg, model)
    start = 0 if last is None else last + 1
    trainer.set_data_loader(train_loader_from_config(cfg, trainer.seed, start))
    logger.info("training from iteration %d to %d, seed %d", start, cfg.SOLVER.MAX_ITER, trainer.seed)
    trainer.train(start, cfg.SOLVER.MAX_ITER)
    return results
