"""Pretraining: builds everything a configuration names, trains on the shared engine, evaluates."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import Tensor, nn
from torchvision.transforms import v2

from ..engine.checkpoint import RunCheckpointer
from ..engine.determinism import make_deterministic
from ..engine.folder import locked
from ..engine.logs import start_log
from ..engine.processes import decided_by_main, enough_open_files
from ..engine.run import NEW_RUN, SET_SIZE, Run, RunOptions
from ..engine.sampler import seed_everything
from ..engine.trainer import PRECISIONS, choose_seed
from ..errors import UserError
from ..files import RESULTS_FILE, write_json
from ..inference.trunks import optimize_classifier
from ..resnext import Classifier, GhostBatchNorm2d, create_model
from ..weights import read_checkpoint
from .augmentation import CenterCrop, CifarTraining, ImageNetTraining, Normalize
from .data import ImageSet, TrainingLoader, evaluation_loader
from .evaluate import evaluate
from .initial_weights import check_against_config, load_initial_weights, metadata
from .knn import knn_error
from .shards import open_images
from .solver import build_optimizer

logger = logging.getLogger(__name__)

WARMUP_FACTOR = 0.001


class TrainingModel(nn.Module):
    """Classifier with its normalization and loss: a training batch in, {"loss": scalar} out.

    Where the trunk has no gradients the classifier stays in evaluation: the statistics of its norms are frozen too.
    """

    def __init__(
        self,
        classifier: Classifier,
        normalize: Normalize,
        label_smoothing: float,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.normalize, self.label_smoothing = classifier, normalize, label_smoothing
        self.mix = mix

    def train(self, mode: bool = True) -> TrainingModel:
        super().train(mode)
        if not any(p.requires_grad for p in self.classifier.stem.parameters()):
            self.classifier.eval()
        return self

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        images, labels, colors = (part.to(self.normalize.mean.device, non_blocking=True) for part in batch)
        images, targets = self.normalize(images, colors), labels
        if self.mix is not None:
            images, targets = self.mix(images, labels)
            labels = targets.argmax(1)
        logits = self.classifier(images)
        error = 100 * (1 - (logits.argmax(1) == labels).float().mean())
        get_event_storage().put_scalar("train/top1_error", error.item())
        return {"loss": F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)}


def build_classifier(cfg: CfgNode, num_classes: int) -> Classifier:
    """The classifier of MODEL, with random weights, on its device."""
    norm: Any = nn.BatchNorm2d
    if cfg.MODEL.NORM == "SyncBN" and comm.get_world_size() == 1:
        logger.warning("MODEL.NORM SyncBN: one process, so plain batch norm")
    elif cfg.MODEL.NORM == "SyncBN":
        norm = nn.SyncBatchNorm if cfg.MODEL.DEVICE.startswith("cuda") else NaiveSyncBatchNorm
    elif cfg.MODEL.NORM_IMAGES:
        norm = partial(GhostBatchNorm2d, images=cfg.MODEL.NORM_IMAGES)
    model = create_model(
        cfg.MODEL.NAME,
        num_classes,
        cfg.MODEL.FORM,
        cfg.MODEL.RESIDUAL,
        norm=norm,
        stem_out_channels=cfg.MODEL.STEM_OUT_CHANNELS,
        res2_out_channels=cfg.MODEL.RES2_OUT_CHANNELS,
        stride_in_1x1=cfg.MODEL.STRIDE_IN_1X1,
        fc_std=cfg.MODEL.FC_STD,
    )
    model.recompute = cfg.MODEL.RECOMPUTE
    if cfg.MODEL.GROUPED_CONV != "torch":  # our kernels are imported only where they are asked for
        from ..kernels.layer import use_grouped_conv

        use_grouped_conv(model, cfg.MODEL.GROUPED_CONV)
    return model.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last if cfg.MODEL.CHANNELS_LAST else None)


def check_compiler() -> None:
    """Raises UserError where torch.compile finds no C++ compiler, which it needs on GPUs too."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
    except ImportError:  # not public: another torch finds it out at the first step
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "MODEL.COMPILE True: torch.compile finds no C++ compiler; install g++, name one in the environment "
            "variable CXX, or set MODEL.COMPILE False"
        ) from None


