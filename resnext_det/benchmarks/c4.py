"""The C4 detector and its head against stock detectron2's: inference, a training step, memory."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from .measure import Result, Setting, keep_nothing, not_run, optimized_copies, relative_error, result, timed


def detectors(
    device: str, quick: bool, *, norm: str = "FrozenBN", extra_norm: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Stock detectron2's ResNeXt-50 32x4d C4 (a small one when ``quick``) and ours, with the same weights.

    ``extra_norm`` adds one behind res5: ours by our key, stock's as the transfer benchmarks' own code does.
    """
    from detectron2.config import get_cfg
    from detectron2.layers import FrozenBatchNorm2d, get_norm
    from detectron2.modeling import build_model

    from ..detection.config import add_resnext_config

    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.MODEL.DEVICE = device
    keys = cfg.MODEL.RESNETS
    keys.NORM, cfg.MODEL.RESNEXT.RES5_EXTRA_NORM = norm, extra_norm
    keys.DEPTH, keys.NUM_GROUPS, keys.WIDTH_PER_GROUP, keys.STRIDE_IN_1X1 = 50, 32, 4, False
    if quick:
        keys.NUM_GROUPS, keys.RES2_OUT_CHANNELS = 8, 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50 if quick else 1000
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3  # random scores of few classes pass the threshold: there is output to compare
    models = []
    for backbone, heads in (
        ("build_resnet_backbone", "Res5ROIHeads"),
        ("build_resnext_backbone", "ResNeXtC4ROIHeads"),
    ):
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = backbone, heads
        torch.manual_seed(0)
        models.append(build_model(cfg).eval())
    stock, ours = models
    if extra_norm:
        stock.roi_heads.res5.add_module("norm", get_norm(norm, ours.roi_heads.res5.norm.num_features).to(device))
    for name, module in stock.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith(("conv3.norm", "shortcut.norm")):
            module.weight.fill_(0.5)  # random residual branches at full strength would overflow half precision
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def image_batch(quick: bool) -> list[dict[str, Tensor]]:
    height, width = (96, 128) if quick else (480, 640)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator)
    return [{"image": nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1) * 255}]


def watch_parts(model: nn.Module, setting: Setting, label: str) -> Callable[[], dict[str, float]]:
    """Clock backbone, proposals and head of every run from now on; returns what gives their medians but the first's."""
    seconds: dict[str, list[float]] = {}
    for name in ("backbone", "proposal_generator", "roi_heads"):
        module, runs = getattr(model, name), seconds.setdefault(f"{label} {name}", [])
        module.register_forward_pre_hook(lambda *_, r=runs: r.append(-setting.now()))
        module.register_forward_hook(lambda *_, r=runs: r.append(r.pop() + setting.now()))
    return lambda: {name: statistics.median(runs[1:]) for name, runs in seconds.items()}


@torch.no_grad()
def c4_inference(setting: Setting) -> Result:
    """A 480x640 image, or a batch of them, with 1000 proposals each: the whole model."""
    device, quick = setting.device, setting.quick
    stock, ours = detectors(device, quick)
    inputs = image_batch(quick) * max(1, setting.batch)
    fast = optimized_copies(ours, setting, inputs)

    models = {"stock fp32": stock, **{f"optimized {name}": model for name, model in fast.items()}}
    watched = [watch_parts(model, setting, name) for name, model in models.items()]
    detections = {}

    def run(name: str, model: nn.Module) -> None:
        detections[name] = model(inputs)[0]["instances"]

    def autocast():
        with torch.autocast(device, torch.bfloat16):
            return stock(inputs)

    functions = {name: lambda n=name, m=model: run(n, m) for name, model in models.items()}
    seconds = timed(functions, setting, 3)
    spent = {name: value for medians in watched for name, value in medians().items()}
    if setting.bf16:
        seconds |= timed({"stock bf16 autocast": autocast}, setting, 3)
    expected, output = detections["stock fp32"], detections["optimized fp32"]
    same = len(expected) == len(output)
    agreement = {
        "detections stock": len(expected),
        "detections fp32": len(output),
        "fp32 boxes, pixels": _largest(output.pred_boxes.tensor, expected.pred_boxes.tensor) if same else float("inf"),
        "fp32 scores": _largest(output.scores, expected.scores) if same else float("inf"),
    }
    images = stock.preprocess_image(inputs)
    x = images.tensor
    maps = stock.backbone(x)
    boxes = [p.proposal_boxes[:100] for p in stock.proposal_generator(images, maps)[0]]
    features = stock.roi_heads._shared_roi_transform([maps["res4"]], boxes).mean((2, 3))
    for name, model in fast.items():
        own = model.roi_heads.region_vectors([model.backbone(x)["res4"]], boxes)
        agreement[f"{name} region features, relative"] = relative_error(own, features)
    skipped = not_run(setting, fast, "stock bf16 autocast")
    return result(seconds, "stock fp32", agreement, parts=spent, **skipped)


