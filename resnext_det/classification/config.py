"""Every key of a pretraining configuration, with its default: the ImageNet recipe as the paper's Sec. 4 tells it.

What only the authors' code tells is in ``configs/imagenet/Base-paper.yaml``; docs/paper.md compares all three.
"""

from __future__ import annotations

from functools import reduce

from detectron2.config import CfgNode as CN

from ..engine.tracking import check_tracker
from ..engine.trainer import PRECISIONS
from ..errors import UserError
from ..inference import BACKENDS, CHOICES
from ..kernels import MODES
from .augmentation import ASPECTS, INTERPOLATIONS, POLICIES

SCHEDULES = ("step", "cosine")
AUGMENTATIONS = ("imagenet", "cifar")
NORMS = ("BN", "SyncBN")


def get_config() -> CN:
    """A fresh configuration. The names are detectron2's wherever it has one for the same thing."""
    cfg = CN()
    cfg.OUTPUT_DIR = "output/pretrain"
    cfg.SEED = 0  # of weights, data order and augmentation; negative for a random one
    cfg.DETERMINISTIC = False  # equal bits on the same machine; slower, see docs/training_safety.md
    cfg.TRACKER = ""  # numbers go to this experiment tracker too: mlflow, wandb, or empty for none
    cfg.VERSION = 2  # of detectron2's key names; load_config refuses other files

    cfg.MODEL = CN()
    cfg.MODEL.NAME = "resnext50_32x4d"  # see resnext_det.list_models()
    cfg.MODEL.WEIGHTS = ""  # start from, or evaluate: a file, torchvision://NAME or timm://NAME
    cfg.MODEL.ALLOW_MISSING = ()  # parts of the network, or prefixes of names, that MODEL.WEIGHTS may lack, such as fc
    cfg.MODEL.WEIGHTS_BRANCH = ""  # which network of MODEL.WEIGHTS, where the file holds several, such as encoder_q
    cfg.MODEL.FREEZE_TRUNK = False  # fc alone is trained, anew, on what the trunk of MODEL.WEIGHTS sees
    cfg.MODEL.DEVICE = "auto"  # cuda where there is a GPU, else cpu
    cfg.MODEL.FORM = "c"  # a, b or c of Fig. 3
    cfg.MODEL.GROUPED_CONV = "torch"  # torch; triton: our kernel (GPU); auto: what measures fastest, see docs/speed.md
    cfg.MODEL.RESIDUAL = True  # False: no shortcuts (Sec. 5.1)
    cfg.MODEL.NORM = "BN"  # BN: each process its own statistics, as in the paper; SyncBN: those of the whole batch
    cfg.MODEL.NORM_IMAGES = 0  # statistics of groups of so many images of a forward pass; 0: of all of them
    cfg.MODEL.FC_STD = 0.01  # of fc's first weights; 0: uniform in +-1 / sqrt(channels)
    cfg.MODEL.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RES2_OUT_CHANNELS = 256
    cfg.MODEL.STRIDE_IN_1X1 = False  # False: stride in the 3x3, as the paper
    cfg.MODEL.CHANNELS_LAST = False  # memory order; measure before switching
    cfg.MODEL.COMPILE = False  # torch.compile
    cfg.MODEL.RECOMPUTE = False  # run each block again for its gradient (activation checkpointing): less memory

    cfg.DATASETS = CN()
    cfg.DATASETS.TRAIN = "datasets/imagenet/train"  # one folder per class, or WebDataset shards with an index
    cfg.DATASETS.TEST = "datasets/imagenet/val"

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 4  # per process
    # Shards are shuffled, then stretches of this many images, so that few files are read at a time; 0: the whole set
    cfg.DATALOADER.SHUFFLE_WINDOW = 50000

    cfg.INPUT = CN()
    cfg.INPUT.AUGMENTATION = "imagenet"  # imagenet: AREA, COLOR_JITTER and LIGHTING apply; cifar: pad by 4 and crop
    cfg.INPUT.CROP_SIZE = 224
    cfg.INPUT.AREA = (0.08, 1.0)  # share of the image's area in a random crop
    cfg.INPUT.ASPECT = "log"  # ratio of a crop's sides: log-uniform as torchvision, or uniform, then swapped or not
    cfg.INPUT.INTERPOLATION = "bilinear"  # or bicubic; of testing too
    cfg.INPUT.PADDING = "zero"  # of cifar: zero (black) or mean, the color that normalization makes zero
    cfg.INPUT.FLIP = 0.5  # probability
    cfg.INPUT.COLOR_JITTER = 0.4
    cfg.INPUT.LIGHTING = 0.1
    cfg.INPUT.POLICY = "none"  # of torchvision: randaugment, trivialaugment or autoaugment
    cfg.INPUT.ERASING = 0.0  # probability that a random rectangle gets the mean color
    cfg.INPUT.MIXUP = 0.0  # alpha of Beta(alpha, alpha), the share of each of two mixed images; 0: none
    cfg.INPUT.CUTMIX = 0.0  # the same for pasted rectangles; with both, each batch has one of them
    cfg.INPUT.MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in [0, 1]
    cfg.INPUT.STD = (0.229, 0.224, 0.225)

    cfg.TEST = CN()
    cfg.TEST.SHORT_SIDE = 256
    cfg.TEST.CROP_SIZE = 224  # of the center
    cfg.TEST.DENSE_SIZES = ()  # short sides for multi-scale dense testing with flips (Table 5); empty: one center crop
    # Classes that compete: all of training's, or only those with test images (test); both gives both errors (Table 6)
    cfg.TEST.AMONG = "train"
    cfg.TEST.BATCH_SIZE = 100  # per process
    cfg.TEST.EVAL_PERIOD = 1.0  # epochs
    cfg.TEST.KNN = 0  # neighbors of a k-NN on the trunk's features, rated once at the end; 0: none
    cfg.TEST.KNN_TEMPERATURE = 0.07  # a neighbor's vote is exp(cosine / this)
    cfg.TEST.PATIENCE = 0  # evaluations in a row without a lower top-1 error that end the training; 0: none do
    # off: the layers of training in SOLVER.PRECISION. auto, fp32, bf16, fp16 or int8: an optimized copy, faster; int8
    # needs a CPU and OpenVINO, and measures its ranges on some images of training
    cfg.TEST.DTYPE = "off"
    cfg.TEST.BACKEND = "auto"  # of that copy: torch, openvino (CPUs), or auto: OpenVINO for int8, torch otherwise

    cfg.SOLVER = CN()
    cfg.SOLVER.EPOCHS = 100
    cfg.SOLVER.IMS_PER_BATCH = 256  # in one step, over all processes and accumulated parts
    cfg.SOLVER.REFERENCE_BATCH = 256  # the batch BASE_LR is meant for; another IMS_PER_BATCH scales it linearly
    cfg.SOLVER.OPTIMIZER = "sgd"  # or adamw, for which MOMENTUM and NESTEROV mean nothing
    cfg.SOLVER.CLIP_NORM = 0.0  # largest norm of the gradient of all weights; 0: no bound
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.SCHEDULE = "step"  # step: times GAMMA at STEPS; cosine: to 0
    cfg.SOLVER.STEPS = (30, 60, 90)  # epochs
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.WARMUP_EPOCHS = 0  # linear, from a thousandth
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.LABEL_SMOOTHING = 0.0
    cfg.SOLVER.EMA_DECAY = 0.0  # of an average of the weights, evaluated and saved beside them; 0: none
    cfg.SOLVER.ACCUMULATE = 1  # forward passes in one step
    cfg.SOLVER.PRECISION = "fp32"  # fp32, bf16 or fp16
    cfg.SOLVER.CHECKPOINT_PERIOD = 1.0  # epochs; 0.25 saves four times in each
    cfg.SOLVER.KEEP_CHECKPOINTS = 3  # newest; the last one stays as model_final.pth
    return cfg