def build_training_model(cfg: CfgNode, num_classes: int) -> TrainingModel:
    """:func:`build_classifier`, compiled where MODEL.COMPILE says so, with the normalization and loss of training."""
    model = build_classifier(cfg, num_classes)
    if cfg.MODEL.FREEZE_TRUNK:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    if cfg.MODEL.COMPILE:
        check_compiler()
        model.compile()
    normalize = Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD).to(cfg.MODEL.DEVICE)
    kinds = ((v2.MixUp, cfg.INPUT.MIXUP), (v2.CutMix, cfg.INPUT.CUTMIX))
    mixes = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
    return TrainingModel(model, normalize, cfg.SOLVER.LABEL_SMOOTHING, v2.RandomChoice(mixes) if mixes else None)


@dataclass(frozen=True)
class Plan:
    """Sizes and rates in iterations, worked out from epochs and the number of images."""

    iterations: int
    per_epoch: float
    batch_size: int  # of one forward pass in one process
    lr: float

    @classmethod
    def of(cls, cfg: CfgNode, images: int, processes: int) -> Plan:
        """Raises UserError where the batch cannot be divided."""
        solver = cfg.SOLVER
        parts = processes * solver.ACCUMULATE
        if solver.IMS_PER_BATCH % parts:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: not divisible by {processes} processes times "
                f"SOLVER.ACCUMULATE {solver.ACCUMULATE}"
            )
        batch, group = solver.IMS_PER_BATCH // parts, cfg.MODEL.NORM_IMAGES
        if group and batch > group and batch % group:
            raise UserError(
                f"MODEL.NORM_IMAGES {group}: does not divide the {batch} images of a pass; set it to 0 or change "
                "SOLVER.IMS_PER_BATCH"
            )
        per_epoch = images / solver.IMS_PER_BATCH
        lr = solver.BASE_LR * solver.IMS_PER_BATCH / solver.REFERENCE_BATCH
        return cls(math.ceil(solver.EPOCHS * per_epoch), per_epoch, batch, lr)

    def period(self, epochs: float) -> int:
        """``epochs`` in iterations, at least one."""
        return max(1, round(epochs * self.per_epoch))


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer, plan: Plan) -> LRMultiplier:
    """The learning rate for every iteration."""
    if cfg.SOLVER.SCHEDULE == "cosine":
        multiplier: Any = CosineParamScheduler(1, 0)
    else:
        steps = [round(epoch * plan.per_epoch) for epoch in cfg.SOLVER.STEPS]
        if len({0, *steps, plan.iterations}) < len(steps) + 2:
            raise UserError(
                f"SOLVER.STEPS {list(cfg.SOLVER.STEPS)}: fall together in a run of only {plan.iterations} iterations; "
                "lower SOLVER.IMS_PER_BATCH or set SOLVER.STEPS ()"
            )
        multiplier = MultiStepParamScheduler(
            [cfg.SOLVER.GAMMA**i for i in range(len(steps) + 1)], milestones=steps, num_updates=plan.iterations
        )
    if cfg.SOLVER.WARMUP_EPOCHS:
        length = min(1.0, cfg.SOLVER.WARMUP_EPOCHS / cfg.SOLVER.EPOCHS)
        multiplier = WarmupParamScheduler(multiplier, WARMUP_FACTOR, length, "linear")
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=plan.iterations)