def _largest(x: Tensor, y: Tensor) -> float:
    return (x - y).abs().max().item() if x.numel() else 0.0


def _training_heads(setting: Setting):
    """Heads, a leaf map, and one training step of a head: forward, a loss over all regions, backward."""
    from detectron2.structures import Boxes

    from ..detection.c4_head import ResNeXtC4ROIHeads

    def stocks_vectors(heads: nn.Module, features: Tensor, boxes: list[Boxes]) -> Tensor:
        return heads._shared_roi_transform([features], boxes).mean((2, 3))

    device = setting.device
    models = detectors(device, setting.quick, norm=setting.norm, extra_norm=setting.extra_norm)
    stock, ours = (model.roi_heads.train() for model in models)
    height, width, regions, channels = (6, 8, 16, 128) if setting.quick else (30, 40, setting.regions, 1024)
    torch.manual_seed(2)
    features = torch.randn(2, channels, height, width, device=device).relu_().requires_grad_()
    corner = torch.rand(2, regions, 2, device=device) * torch.tensor([width, height], device=device) * 12
    extent = torch.rand(2, regions, 2, device=device) * torch.tensor([width, height], device=device) * 8 + 8
    boxes = [Boxes(b) for b in torch.cat([corner, corner + extent], 2)]

    def step(heads: nn.Module, bf16: bool = False) -> Tensor:
        heads.zero_grad()
        features.grad = None
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            of_ours = isinstance(heads, ResNeXtC4ROIHeads)
            y = heads.region_vectors([features], boxes) if of_ours else stocks_vectors(heads, features, boxes)
            loss = y.float().square().mean()
        loss.backward()
        return loss.detach()

    return stock, ours, features, step


def c4_train(setting: Setting) -> Result:
    """The head's training step: 2 images of 480x640 with 512 regions each, or ``setting.regions``."""
    stock, ours, features, step = _training_heads(setting)

    def recomputing(bf16: bool) -> Tensor:
        ours.recompute = True
        loss = step(ours, bf16)
        ours.recompute = False
        return loss

    functions = {
        "stock fp32": lambda: step(stock),
        "ours fp32": lambda: step(ours),
        "ours fp32 recompute": lambda: recomputing(False),
    }
    in_bf16 = {
        "stock bf16 autocast": lambda: step(stock, True),
        "ours bf16 autocast": lambda: step(ours, True),
        "ours bf16 autocast recompute": lambda: recomputing(True),
    }
    functions |= in_bf16 if setting.bf16 else {}
    seconds = timed(functions, setting, 3)
    expected = step(stock).item()
    gradient, weight = features.grad.clone(), stock.res5[0].conv1.weight.grad.clone()
    agreement = {}
    for name in (name for name in functions if name.startswith("ours")):
        loss = functions[name]().item()
        agreement[f"{name} loss, relative"] = abs(loss / expected - 1)
        agreement[f"{name} map gradient, relative"] = relative_error(features.grad, gradient)
        agreement[f"{name} conv1 gradient, relative"] = relative_error(ours.res5[0].conv1.weight.grad, weight)
    bits = []
    for _ in range(2):
        step(ours)
        bits.append([features.grad.clone(), *(p.grad.clone() for p in ours.res5.parameters())])
    agreement["two runs have equal bits"] = float(all(torch.equal(a, b) for a, b in zip(*bits, strict=True)))
    return result(seconds, "stock fp32", agreement, **not_run(setting, (), *in_bf16))


def c4_memory(setting: Setting) -> Result:
    """Peak memory of the same training step over what is held before it; on CPUs each side in a process of its own."""
    variants = {
        "stock fp32": (0, False, False),
        "ours fp32": (1, False, False),
        "ours fp32 recompute": (1, True, False),
    }
    if setting.bf16:
        variants["ours bf16 autocast recompute"] = (1, True, True)
    setting = replace(setting, keep=keep_nothing)
    context = torch.multiprocessing.get_context("spawn")
    gigabytes = {}
    for name, arguments in variants.items():
        if setting.device == "cuda":
            gigabytes[name] = _peak_memory(setting, 0, *arguments)
            continue
        with context.Pool(1) as processes:
            gigabytes[name] = processes.apply(_peak_memory, (setting, torch.get_num_threads(), *arguments))
    peer = gigabytes["stock fp32"]
    shares = {f"{name} / stock fp32": value / max(peer, 1e-9) for name, value in gigabytes.items() if "ours" in name}
    skipped = not_run(setting, (), "ours bf16 autocast recompute")
    return {"ratios": shares, "agreement": {}, "gigabytes": gigabytes, **skipped}


def _peak_memory(setting: Setting, threads: int, side: int, recompute: bool, bf16: bool) -> float:
    if threads:
        torch.set_num_threads(threads)
    *heads, _, step = _training_heads(setting)
    if recompute:
        heads[side].recompute = True
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(heads[side], bf16)
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(heads[side], bf16)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
