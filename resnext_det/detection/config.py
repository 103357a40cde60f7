"""Keys that this package adds to detectron2's configuration; everything else is stock."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from ..engine.config import load_config
from ..images import MAX_MEGAPIXELS


def add_resnext_config(cfg: CfgNode) -> None:
    """Add this package's keys, each with its default, to a detectron2 config. Safe to call twice."""
    # Equal bits on the same machine, together with SEED; slower, see docs/training_safety.md.
    cfg.setdefault("DETERMINISTIC", False)
    # Numbers go to this experiment tracker too: mlflow, wandb, or empty for none.
    cfg.setdefault("TRACKER", "")
    # A user's own sets: a list of [name, annotations, image_root], COCO's JSON or labels of YOLO, VOC, CVAT or LabelMe
    # (docs/formats.md); the names go into DATASETS.TRAIN and TEST.
    cfg.DATASETS.setdefault("REGISTER", [])
    # The part of the training images that is used; which ones depends on their number alone, not on SEED.
    cfg.DATASETS.setdefault("FRACTION", 1.0)
    # How much of every COCO-format set is checked before a run: full (each image decoded), headers (each image's
    # size), json (only that the files are there), off; auto is full for up to 20,000 images and headers above.
    cfg.DATASETS.setdefault("CHECK", "auto")
    # Images that cannot be decoded whole: error, skip (in training only), or load what can be decoded.
    cfg.DATASETS.setdefault("BROKEN_IMAGES", "error")
    # Larger images are refused; the default is Pillow's limit against decompression bombs.
    cfg.DATASETS.setdefault("MAX_MEGAPIXELS", MAX_MEGAPIXELS)
    # Allow symbolic links that lead out of an image folder.
    cfg.DATASETS.setdefault("FOLLOW_LINKS", False)
    # Leave out a supercategory that stands among the categories without annotations, as Roboflow writes it.
    cfg.DATASETS.setdefault("DROP_UNUSED_ROOT", False)
    # Added to the variance in every batch norm. It belongs to the weights; 1e-5 is PyTorch's and detectron2's.
    cfg.MODEL.RESNETS.setdefault("NORM_EPS", 1e-5)
    # What MAX_ITER, STEPS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD count: iterations, or epochs of the training set.
    cfg.SOLVER.setdefault("UNIT", "iterations")
    # The batch that BASE_LR and the iterations are meant for; another IMS_PER_BATCH scales the rate linearly and the
    # iterations inversely, so that as many images are seen. 0 takes them as they stand.
    cfg.SOLVER.setdefault("REFERENCE_BATCH", 0)
    # Forward passes in one step, each of IMS_PER_BATCH / ACCUMULATE images, for small memories.
    cfg.SOLVER.setdefault("ACCUMULATE", 1)
    # fp32, bf16 or fp16; SOLVER.AMP.ENABLED, detectron2's key, is the same as fp16.
    cfg.SOLVER.setdefault("PRECISION", "fp32")
    # Decay of an average of the weights. The average is evaluated, and saved beside them; 0 keeps none.
    cfg.SOLVER.setdefault("EMA_DECAY", 0.0)
    # Checkpoints to keep besides the last and the best; 0 keeps all.
    cfg.SOLVER.setdefault("KEEP_CHECKPOINTS", 0)
    # The metric (AP, AP50, ...) by which model_best.pth is chosen and training stopped; empty for neither.
    cfg.TEST.setdefault("BEST_METRIC", "AP")
    # Stop after so many periodic evaluations without a better BEST_METRIC; 0 never stops.
    cfg.TEST.setdefault("PATIENCE", 0)
    # Compute the training losses on DATASETS.TEST with every evaluation of a training run.
    cfg.TEST.setdefault("VALIDATION_LOSS", False)
    # AP counts so many detections of a class in an image; COCO's is 100.
    cfg.TEST.setdefault("MAX_DETECTIONS", 100)
    # Sizes in place of COCO's small, medium and large: [name, from, to] each, square pixels.
    cfg.TEST.setdefault("AREAS", [])
    # VOC's evaluation rounds scores to three decimals and boxes to one, as detectron2's does.
    cfg.TEST.setdefault("VOC_ROUNDING", True)
    # Write an HTML page about every evaluation of boxes.
    cfg.TEST.setdefault("REPORT", True)
    # Images larger than so many pixels are cut into tiles of that side, in evaluation and prediction; 0 never cuts.
    cfg.TEST.setdefault("TILE", 0)
    # Overlap of neighboring tiles, as a part of TILE. Objects should be no larger.
    cfg.TEST.setdefault("TILE_OVERLAP", 0.2)
    # Parts of the detector, or prefixes of names: they start anew if MODEL.WEIGHTS lacks them or has another shape.
    cfg.MODEL.setdefault("ALLOW_MISSING", [])
    # The classes of MODEL.WEIGHTS in their order, where the file names none or others: training keeps what was learned
    # of each class that the data has by the same name.
    cfg.MODEL.setdefault("WEIGHTS_CLASSES", [])
    # The network of MODEL.WEIGHTS to take if the file holds several, such as encoder_q or teacher.
    cfg.MODEL.setdefault("WEIGHTS_BRANCH", "")
    # auto: FORMAT, PIXEL_MEAN, PIXEL_STD, STRIDE_IN_1X1 and NORM_EPS are those that belong to MODEL.WEIGHTS.
    # none: the ones of this config, which MODEL.WEIGHTS must not contradict.
    cfg.INPUT.setdefault("PRESET", "none")
    # Of the images. Other than 3: PNG and TIFF of 8 or 16 bits, read in full; MODEL.PIXEL_MEAN and PIXEL_STD of another
    # length are measured on the training set.
    cfg.INPUT.setdefault("CHANNELS", 3)
    # How the first convolution of RGB weights becomes one of other channels: mean or repeat.
    cfg.INPUT.setdefault("STEM", "mean")
    # INPUT.CROP is placed so that a random object lies in it as a whole.
    cfg.INPUT.CROP.setdefault("KEEP_OBJECT", False)
    # The share of images into which objects of another one are pasted, by their masks (Ghiasi et al. 2021).
    cfg.INPUT.setdefault("COPY_PASTE", 0.0)
    if "SCALE_JITTER" not in cfg.INPUT:
        cfg.INPUT.SCALE_JITTER = CfgNode()
        # Large-scale jitter in place of MIN_SIZE_TRAIN: an image fits into a square of this side times a random factor,
        # and is cut to the square. 0 is off; Ghiasi et al. have 1024.
        cfg.INPUT.SCALE_JITTER.SIZE = 0
        # The factors, between these two.
        cfg.INPUT.SCALE_JITTER.MIN = 0.1
        cfg.INPUT.SCALE_JITTER.MAX = 2.0
    if "COLOR" not in cfg.INPUT:
        cfg.INPUT.COLOR = CfgNode()
        # Random changes, 0 to below 1: 0.2 is 0.8 to 1.2 times.
        cfg.INPUT.COLOR.BRIGHTNESS = 0.0
        cfg.INPUT.COLOR.CONTRAST = 0.0
        cfg.INPUT.COLOR.SATURATION = 0.0
    # A factor for the classification loss of each class, in the order of the data; empty: 1 for all. For the C4 head.
    cfg.MODEL.ROI_HEADS.setdefault("CLASS_WEIGHTS", [])
    if "RESNEXT" not in cfg.MODEL:
        cfg.MODEL.RESNEXT = CfgNode()
        # Of block and stem: plain; v2 (full pre-activation), se (squeeze-and-excitation), d (deep stem): timm's words.
        cfg.MODEL.RESNEXT.KIND = "plain"
        # res5's first 1x1 and its shortcut run once on the map instead of once per region: equal results, less work.
        cfg.MODEL.RESNEXT.FAST_C4 = True
        # Regions that go through res5 together; it bounds the memory of inference.
        # On a CUDA GPU the optimized copy (INFERENCE_DTYPE not off) ignores it: it takes what a quarter of the free
        # memory holds, between 64 and 1024.
        cfg.MODEL.RESNEXT.C4_CHUNK_SIZE = 32
        # In inference, proposals of less objectness are left out; 0 takes all. `resnext-det regions` measures it.
        cfg.MODEL.RESNEXT.MIN_OBJECTNESS = 0.0
        # Compute each chunk again in the backward pass instead of keeping it: about a third of the memory.
        cfg.MODEL.RESNEXT.C4_RECOMPUTE = False
        # One more norm behind res5, of MODEL.RESNETS.NORM, as in the transfer benchmarks since MoCo (He et al. 2020):
        # it evens out the scales of backbones that were not trained with labels.
        cfg.MODEL.RESNEXT.RES5_EXTRA_NORM = False
        # How evaluation and prediction run: fp32, bf16, fp16 or int8 on an optimized copy of the model, auto for what
        # the hardware is good at (never int8), off for the layers of training as they are.
        cfg.MODEL.RESNEXT.INFERENCE_DTYPE = "auto"
        # What computes that copy's trunk and head: torch, openvino (CPUs), or auto: OpenVINO for int8, torch otherwise.
        cfg.MODEL.RESNEXT.INFERENCE_BACKEND = "auto"
        # The grouped 3x3 convolutions: torch, triton for our kernel on a GPU, or auto for what measures fastest there.
        # The kernel is unproven: its results were tested in Triton's interpreter, its speed on no GPU.
        cfg.MODEL.RESNEXT.GROUPED_CONV = "torch"


def setup(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The frozen config of a file and ``KEY VALUE`` pairs over it."""
    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.MODEL.DEVICE = "auto"  # detectron2's own is cuda, also where there is none
    load_config(cfg, config_file, opts)
    cfg.freeze()
    return cfg