def run_evaluation(cfg: CfgNode, model: nn.Module, normalize: Normalize, classes: Sequence[str]) -> dict[str, float]:
    """Evaluate on DATASETS.TEST as TEST says, over all processes."""
    image_set, place = open_images(cfg.DATASETS.TEST, classes, folder=cfg.OUTPUT_DIR), _place(cfg)
    if cfg.TEST.DENSE_SIZES:  # whole images differ in shape: one at a time
        whole = [CenterCrop(size, 0, cfg.INPUT.INTERPOLATION) for size in cfg.TEST.DENSE_SIZES]
        loaders = [evaluation_loader(image_set, transform, 1, **place) for transform in whole]
    else:
        transform = CenterCrop(cfg.TEST.SHORT_SIDE, cfg.TEST.CROP_SIZE, cfg.INPUT.INTERPOLATION)
        loaders = [evaluation_loader(image_set, transform, cfg.TEST.BATCH_SIZE, **place)]
    if comm.get_world_size() > 1:  # every process evaluates with the saved batch-norm statistics: the first's
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    model, autocast_dtype = _as_evaluated(cfg, model, normalize)
    of_test = np.unique(image_set.labels).tolist()
    return evaluate(
        model,
        normalize,
        loaders,
        flip=bool(cfg.TEST.DENSE_SIZES),
        among=of_test if cfg.TEST.AMONG == "test" else None,
        also_among=of_test if cfg.TEST.AMONG == "both" else None,
        autocast_dtype=autocast_dtype,
    )


def _place(cfg: CfgNode) -> dict[str, int]:
    """What :func:`evaluation_loader` needs to give every process its share."""
    return {"workers": cfg.DATALOADER.NUM_WORKERS, "rank": comm.get_rank(), "world_size": comm.get_world_size()}


