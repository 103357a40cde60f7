"""Whole networks, training and inference: ResNeXt beside ResNet at equal cost, ours beside torchvision's and timm's.

The paper (Sec. 5.1) measured 0.95 s against 0.70 s for a step of ResNeXt-101 32x4d and ResNet-101. Here every network
runs in all settings that may be its best, each row alone in the memory, and the ratio is that of the best ones.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..resnext import create_model
from .measure import Result, Row, Rows, Setting, relative_error, timed

PAIRS = (
    ("resnet101", "resnext101_32x4d"),
    ("resnet50", "resnext50_32x4d"),
    ("resnet101", "resnext101_64x4d"),  # twice the cost: 1.7 s in the paper
)
QUICK_PAIR = ("resnet14", "resnext14_8x14d")
TASKS, DTYPES = ("training", "inference"), ("bf16", "fp32")
BATCH = 128
TURNS = 10


@dataclass(frozen=True)
class Case:
    """One row: ``kernel`` is our grouped convolution chosen by measurement, ``optimized`` our copy for inference."""

    network: str
    side: str
    task: str
    dtype: str
    memory: str
    compiled: bool = False
    kernel: bool = False
    optimized: bool = False

    @property
    def label(self) -> str:
        side = self.side + (" optimized" if self.optimized else "") + (" + kernel" if self.kernel else "")
        mode = "compiled" if self.compiled else "eager"
        return f"{self.network}, {side}, {self.task}, {self.dtype}, {self.memory}, {mode}"


def networks(setting: Setting) -> Result:
    """A training step (forward, loss, backward, SGD) and inference at 224x224, batch 128 or ``setting.batch``.

    fp32 is torch's default, in which cuDNN's convolutions may use TF32. bf16 is autocast in training. The most telling
    rows come first. On a CPU only ``quick`` is meant: small networks, and torch.compile without code generation.
    """
    rows = Rows(setting)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    cases = list(quick_cases() if setting.quick else all_cases())
    try:
        for case in cases:
            rows.add(case.label, lambda case=case: _row(case, setting))
        plain, grouped = QUICK_PAIR if setting.quick else PAIRS[0]
        for network, kernel in ((plain, False), (grouped, False), (grouped, True)):
            case = Case(network, "ours", "training", "bf16", "channels-last", kernel=kernel)
            rows.add(f"profile, milliseconds: {case.label}", lambda case=case: _profile(case, setting))
        rows.add("our kernel in a network, logits against float64", lambda: _agreement(grouped, setting))
    finally:
        torch.backends.cudnn.benchmark = before
    agreement = {f"{label}, {column}": value for label, row in rows.rows.items() for column, value in row.items()
                 if column == "relative"}  # fmt: skip
    ratios, best = _best(cases, rows.rows)
    return {"ratios": ratios, "agreement": agreement, "best": best, **rows.section()}


def quick_cases() -> Iterator[Case]:
    """One row of each kind."""
    for network in QUICK_PAIR:
        for task in TASKS:
            yield Case(network, "ours", task, "fp32", "channels-last")
    grouped = QUICK_PAIR[1]
    yield Case(grouped, "ours", "training", "bf16", "NCHW", compiled=True)
    yield Case(grouped, "ours", "training", "fp32", "channels-last", kernel=True)
    yield Case(grouped, "ours", "inference", "fp32", "channels-last", optimized=True)
    yield Case(grouped, "timm", "inference", "fp32", "channels-last")


def all_cases() -> Iterator[Case]:
    """All rows, in the order of what they tell."""
    yield from dict.fromkeys(_cases_of_pairs())  # two pairs share a plain network


def _cases_of_pairs() -> Iterator[Case]:
    for dtype in DTYPES:
        for task in TASKS:
            for pair in PAIRS:
                ours = [(name, memory) for memory in ("channels-last", "NCHW") for name in pair]
                grouped = pair[1]
                for compiled in (False, True):
                    yield Case(grouped, "ours", task, dtype, "channels-last", compiled, kernel=True)
                    yield from (Case(name, "ours", task, dtype, memory, compiled) for name, memory in ours)
                if task == "inference":
                    yield from (Case(name, "ours", task, dtype, "channels-last", optimized=True) for name in pair)
                    yield Case(grouped, "ours", task, dtype, "channels-last", kernel=True, optimized=True)
                for compiled in (False, True):
                    for side in ("torchvision", "timm"):
                        yield from (Case(name, side, task, dtype, memory, compiled) for name, memory in ours)


def _row(case: Case, setting: Setting) -> Row:
    if reason := _impossible(case, setting):
        return {"not run": reason}
    batch = 2 if setting.quick else setting.batch or BATCH
    while True:
        try:
            return _measure(case, batch, setting)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        finally:
            _clean()


def _impossible(case: Case, setting: Setting) -> str:
    from ..kernels.grouped_conv import lacking

    if case.dtype == "bf16" and not setting.bf16:
        return "this hardware does not multiply bf16"
    if case.kernel:
        return lacking()
    if case.side == "ours":
        return ""
    try:
        known = _peer_names(case.side)
    except ImportError:
        return "not installed"
    return "" if case.network in known else f"{case.side} has no {case.network}"


def _peer_names(side: str) -> list[str]:
    if side == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models()


def _measure(case: Case, batch: int, setting: Setting) -> Row:
    run = _prepare(case, batch, setting)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 if setting.quick else 3):  # compiles, chooses algorithms
        run()
    seconds = timed({"": run}, setting, TURNS)[""]
    row: Row = {"seconds": seconds, "images_per_second": batch / seconds, "batch": batch}
    if setting.device == "cuda":
        row["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def _prepare(case: Case, batch: int, setting: Setting) -> Callable[[], object]:
    """What one step or one inference of the case is."""
    torch.manual_seed(0)
    device, size = setting.device, 32 if setting.quick else 224
    memory = torch.channels_last if case.memory == "channels-last" else torch.contiguous_format
    model = _model(case, device)
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=memory)
    autocast = torch.autocast(device, torch.bfloat16) if case.dtype == "bf16" else nullcontext()
    if case.optimized:
        from ..detection.optimize import optimize_for_inference

        model = optimize_for_inference(model.eval(), case.dtype)
        autocast = nullcontext()
    elif case.compiled:
        model = torch.compile(model, backend="aot_eager" if setting.quick else "inductor")
    if case.task == "inference":
        model.eval()

        @torch.no_grad()
        def infer() -> Tensor:
            with autocast:
                return model(x)

        return infer
    model.train()
    labels = torch.randint(2, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = F.cross_entropy(model(x).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def _model(case: Case, device: str) -> nn.Module:
    if case.side == "torchvision":
        import torchvision

        model: nn.Module = torchvision.models.get_model(case.network)
    elif case.side == "timm":
        import timm

        model = timm.create_model(case.network)
    else:
        from ..kernels.layer import use_grouped_conv

        model = create_model(case.network)
        use_grouped_conv(model, "auto" if case.kernel else "torch")
    return model.to(device, memory_format=torch.channels_last if case.memory == "channels-last" else None)


def _profile(case: Case, setting: Setting) -> Row:
    """Milliseconds of one step by GPU kernel (by operator on a CPU), the 15 longest."""
    if reason := _impossible(case, setting):
        return {"not run": reason}
    from torch.profiler import ProfilerActivity, profile

    on_gpu = setting.device == "cuda"
    try:
        step = _prepare(case, 2 if setting.quick else setting.batch or BATCH, setting)
        for _ in range(1 if setting.quick else 3):
            step()
        turns = 1 if setting.quick else 3
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
            for _ in range(turns):
                step()
            setting.now()  # waits for the GPU
        times: dict[str, float] = {}
        for event in found.key_averages():
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times[event.key[:90]] = times.get(event.key[:90], 0) + spent / 1000 / turns
    finally:
        _clean()
    longest = sorted(times, key=times.__getitem__, reverse=True)[:15]
    return {"all": sum(times.values()), **{name: times[name] for name in longest}}


def _agreement(network: str, setting: Setting) -> Row:
    """Relative error of the logits with our kernel in float32."""
    from ..kernels.grouped_conv import lacking
    from ..kernels.layer import use_grouped_conv

    if reason := lacking():
        return {"not run": reason}
    torch.manual_seed(0)
    model = create_model(network).to(setting.device).eval()
    x = torch.randn(2, 3, 64, 64, device=setting.device)
    with torch.no_grad():
        expected = model.double()(x.double())
        use_grouped_conv(model.float(), "triton")
        with torch.backends.cudnn.flags(allow_tf32=False):
            return {"relative": relative_error(model(x), expected)}


def _best(cases: Sequence[Case], rows: Mapping[str, Row]) -> tuple[dict[str, float], dict[str, str]]:
    """({what: images per second of the grouped network over the plain one's}, {what: the settings compared})."""
    speeds: dict[tuple[str, ...], dict[str, float]] = {}
    for case in cases:
        speed = rows.get(case.label, {}).get("images_per_second")
        if case.side == "ours" and speed:
            speeds.setdefault((case.network, case.task, case.dtype), {})[case.label] = float(speed)
    ratios, best = {}, {}
    for plain, grouped in (QUICK_PAIR, *PAIRS):
        for task, dtype in itertools.product(TASKS, DTYPES):
            both = [speeds.get((network, task, dtype)) for network in (grouped, plain)]
            if both[0] and both[1]:
                fastest = [max(of, key=of.__getitem__) for of in both]
                values = [of[label] for of, label in zip(both, fastest, strict=True)]
                what = f"{grouped} / {plain}, {task}, {dtype}"
                ratios[what] = values[0] / values[1]
                best[what] = " against ".join(f"{a} ({b:.4g}/s)" for a, b in zip(fastest, values, strict=True))
    return ratios, best


def _clean() -> None:
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ceilings(setting: Setting) -> dict[str, float]:
    """Bytes per second of a large copy (read and written), operations per second of a large product: measured here."""
    device = setting.device
    numbers, side = (1 << 20, 256) if setting.quick or device == "cpu" else (1 << 30, 8192)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = timed({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, setting, 10)
    return {
        "copy, bytes per second": 2 * source.numel() * source.element_size() / seconds["copy"],
        "matrix product, operations per second": 2 * side**3 / seconds["product"],
    }
