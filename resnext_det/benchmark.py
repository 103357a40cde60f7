"""Speed, agreement and memory against the peers: stock detectron2, torchvision, torchvision's RoIAlign.

Both sides have the same weights and the same input and run in one process, turn by turn, after one turn to warm up;
figures are medians. Times are device events on CUDA; on CPUs wall clock, or processor time where a machine is shared
with others and the wall clock tells of them. Weights are random.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .benchmarks.evaluate import benchmark_evaluate
from .benchmarks.input import input_pipeline
from .errors import UserError
from .resnext import create_model

Result = dict[str, dict]


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        device: cpu or cuda.
        quick: a small problem, which shows that everything runs and measures nothing.
        clock: of CPUs: "wall", or "cpu" for the processor time of all threads of this process.
        turns: measured turns; 0 takes each benchmark's own number.
        regions: of each picture in training, where 512 would take too long.
    """

    device: str = "cpu"
    quick: bool = False
    clock: str = "wall"
    turns: int = 0
    regions: int = 512

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    @property
    def bf16(self) -> bool:
        """Whether bf16 is worth its time here; emulated, it takes minutes and tells nothing."""
        from .detection.optimize import multiplies_bf16

        return self.quick or multiplies_bf16(self.device)


def machine(threads: int, device: str) -> dict[str, str | int | float]:
    """Set the number of threads and describe hardware and versions."""
    import torchvision

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines())
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        features = [
            f
            for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
            if f in lines.get("flags", "").split()
        ]
        processor = " ".join([lines.get("model name", processor), *features])
    except OSError:
        pass
    return {
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "threads": torch.get_num_threads(),
        "load average before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def timed(functions: dict[str, Callable[[], object]], setting: Setting, turns: int) -> dict[str, float]:
    """Median seconds of each function over ``turns``, run turn by turn after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range((1 if setting.quick else setting.turns or turns) + 1):
        for name, function in functions.items():
            if setting.device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                function()
                end.record()
                end.synchronize()
                passed = start.elapsed_time(end) / 1000
            else:
                begin = setting.now()
                function()
                passed = setting.now() - begin
            if turn:
                seconds[name].append(passed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def result(seconds: dict[str, float], peer: str, agreement: dict[str, float], **more: dict) -> Result:
    """Ratios over the peer; a ratio above 1 is faster than it."""
    return {
        "ratios": {name: seconds[peer] / value for name, value in seconds.items() if name != peer},
        "agreement": agreement,
        "seconds": seconds,
        **more,
    }


def report(what: str, outcome: Result) -> str:
    """The result as lines of text."""
    lines = [f"{what}: " + ", ".join(f"{k} {v}" for k, v in outcome["machine"].items())]
    for section, values in outcome.items():
        if section != "machine":
            lines += [section] + [f"  {k:44s} {v if isinstance(v, str) else f'{v:12.4g}'}" for k, v in values.items()]
    return "\n".join(lines)


def relative_error(x: Tensor, reference: Tensor) -> float:
    return ((x.float() - reference.float()).norm() / reference.float().norm()).item()


def detectors(device: str, quick: bool) -> tuple[nn.Module, nn.Module]:
    """Stock detectron2's ResNeXt-50 32x4d C4 (a small one when ``quick``) and ours, with the same weights."""
    from detectron2.config import get_cfg
    from detectron2.layers import FrozenBatchNorm2d
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    keys = cfg.MODEL.RESNETS
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
    for name, module in stock.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith(("conv3.norm", "shortcut.norm")):
            module.weight.fill_(0.5)  # random residual branches at full strength would overflow half precision
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def picture(quick: bool) -> list[dict[str, Tensor]]:
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


def _not_run(setting: Setting, *names: str) -> dict[str, dict[str, str]]:
    """The result's section on what bf16 would have needed; empty where the hardware has it."""
    reason = "not run: this hardware does not multiply bf16"
    return {} if setting.bf16 else {"not run": dict.fromkeys(names, reason)}


@torch.no_grad()
def c4_inference(setting: Setting) -> Result:
    """One 480x640 picture, 1000 proposals, the whole model."""
    from .detection.optimize import optimize_for_inference

    device, quick = setting.device, setting.quick
    stock, ours = detectors(device, quick)
    inputs = picture(quick)
    fast = {name: optimize_for_inference(ours, name) for name in (("fp32", "bf16") if setting.bf16 else ("fp32",))}

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
        own = model.roi_heads._shared_roi_transform([model.backbone(x)["res4"]], boxes).mean((2, 3))
        agreement[f"{name} region features, relative"] = relative_error(own, features)
    skipped = _not_run(setting, "stock bf16 autocast", "optimized bf16")
    return result(seconds, "stock fp32", agreement, parts=spent, **skipped)


def _largest(x: Tensor, y: Tensor) -> float:
    return (x - y).abs().max().item() if x.numel() else 0.0


def _training_heads(setting: Setting):
    """Heads, a leaf map, and one training step of a head: forward, a loss over all regions, backward."""
    from detectron2.structures import Boxes

    device = setting.device
    stock, ours = (model.roi_heads.train() for model in detectors(device, setting.quick))
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
            y = heads._shared_roi_transform([features], boxes).mean((2, 3))
            loss = y.float().square().mean()
        loss.backward()
        return loss.detach()

    return stock, ours, features, step


def c4_train(setting: Setting) -> Result:
    """The head's training step: 2 pictures of 480x640 with 512 regions each, or ``setting.regions``."""
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
    return result(seconds, "stock fp32", agreement, **_not_run(setting, *in_bf16))


def c4_memory(setting: Setting) -> Result:
    """Peak memory of the same training step over what is held before it; on CPUs each side in a process of its own."""
    variants = {
        "stock fp32": (0, False, False),
        "ours fp32": (1, False, False),
        "ours fp32 recompute": (1, True, False),
    }
    if setting.bf16:
        variants["ours bf16 autocast recompute"] = (1, True, True)
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
    skipped = _not_run(setting, "ours bf16 autocast recompute")
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


@torch.no_grad()
def classify(setting: Setting) -> Result:
    """ResNeXt-50 32x4d, batch 16 at 224x224, against torchvision's model with the same weights."""
    import torchvision

    from .detection.optimize import optimize_for_inference

    device, quick = setting.device, setting.quick
    torch.manual_seed(0)
    peer = torchvision.models.resnext50_32x4d().to(device).eval()
    ours = create_model("resnext50_32x4d").to(device).eval()
    # Both list convolution after convolution in the order of the computation, so the tensors pair up.
    values = [value for name, value in peer.state_dict().items() if not name.endswith("num_batches_tracked")]
    names = [name for name in ours.state_dict() if not name.endswith("num_batches_tracked")]
    ours.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    batch, size = (2, 64) if quick else (16, 224)
    x = torch.randn(batch, 3, size, size, device=device)
    models = {"torchvision fp32": peer, "optimized fp32": optimize_for_inference(ours, "fp32")}
    if setting.bf16:
        models["optimized bf16"] = optimize_for_inference(ours, "bf16")
    openvino = _openvino(peer, x) if device == "cpu" else None
    if openvino is not None:
        models["OpenVINO fp32"] = openvino
    seconds = timed({name: lambda m=model: m(x) for name, model in models.items()}, setting, 7)
    logits = {name: model(x) for name, model in models.items()}
    expected = logits["torchvision fp32"]
    agreement = {}
    for name in (name for name in models if name != "torchvision fp32"):
        agreement[f"{name} top-1"] = (logits[name].argmax(1) == expected.argmax(1)).float().mean().item()
        agreement[f"{name} logits, relative"] = relative_error(logits[name], expected)
    per_second = {name: batch / value for name, value in seconds.items()}
    skipped = _not_run(setting, "optimized bf16")
    if openvino is None:
        skipped.setdefault("not run", {})["OpenVINO"] = "not run: not installed (pip install openvino), or not a CPU"
    return result(seconds, "torchvision fp32", agreement, images_per_second=per_second, **skipped)


def _openvino(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The model in OpenVINO, in fp32 on as many threads as torch has; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.convert_model(model, example_input=x), "CPU", settings)
    return lambda batch: torch.from_numpy(compiled(batch.numpy())[0])


def roi_align(setting: Setting) -> Result:
    """1000 boxes on a map of 1024x30x40 to 14x14 bins, forward; and forward with backward."""
    from torchvision.ops import roi_align as torchvision_roi_align

    from .detection.roi_align import roi_align as own

    device, quick = setting.device, setting.quick
    torch.manual_seed(0)
    regions, channels = (20, 16) if quick else (1000, 1024)
    features = torch.randn(1, channels, 30, 40, device=device)
    corner = torch.rand(regions, 2) * torch.tensor([500.0, 380.0])
    boxes = torch.cat([torch.zeros(regions, 1), corner, corner + torch.rand(regions, 2) * 300 + 8], 1).to(device)
    last = features.contiguous(memory_format=torch.channels_last)
    half = last.bfloat16()

    def backward(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        x = x.detach().requires_grad_()
        function(x).sum().backward()

    def peer(x: Tensor) -> Tensor:
        return torchvision_roi_align(x, boxes, 14, 1 / 16, 0, True)

    def ours(x: Tensor) -> Tensor:
        return own(x, boxes, 14, 1 / 16)

    forward = timed(
        {"torchvision fp32": lambda: peer(features), "ours fp32": lambda: ours(last), "ours bf16": lambda: ours(half)},
        setting,
        7,
    )
    both = timed(
        {"torchvision fp32": lambda: backward(peer, features), "ours fp32": lambda: backward(ours, last)}, setting, 5
    )
    expected = peer(features)
    agreement = {
        "fp32, relative": relative_error(ours(last), expected),
        "bf16, relative": relative_error(ours(half), expected),
    }
    outcome = result(forward, "torchvision fp32", agreement)
    outcome["ratios"]["ours fp32, with backward"] = both["torchvision fp32"] / both["ours fp32"]
    outcome["seconds"] |= {f"{name}, with backward": value for name, value in both.items()}
    return outcome


def grouped_conv(setting: Setting) -> Result:
    """The 3x3 convolutions of ResNeXt-50 32x4d, each stage's: PyTorch's, and ours where a GPU can run it.

    Batch 64 at 224x224 in bf16 on a GPU; one picture in fp32 on a CPU. ``gigabytes_per_second`` counts input, output
    and weights once, the floor of the bytes to move.
    """
    from .kernels.grouped_conv import available, grouped_conv3x3

    on_gpu = setting.device == "cuda"
    batch, dtype = (64, torch.bfloat16) if on_gpu else (1, torch.float32)
    seconds, ratios, agreement, rates = {}, {}, {}, {}
    for width, size, stride in ((4, 56, 1), (8, 28, 1), (16, 14, 1), (32, 14, 2), (32, 7, 1)):
        torch.manual_seed(0)
        channels, label = 32 * width, f"{32 * width} channels, {size}x{size}, stride {stride}"
        x = torch.randn(batch, channels, size, size, device=setting.device, dtype=dtype).requires_grad_()
        weight = (torch.randn(channels, width, 3, 3, device=setting.device, dtype=dtype) / width**0.5).requires_grad_()
        last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

        def peer(x: Tensor, weight: Tensor = weight, stride: int = stride) -> Tensor:
            return nn.functional.conv2d(x, weight, None, stride, 1, 1, 32)

        def ours(x: Tensor, weight: Tensor = weight, stride: int = stride) -> Tensor:
            return grouped_conv3x3(x, weight, None, stride, 32)

        sides = {"NCHW": (peer, x), "channels-last": (peer, last)}
        if available(last) and (on_gpu or setting.quick):
            sides["ours"] = (ours, last)
        functions = {}
        for name, (function, value) in sides.items():
            functions[f"{name} forward"] = lambda f=function, v=value: f(v.detach())
            functions[f"{name} with backward"] = lambda f=function, v=value: f(v).sum().backward()
        found = timed(functions, setting, 20)
        seconds |= {f"{label}, {name}": value for name, value in found.items()}
        moved = (x.numel() + peer(x).numel() + weight.numel()) * x.element_size()
        rates |= {f"{label}, {name}": moved / found[f"{name} forward"] / 1e9 for name in sides}
        for name in sides:
            for what in ("forward", "with backward"):
                ratio = found[f"NCHW {what}"] / found[f"{name} {what}"]
                ratios |= {f"{label}, {name} {what}": ratio} if name != "NCHW" else {}
            exact = nn.functional.conv2d(x.double(), weight.double(), None, stride, 1, 1, 32)
            agreement[f"{label}, {name}, relative"] = relative_error(sides[name][0](sides[name][1]), exact)
    return {"ratios": ratios, "agreement": agreement, "seconds": seconds, "gigabytes_per_second": rates}


BENCHMARKS: dict[str, Callable[[Setting], Result]] = {
    "c4-inference": c4_inference,
    "c4-train": c4_train,
    "c4-memory": c4_memory,
    "classify": classify,
    "roi-align": roi_align,
    "grouped-conv": grouped_conv,
    "input": input_pipeline,
    "coco-evaluation": lambda setting: benchmark_evaluate(setting.device, setting.quick),
}