def run_knn(cfg: CfgNode, model: nn.Module, normalize: Normalize, classes: Sequence[str]) -> dict[str, float]:
    """{"knn_top1_error"} of DATASETS.TEST by the features of DATASETS.TRAIN, {} without TEST.KNN."""
    if not cfg.TEST.KNN:
        return {}
    transform = CenterCrop(cfg.TEST.SHORT_SIDE, cfg.TEST.CROP_SIZE, cfg.INPUT.INTERPOLATION)
    known, test = (
        evaluation_loader(
            open_images(folder, classes, folder=cfg.OUTPUT_DIR), transform, cfg.TEST.BATCH_SIZE, **_place(cfg)
        )
        for folder in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    how = {"neighbors": cfg.TEST.KNN, "temperature": cfg.TEST.KNN_TEMPERATURE}
    return {"knn_top1_error": knn_error(model, normalize, known, test, **how)}


def _as_evaluated(cfg: CfgNode, model: nn.Module, normalize: Normalize) -> tuple[nn.Module, torch.dtype | None]:
    """The network that evaluation runs, as TEST.DTYPE says, and the type to autocast to."""
    if cfg.TEST.DTYPE == "off":
        return model, PRECISIONS[cfg.SOLVER.PRECISION]
    examples = _examples(cfg, normalize) if cfg.TEST.DTYPE == "int8" else None
    return optimize_classifier(model, cfg.TEST.DTYPE, backend=cfg.TEST.BACKEND, calibration=examples), None


def _examples(cfg: CfgNode, normalize: Normalize, number: int = 256) -> Iterator[Tensor]:
    """About ``number`` images spread over DATASETS.TRAIN, as testing sees them; the same in every process."""
    image_set = open_images(cfg.DATASETS.TRAIN, folder=cfg.OUTPUT_DIR)
    step = max(1, len(image_set) // number)
    transform = CenterCrop(cfg.TEST.SHORT_SIDE, cfg.TEST.CROP_SIZE, cfg.INPUT.INTERPOLATION)
    workers = cfg.DATALOADER.NUM_WORKERS
    for images, _ in evaluation_loader(image_set, transform, 16, workers=workers, world_size=step):
        yield normalize(images.to(cfg.MODEL.DEVICE))


def run(cfg: CfgNode, options: RunOptions = NEW_RUN) -> dict[str, float]:
    """One process of a run: train, or only evaluate, as the options say."""
    enough_open_files(cfg.DATALOADER.NUM_WORKERS, 2)  # its batches are few tensors
    return evaluate_only(cfg, options) if options.eval_only else train(cfg, options)


def evaluate_only(cfg: CfgNode, options: RunOptions) -> dict[str, float]:
    """Evaluate MODEL.WEIGHTS, to resume the newest checkpoint of OUTPUT_DIR, and write ``results.json``.

    Raises:
        UserError: no weights, or they do not fit.
    """
    newest = options.resume
    if not (newest or cfg.MODEL.WEIGHTS):
        raise UserError("--eval-only evaluates MODEL.WEIGHTS, which is empty: add MODEL.WEIGHTS FILE")
    start_log(cfg.OUTPUT_DIR)
    weights = cfg.MODEL.WEIGHTS
    if newest:
        weights, _ = RunCheckpointer(nn.Module(), cfg.OUTPUT_DIR, {}).newest_whole()
        if weights is None:
            raise UserError(f"{cfg.OUTPUT_DIR} holds no checkpoint: give the weights to evaluate, MODEL.WEIGHTS FILE")
    checkpoint = read_checkpoint(weights, trust_pickle=options.trust_pickle and not newest)
    # Published weights name their classes in words, or not at all: their outputs follow ImageNet's sorted folders.
    names = checkpoint.metadata.get("class_names") if "source" not in checkpoint.metadata else None
    classes = names or open_images(cfg.DATASETS.TRAIN, folder=cfg.OUTPUT_DIR).classes
    model = build_classifier(cfg, len(classes))
    own, missing = metadata(cfg, model, classes), cfg.MODEL.ALLOW_MISSING
    load_initial_weights(model, checkpoint, own, allow_missing=missing, new_head=False)
    normalize = Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD).to(cfg.MODEL.DEVICE)
    results = run_evaluation(cfg, model, normalize, classes)
    return _report(cfg.OUTPUT_DIR, model, results | run_knn(cfg, model, normalize, classes))


def train(cfg: CfgNode, options: RunOptions = NEW_RUN) -> dict[str, float]:
    """Train as ``cfg`` says, in every process of the run.

    Writes into OUTPUT_DIR: ``config.yaml``, ``log.txt``, ``metrics.json``, TensorBoard events, checkpoints
    (``model_final.pth`` last, ``model_best.pth`` by top-1 error), ``evaluations.jsonl`` and ``results.json``.

    Returns:
        {"top1_error", "top5_error"} in percent, of the averaged weights where SOLVER.EMA_DECAY is set.
    """
    make_deterministic(cfg.DETERMINISTIC, cfg.SEED)
    torch.backends.cudnn.benchmark = not cfg.DETERMINISTIC  # images have one size, so searching pays
    with locked(cfg.OUTPUT_DIR):
        return _train(cfg, options)


def _train(cfg: CfgNode, options: RunOptions) -> dict[str, float]:
    start_log(cfg.OUTPUT_DIR)
    seed = choose_seed(cfg.SEED)
    seed_everything((seed,))
    processes = comm.get_world_size()
    image_set = open_images(cfg.DATASETS.TRAIN, window=cfg.DATALOADER.SHUFFLE_WINDOW, folder=cfg.OUTPUT_DIR)
    open_images(
        cfg.DATASETS.TEST, image_set.classes, folder=cfg.OUTPUT_DIR
    )  # a mistake there is found now, and not after an epoch
    plan = Plan.of(cfg, len(image_set), processes)
    logger.info(
        "%d images of %d classes; %d iterations of %d images (%d processes x %d parts x %d); learning rate %g "
        "(SOLVER.BASE_LR %g for a batch of %d)",
        *(len(image_set), len(image_set.classes), plan.iterations, cfg.SOLVER.IMS_PER_BATCH, processes),
        *(cfg.SOLVER.ACCUMULATE, plan.batch_size, plan.lr, cfg.SOLVER.BASE_LR, cfg.SOLVER.REFERENCE_BATCH),
    )
    training_model = build_training_model(cfg, len(image_set.classes))
    model, normalize = training_model.classifier, training_model.normalize
    own = metadata(cfg, model, image_set.classes)
    optimizer = build_optimizer(cfg, model, plan.lr)
    run = Run(
        model,
        optimizer,
        build_scheduler(cfg, optimizer, plan),
        losses=training_model,
        folder=cfg.OUTPUT_DIR,
        metadata={**own, SET_SIZE: len(image_set)},
        iterations=plan.iterations,
        seed=seed,
        given_seed=cfg.SEED >= 0,
        precision=cfg.SOLVER.PRECISION,
        accumulate=cfg.SOLVER.ACCUMULATE,
        ema_decay=cfg.SOLVER.EMA_DECAY,
        batch=cfg.SOLVER.IMS_PER_BATCH,
        config=cfg.dump(),
        checkpoint_period=plan.period(cfg.SOLVER.CHECKPOINT_PERIOD),
        keep_checkpoints=cfg.SOLVER.KEEP_CHECKPOINTS,
        tracker=cfg.TRACKER,
    )

    def evaluate(model: nn.Module, done: int) -> dict[str, float]:
        return {**run_evaluation(cfg, model, normalize, image_set.classes), "epoch": done / plan.per_epoch}

    run.evaluate_with(
        evaluate,
        plan.period(cfg.TEST.EVAL_PERIOD),
        metric="top1_error",
        mode="min",
        describe=lambda results: {"top1_error": results["top1_error"]},
        patience=cfg.TEST.PATIENCE,
    )

    def load() -> None:
        if cfg.MODEL.WEIGHTS:
            branch = cfg.MODEL.WEIGHTS_BRANCH
            found = read_checkpoint(cfg.MODEL.WEIGHTS, trust_pickle=options.trust_pickle, branch=branch)
            new_head = True if cfg.MODEL.FREEZE_TRUNK else None  # it is what the probe trains
            missing = cfg.MODEL.ALLOW_MISSING
            load_initial_weights(model, found, own, allow_missing=missing, new_head=new_head, classes=image_set.classes)

    start = run.begin(
        resume=options.resume,
        check=partial(check_against_config, own, classes=image_set.classes),
        load_initial_weights=load,
    )
    place = {"rank": comm.get_rank(), "world_size": processes}
    data = training_loader(cfg, image_set, plan.batch_size, run.trainer.seed, start, **place)
    results = run.train(data, start) | run_knn(cfg, run.evaluated, normalize, image_set.classes)
    return _report(cfg.OUTPUT_DIR, model, {key: value for key, value in results.items() if key != "epoch"})


def training_loader(
    cfg: CfgNode, image_set: ImageSet, batch_size: int, seed: int, start_iteration: int, *, rank: int, world_size: int
) -> TrainingLoader:
    """The training batches of process ``rank``, after ``start_iteration`` optimizer steps."""
    return TrainingLoader(
        image_set,
        _training_transform(cfg),
        batch_size,
        seed=seed,
        workers=cfg.DATALOADER.NUM_WORKERS,
        rank=rank,
        world_size=world_size,
        start_batch=start_iteration * cfg.SOLVER.ACCUMULATE,
    )


def _training_transform(cfg: CfgNode) -> ImageNetTraining | CifarTraining:
    mean = [255 * value for value in cfg.INPUT.MEAN]
    if cfg.INPUT.AUGMENTATION == "cifar":
        fill = [round(value) for value in mean] if cfg.INPUT.PADDING == "mean" else (0, 0, 0)
        return CifarTraining(cfg.INPUT.CROP_SIZE, cfg.INPUT.FLIP, fill=fill)
    return ImageNetTraining(
        cfg.INPUT.CROP_SIZE,
        cfg.INPUT.AREA,
        cfg.INPUT.FLIP,
        cfg.INPUT.COLOR_JITTER,
        cfg.INPUT.LIGHTING,
        aspect=cfg.INPUT.ASPECT,
        interpolation=cfg.INPUT.INTERPOLATION,
        policy=cfg.INPUT.POLICY,
        erasing=cfg.INPUT.ERASING,
        fill=mean,
    )


def _report(folder: str, model: Classifier, results: dict[str, float]) -> dict[str, float]:
    logger.info("top-1 error %.2f%%, top-5 error %.2f%%", results["top1_error"], results["top5_error"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    path = os.path.join(folder, RESULTS_FILE)
    decided_by_main(lambda: write_json(path, {**results, "parameters": parameters}))
    return results
