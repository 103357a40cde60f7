"""The run from a folder of labels to a detector: every step is left alone once it is done, so a killed run resumes."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import METRICS, atomic_write, finished, read_state, write_json
from .choices import (
    FEW_ITERATIONS,
    LEAST_ITERATIONS,
    Choice,
    Machine,
    Measured,
    Plan,
    Start,
    config_text,
    make_plan,
    schedule,
)
from .data import make_sets
from .statistics import statistics_of

if TYPE_CHECKING:
    from ..weights import Reader

STATE, CONFIG, RUN = "auto.json", "config.yaml", "run"
TRAINED, RESULTS = "model_final.pth", "results.json"
AT_HAND = "resnext50_32x4d"
LOADING = time.process_time()
"""Seconds that this program took until here, before the slow imports."""
EXPORT = 15.0
"""Seconds for writing the artifact, the start of the program not among them."""
RESERVE = 0.95
"""The part of the time for training that is planned for."""
POLL = 0.5
PACE = 30.0
"""Seconds of training by which its pace is known: a shorter look once saw a machine that was slow for a moment."""
LEAVING = 120
"""Seconds that the training of a killed call has to save and end."""
LATE = 1.1
"""The schedule is shortened once the training would take so many times the seconds it has, and two starts more."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """What the user has asked for.

    Attributes:
        folder: or file of the labels.
        images: folder of the images, where they are not beside the labels.
        output: folder for everything that is made.
        minutes: for all of it.
        weights: MODEL.WEIGHTS, ``none`` for random ones, None for what is at hand.
        seed: of split and training.
    """

    folder: Path
    images: str | None
    output: Path
    minutes: float
    weights: str | None
    seed: int

    def facts(self) -> dict[str, Any]:
        """All that decides the results."""
        labels = {"folder": str(self.folder), "images": self.images or ""}
        return {**labels, "minutes": self.minutes, "weights": self.weights or "", "seed": self.seed}


class Clock:
    """The seconds that this run has taken, those before a kill included, and what is still to come.

    Args:
        file: where they are kept.
        facts: of the request. They may be changed until a plan was made by them.
        planned: it was.

    Attributes:
        start: seconds that a program takes to start, as this one did.
        evaluation: seconds that one evaluation takes, as the timing has found.

    Raises:
        UserError: a plan was made by other facts.
    """

    def __init__(self, file: Path, facts: dict[str, Any], minutes: float, *, planned: bool) -> None:
        self.file, self.facts, self.limit = file, facts, 60 * minutes
        self.before, self.start, self.evaluation, self.began = 0.0, 0.0, 0.0, time.monotonic() - LOADING
        if file.is_file():
            schema = {"asked": dict, "seconds": float, "start?": float, "evaluation": float}
            found = read_state(file, schema, f"remove {file.parent} and start again")
            if planned and found["asked"] != facts:
                changed = [f"--{key}" for key in facts if found["asked"].get(key) != facts[key]]
                raise UserError(
                    f"{file.parent}: was begun with other {', '.join(changed)}; give the same, or name another --output"
                )
            self.before, self.start, self.evaluation = found["seconds"], found.get("start", 0.0), found["evaluation"]

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.began

    @property
    def exports_evaluation(self) -> bool:
        """Whether there is time to evaluate the artifact too."""
        return self.evaluation <= 0.02 * self.limit

    @property
    def for_training(self) -> float:
        """Seconds that are left for the steps of a training that has started; negative where there are none.

        After them come two programs more, the evaluation on the test set and the export, which evaluates too.
        """
        around = 2 * self.start + EXPORT + self.evaluation * (2 if self.exports_evaluation else 1)
        return self.limit - self.spent - around

    def save(self) -> None:
        """Write the seconds down, for the run that resumes this one."""
        seconds = {"seconds": self.spent, "start": self.start, "evaluation": self.evaluation}
        write_json(self.file, {"asked": self.facts, **seconds})


def run(request: Request) -> dict[str, Any]:
    """Everything, from where an earlier call with the same request has stopped.

    Returns:
        The detector's results on the validation set.

    Raises:
        UserError: data, weights or settings to fix.
        Stopped: a signal came; the same request resumes.
    """
    from ..engine.folder import locked

    source, output = request.folder.resolve(), request.output.resolve()
    if source == output or source in output.parents:
        raise UserError(f"--output {request.output}: lies within the labels' folder; name one outside of it")
    with locked(request.output), _log(request.output / "auto.txt") as say:
        config = request.output / CONFIG
        clock = Clock(request.output / STATE, request.facts(), request.minutes, planned=config.is_file())
        clock.save()
        say(f"[1/4] the data ({request.minutes:g} minutes in all, {clock.spent:.0f} s of them over)")
        began = clock.spent
        sets = make_sets(request.folder, request.images, request.output / "data", request.seed, say)
        checking = clock.spent - began
        say("[2/4] the settings")
        if config.is_file():
            say(f"{config} is there and is taken as it stands")
        else:
            plan = _plan(request, sets, clock, checking)
            for choice in plan.choices:
                say(f"{choice.what}: {choice.reason}\n    {_settings(choice)}")
            if plan.iterations < FEW_ITERATIONS:
                say(f"warning: {plan.iterations} iterations are few, expect little; give more --minutes")
            with atomic_write(config) as file:
                file.write(config_text(plan.choices, _header(request)))
            say(f"all of it is in {config}: edit it, and run it by resnext-det train --config-file {config}")
        clock.save()
        say("[3/4] training and evaluation")
        _train(config, request.output / RUN, clock, say)
        results = _results(request.output / RUN)
        say(f"on the validation set: {_shown(results)}")
        if "test" in sets:
            _evaluate_test(config, request.output, say)
        say("[4/4] the artifact")
        _export(request.output, clock.exports_evaluation, say)
        clock.save()
        _summary(request.output, results, clock, say)
        return results


@contextmanager
def _log(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that prints a line, and writes it to ``path`` too."""
    with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        yield say