def check_config(cfg: CN) -> None:
    """Refuse values that could only fail later.

    Raises:
        UserError: names the key and the fix.
    """
    check_tracker(cfg.TRACKER)
    _choice("SOLVER.SCHEDULE", cfg.SOLVER.SCHEDULE, SCHEDULES)
    _choice("SOLVER.PRECISION", cfg.SOLVER.PRECISION, tuple(PRECISIONS))
    _choice("INPUT.AUGMENTATION", cfg.INPUT.AUGMENTATION, AUGMENTATIONS)
    _choice("INPUT.ASPECT", cfg.INPUT.ASPECT, ASPECTS)
    _choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, tuple(INTERPOLATIONS))
    _choice("INPUT.PADDING", cfg.INPUT.PADDING, ("zero", "mean"))
    _choice("INPUT.POLICY", cfg.INPUT.POLICY, tuple(POLICIES))
    _choice("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, ("sgd", "adamw"))
    _choice("MODEL.GROUPED_CONV", cfg.MODEL.GROUPED_CONV, MODES)
    _choice("MODEL.NORM", cfg.MODEL.NORM, NORMS)
    _choice("TEST.DTYPE", cfg.TEST.DTYPE, CHOICES)
    _choice("TEST.BACKEND", cfg.TEST.BACKEND, BACKENDS)
    _choice("TEST.AMONG", cfg.TEST.AMONG, ("train", "test", "both"))
    for key in ("EPOCHS", "IMS_PER_BATCH", "REFERENCE_BATCH", "ACCUMULATE", "CHECKPOINT_PERIOD", "KEEP_CHECKPOINTS"):
        if not cfg.SOLVER[key] > 0:
            raise UserError(f"SOLVER.{key} {cfg.SOLVER[key]}: must be above 0")
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise UserError("SOLVER.NESTEROV True: needs a SOLVER.MOMENTUM above 0")
    smallest = {
        "INPUT.CROP_SIZE": 1, "TEST.SHORT_SIDE": 1, "TEST.BATCH_SIZE": 1, "TEST.CROP_SIZE": 0,
        "MODEL.STEM_OUT_CHANNELS": 1, "MODEL.RES2_OUT_CHANNELS": 1, "SOLVER.WARMUP_EPOCHS": 0, "INPUT.LIGHTING": 0,
        "MODEL.NORM_IMAGES": 0, "MODEL.FC_STD": 0, "INPUT.MIXUP": 0, "INPUT.CUTMIX": 0, "TEST.PATIENCE": 0,
        "TEST.KNN": 0,
        "SOLVER.CLIP_NORM": 0,
        "DATALOADER.NUM_WORKERS": 0, "DATALOADER.SHUFFLE_WINDOW": 0, "SOLVER.MOMENTUM": 0, "SOLVER.WEIGHT_DECAY": 0,
    }  # fmt: skip
    for key, least in smallest.items():
        value = reduce(getattr, key.split("."), cfg)
        if value < least:
            raise UserError(f"{key} {value}: must be at least {least}")
    if not all(0 <= share <= 1 for share in (cfg.SOLVER.LABEL_SMOOTHING, cfg.INPUT.FLIP, cfg.INPUT.ERASING)):
        raise UserError("SOLVER.LABEL_SMOOTHING, INPUT.FLIP and INPUT.ERASING: must be in [0, 1]")
    if cfg.MODEL.NORM_IMAGES and cfg.MODEL.NORM == "SyncBN":
        raise UserError("MODEL.NORM SyncBN: takes the statistics of all images; set MODEL.NORM_IMAGES 0")
    area = list(cfg.INPUT.AREA)
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise UserError(f"INPUT.AREA {area}: give the smallest and the largest share of the image, in (0, 1]")
    if not all(size > 0 for size in cfg.TEST.DENSE_SIZES):
        raise UserError(f"TEST.DENSE_SIZES {list(cfg.TEST.DENSE_SIZES)}: must be above 0")
    if not 0 <= cfg.INPUT.COLOR_JITTER < 1:
        raise UserError(f"INPUT.COLOR_JITTER {cfg.INPUT.COLOR_JITTER}: must be in [0, 1)")
    if not cfg.TEST.KNN_TEMPERATURE > 0:
        raise UserError(f"TEST.KNN_TEMPERATURE {cfg.TEST.KNN_TEMPERATURE}: must be above 0")
    if not cfg.TEST.EVAL_PERIOD > 0:
        raise UserError(f"TEST.EVAL_PERIOD {cfg.TEST.EVAL_PERIOD}: must be above 0")
    if cfg.MODEL.COMPILE and cfg.MODEL.RECOMPUTE:
        raise UserError("MODEL.COMPILE and MODEL.RECOMPUTE: torch.compile cannot trace the recomputation; choose one")
    if cfg.SOLVER.BASE_LR < 0:
        raise UserError(f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}: must be at least 0")
    if cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.EPOCHS:
        raise UserError(
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS}: not before the end, SOLVER.EPOCHS {cfg.SOLVER.EPOCHS}, "
            "so the learning rate would never be reached; lower it"
        )
    if cfg.SOLVER.SCHEDULE == "step":
        steps = list(cfg.SOLVER.STEPS)
        if steps != sorted(steps) or (steps and steps[-1] >= cfg.SOLVER.EPOCHS):
            raise UserError(f"SOLVER.STEPS {steps}: must rise and end before SOLVER.EPOCHS {cfg.SOLVER.EPOCHS}")
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise UserError(f"SOLVER.EMA_DECAY {cfg.SOLVER.EMA_DECAY}: must be in [0, 1)")
    if len(cfg.INPUT.MEAN) != 3 or len(cfg.INPUT.STD) != 3 or min(cfg.INPUT.STD) <= 0:
        raise UserError("INPUT.MEAN and INPUT.STD: give three numbers each (R, G, B), STD above 0")


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key} {value!r}: choose from {', '.join(allowed)}")