def _settings(choice: Choice) -> str:
    return ", ".join(f"{key} {value if value != '' else '(empty)'}" for key, value in choice.settings.items())


def _header(request: Request) -> list[str]:
    return [
        f"Written by resnext-det auto {shlex.quote(str(request.folder))} --minutes {request.minutes:g}.",
        "Edit what you like; with another OUTPUT_DIR it is a run of its own:",
        f"    resnext-det train --config-file {request.output / CONFIG}",
    ]


def start_of(weights: str | None, read: Reader) -> Start:
    """Where the network starts from: the user's weights, else torchvision's where they were fetched before.

    Raises:
        UserError: weights that cannot be read, or do not say what network they are of.
    """
    from ..weights.sources import fetched

    if weights == "none":
        return Start("", {}, "--weights none")
    asked = weights is not None
    weights = weights if weights is not None else fetched(AT_HAND)
    if not weights:
        return Start("", {}, f"no --weights, and torchvision's of {AT_HAND} were never fetched here")
    found = read(weights).metadata
    needed = ("depth", "cardinality", "width", "channel_order", "pixel_mean", "pixel_std", "stride_in_1x1", "norm_eps")
    missing = [key for key in needed if found.get(key) is None]
    if missing:
        raise UserError(
            f"--weights {weights}: does not say its {', '.join(missing)}; convert it first (resnext-det convert), or "
            "write a config yourself"
        )
    return Start(weights, found, "--weights" if asked else f"torchvision's {AT_HAND} was fetched before", asked)


def _plan(request: Request, sets: dict[str, tuple[Path, str]], clock: Clock, checking: float) -> Plan:
    """Args: ``checking``: seconds that the check of the data took, which the training repeats."""
    began = time.monotonic()
    from ..detection.config import setup
    from ..engine.config import resolve_device
    from ..inference.precision import multiplies_bf16
    from ..inference.runtime import available_cores
    from ..weights.checkpoint import ReadOnce
    from .timing import measure

    clock.start = LOADING + time.monotonic() - began  # a program of ours does little else until it works
    read = ReadOnce()
    documents = {role: json.loads(file.read_bytes()) for role, (file, _) in sets.items()}
    data = statistics_of(documents["train"], sets["train"][1])
    images = sum(len(document["images"]) for role, document in documents.items() if role != "train")
    device = resolve_device("auto")
    machine = Machine(device, available_cores(), multiplies_bf16(device))
    common = _common(request, sets)
    trial = request.output / "timing.yaml"

    def timed(choices: Sequence[Choice]) -> Measured:
        with atomic_write(trial) as file:
            file.write(config_text([*choices, common], ["What the timing ran; config.yaml is the run's own."]))
        try:
            return measure(setup(str(trial)), read)
        finally:
            trial.unlink()

    def seconds(measured: Measured) -> float:
        clock.evaluation = images * measured.image
        return RESERVE * (clock.for_training - clock.start - checking)

    plan = make_plan(data, start_of(request.weights, read), machine, seconds, timed)
    if plan.iterations < LEAST_ITERATIONS:
        missing = FEW_ITERATIONS * plan.measured.step - seconds(plan.measured)
        raise UserError(
            f"--minutes {request.minutes:g}: start, evaluation and artifact leave time for "
            f"{plan.iterations} iterations; give --minutes {math.ceil(request.minutes + missing / 60)}"
        )
    evaluation = f"an image takes {plan.measured.image:.2f} s in evaluation, {images} of them"
    return Plan([*plan.choices, Choice("files", common.settings, f"where things are; {evaluation}")], plan.measured)


def _common(request: Request, sets: dict[str, tuple[Path, str]]) -> Choice:
    prefix = re.sub(r"\W", "_", request.output.name)
    settings = {
        "DATASETS.REGISTER": [[f"{prefix}_{role}", str(file), root] for role, (file, root) in sets.items()],
        "DATASETS.TRAIN": [f"{prefix}_train"],
        "DATASETS.TEST": [f"{prefix}_val"],
        "SEED": request.seed,
        "OUTPUT_DIR": str(request.output / RUN),
    }
    return Choice("files", settings, "where things are")


def _train(config: Path, folder: Path, clock: Clock, say: Callable[[str], None]) -> None:
    """Train, or resume, until there are weights and their results; shorten the schedule where time runs short.

    Raises:
        Stopped: a signal has ended the training, which has saved its state.
        UserError: it failed.
    """
    from ..engine.exits import EXIT_STOPPED
    from ..engine.signals import GRACE, Stopped, command_line, end_command, start_command

    shortened = 0
    while not finished([folder / TRAINED, folder / RESULTS]):
        _until_free(folder)
        child = start_command(command_line("train", "--config-file", str(config), "--resume"))
        try:
            shorter = None
            pace = Pace(folder)
            while child.poll() is None and shorter is None:
                time.sleep(POLL)
                clock.save()
                if shortened < 3:
                    shorter = pace.shorter_schedule(_iterations(config), clock.for_training, clock.start)
            if shorter is not None:
                end_command(child, seconds=60 * GRACE)
        finally:
            end_command(child)
        if shorter is not None:
            shortened += 1
            say(
                f"the machine is slower than in the timing: {shorter} iterations in place of {_iterations(config)}, so "
                "that the learning rate still falls in time"
            )
            shorten(config, shorter)
        elif child.returncode in (EXIT_STOPPED, -15):
            raise Stopped("auto: stopped; the same command resumes")
        elif child.returncode:
            raise UserError(
                f"auto: the training ended with code {child.returncode}, see above; the same command resumes"
            )
        elif not finished([folder / TRAINED, folder / RESULTS]):
            raise UserError(f"auto: {config} writes elsewhere than to {folder}; set OUTPUT_DIR back")
    say(f"trained: {folder / TRAINED}")


def _until_free(folder: Path) -> None:
    """Wait for the training of an earlier call that was killed: it saves its state and ends by itself."""
    from ..engine.folder import locked

    for _ in range(LEAVING):
        try:
            with locked(folder):
                return
        except UserError:
            time.sleep(1)


class Pace:
    """How fast a training in ``folder`` goes, by the lines of its ``metrics.json`` since this was made."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "metrics.json"
        self.first: tuple[int, float] | None = None
        self.last = 0
        self.begin = self.file.stat().st_size if self.file.is_file() else 0

    def shorter_schedule(self, iterations: int, left: float, start: float) -> int | None:
        """The iterations that fit, where ``iterations`` would take :data:`LATE` times the seconds ``left``.

        Args:
            start: seconds that starting again costs.
        """
        done, now = self._done(), time.monotonic()
        if done is None or done >= 0.9 * iterations:
            return None
        if done == self.last:
            return None  # lines come every 20 iterations; between them the pace would seem to fall
        self.last = done
        if self.first is None:
            self.first = (done, now)
        steps, seconds = done - self.first[0], now - self.first[1]
        if steps < 20 or seconds < PACE:
            return None
        rate = steps / seconds
        fitting = done + int(rate * (left - start))
        late = (iterations - done) / rate > max(LATE * left, left + 2 * start, 1)
        return max(done + 10, fitting) if late and fitting < 0.95 * iterations else None

    def _done(self) -> int | None:
        if not self.file.is_file() or self.file.stat().st_size < self.begin:
            self.begin = 0  # a new run has set the old file aside
        if not self.file.is_file():
            return None
        with open(self.file, "rb") as file:
            file.seek(self.begin)
            lines = file.read().splitlines()
        for line in reversed(lines):
            try:
                return int(json.loads(line)["iteration"]) + 1
            except (ValueError, KeyError, TypeError):
                continue
        return None


def _iterations(config: Path) -> int:
    from ..config_files import read_config

    solver = read_config(str(config)).get("SOLVER", {})
    return int(solver.get("MAX_ITER", 0)) if solver.get("UNIT", "iterations") == "iterations" else 0


def shorten(config: Path, iterations: int) -> None:
    """Write the schedule of ``iterations`` over the one of a config file; everything else stays as it is written."""
    text = config.read_text(encoding="utf-8")
    for key in ("MAX_ITER", "STEPS"):
        value = schedule(iterations)[f"SOLVER.{key}"]
        text = re.sub(rf"^(  {key}): .*$", rf"\g<1>: {value}", text, count=1, flags=re.M)
    with atomic_write(config) as file:
        file.write(text)


def _results(folder: Path) -> dict[str, Any]:
    return read_state(folder / RESULTS, METRICS, "remove it, and the same command evaluates again")


def _evaluate_test(config: Path, output: Path, say: Callable[[str], None]) -> None:
    """The final weights on the test set, which nothing was chosen by."""
    from ..config_files import read_config
    from ..engine.signals import command_line, run_command

    folder = output / "test"
    if not (folder / RESULTS).is_file():
        name = next(name for name, *_ in read_config(str(config))["DATASETS"]["REGISTER"] if name.endswith("_test"))
        settings = ["DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(folder)]
        weights = ["MODEL.WEIGHTS", str(output / RUN / TRAINED)]
        if code := run_command(command_line("train", "--config-file", str(config), "--eval-only", *weights, *settings)):
            raise UserError(f"auto: the evaluation on the test set ended with code {code}, see above")
    say(f"on the test set: {_shown(_results(folder))}")


def _export(output: Path, evaluated: bool, say: Callable[[str], None]) -> None:
    from ..engine.signals import command_line, run_command

    folder = output / "artifact"
    if (folder / "detector.json").is_file():
        return
    missing = [name for name in NEEDED if find_spec(name) is None]
    line = ["export", "--weights", str(output / RUN / TRAINED), "--output", str(folder), "--format", "onnx"]
    line += ["--evaluate"] if evaluated else []
    if missing:
        say(f"not written: {', '.join(missing)} not installed; then: resnext-det {shlex.join(line)}")
    elif code := run_command(command_line(*line)):
        raise UserError(f"auto: export ended with code {code}, see above; the same command tries again")


def _shown(results: dict[str, Any]) -> str:
    found = {name: results["bbox"].get(name) for name in ("AP50", "AP")}
    return ", ".join(f"{name} {'none' if v is None else f'{v:.1f}'}" for name, v in found.items())


def _summary(output: Path, results: dict[str, Any], clock: Clock, say: Callable[[str], None]) -> None:
    boxes = results["bbox"]
    value = {name: found for name, found in boxes.items() if isinstance(found, float) and math.isfinite(found)}
    thresholds = [f"{n.removeprefix('threshold-')} {v:.2f}" for n, v in value.items() if n.startswith("threshold-")]
    if thresholds:
        say(f"keep scores from (best F1 by class, {value['F1']:.1f} over all): {', '.join(thresholds)}")
    reports = sorted((output / RUN / "inference").glob("*/report.html"))
    files = {"report": reports[0] if reports else None, "weights": output / RUN / TRAINED, "settings": output / CONFIG}
    if (output / "artifact" / "detector.json").is_file():
        files["artifact"] = output / "artifact"
    for name, path in files.items():
        if path is not None:
            say(f"{name}: {path}")
    say(f"use it: resnext-det predict --weights {output / RUN / TRAINED} --input IMAGES")
    say(f"{clock.spent:.0f} seconds in all")
