"""Benchmarks and tables in a row, in as many stretches of machine time as it takes, with one small file of results.

A study is a YAML list of steps, such as ``configs/reproduce/one_gpu.yaml``. Finished runs are not run again, not even
on another machine that got the folder of results alone; when the time is over, the trainings get the signal that makes
them save and leave, and the same command continues another time.
"""

from __future__ import annotations

import math
import platform
import shlex
import signal
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO

import torch

from ..benchmarks import BENCHMARKS
from ..config_files import read_yaml
from ..engine.evaluations import EVALUATION
from ..engine.exits import EXIT_STOPPED
from ..engine.signals import GRACE, command_line, end_command, on_stopping_signals, run_command, start_command
from ..errors import UserError, nearest
from ..files import COUNT, METRICS, atomic_write, misfit, parse_state, read_state, safe_component, shown, write_json
from .reproduce import SETTINGS_FILE, Command, Settings, options_of, options_of_file, plan, read_results
from .tables import PROTOCOLS, TABLES

KEEP = 30.0
"""Seconds between two writings of the results while trainings run."""

_STEP = {
    "name": str, "benchmark?": str, "table?": (int, str), "rows?": [str], "seeds?": [COUNT], "protocol?": str,
    "data?": str, "settings?": str, "set?": {str: object}, "width?": (str, float), "weights?": {str: str},
    "minutes?": float, "arguments?": [object],
}  # fmt: skip
"""Schema of an entry of a study."""
_RUNS = {
    str: {
        "command": str, "finished": bool, "results": METRICS, "iteration": (None, COUNT), "epoch": (float, None),
    }
}  # fmt: skip
"""Schema of ``runs.json``."""

CURVE, LOG = 60, 15
"""Points of a curve and lines of a log that are kept."""


@dataclass(frozen=True)
class Step:
    """One entry of a study.

    Attributes:
        name: also of its folder.
        benchmark: of ``tools/benchmark.py``, which then runs alone; or
        table: number of a table of the paper, for which
        rows, seeds, protocol, data, settings, set, width, weights: are as in ``tools/reproduce.py``. ``weights`` names
            the file of each row; ``{seed}`` and ``{output}`` in it are filled in. ``settings`` lies beside the study.
        minutes: that a benchmark may take of each call.
        arguments: of a benchmark, in addition.
    """

    name: str
    benchmark: str = ""
    table: int = 0
    rows: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    protocol: str = "paper"
    data: str = ""
    settings: str = ""
    set: Mapping[str, object] = field(default_factory=dict)
    width: str = "1"
    weights: Mapping[str, str] = field(default_factory=dict)
    minutes: float = math.inf
    arguments: Sequence[str] = ()


@dataclass
class Chain:
    """The commands behind one row and seed, one after the other, and the weights that must be there before."""

    step: str
    name: str
    commands: deque[Command]
    needs: Path | None
    last: Command
    process: subprocess.Popen | None = None
    failed: str = ""


def read_study(file: str) -> list[Step]:
    """The steps of a YAML file.

    Raises:
        UserError: unreadable, unknown keys, tables, rows or benchmarks, names that stand twice.
    """
    entries = read_yaml(file, "study")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.get("name") for entry in entries):
        raise UserError(f"study {file}: must be a list of steps, each with a name")
    known = list(Step.__dataclass_fields__)
    steps = []
    for entry in entries:
        where = f"study {file}, step {safe_component(entry['name'], f'study {file}: step')}"
        for key in entry:
            if key not in known:
                raise UserError(f"{where}: unknown key {shown(key)}{nearest(str(key), known)}")
        if reason := misfit(entry, _STEP):
            raise UserError(f"{where}: {reason}")
        step = Step(**entry)
        if bool(step.benchmark) == bool(step.table):
            raise UserError(f"{where}: needs either benchmark or table")
        if step.benchmark and step.benchmark not in BENCHMARKS:
            raise UserError(f"{where}: no benchmark {shown(step.benchmark)}{nearest(step.benchmark, list(BENCHMARKS))}")
        if step.table and step.table not in TABLES:
            raise UserError(f"{where}: no table {shown(step.table)}; {', '.join(map(str, TABLES))}")
        if step.protocol not in PROTOCOLS:
            raise UserError(f"{where}: protocol {shown(step.protocol)}: choose from {', '.join(PROTOCOLS)}")
        for row in step.rows:
            if row not in TABLES[step.table].rows:
                raise UserError(f"{where}: row {shown(row)} is not in table {step.table}")
        steps.append(step)
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"study {file}: two steps are called {name}")
    return steps


def chains_of(step: Step, output: Path, folder: Path) -> Iterator[Chain]:
    """What a table's step runs, seed by seed."""
    options = options_of_file(str(folder / step.settings)) if step.settings else []
    options += options_of(step.set, f"study, step {step.name}: set")
    for seed in step.seeds:
        for row in step.rows or TABLES[step.table].rows:
            weights = {
                r: w.replace("{seed}", str(seed)).replace("{output}", str(output)) for r, w in step.weights.items()
            }
            settings = Settings(output / step.name, Path(step.data) if step.data else None, tuple(options),
                                Fraction(step.width), weights, step.protocol)  # fmt: skip
            commands = plan(step.table, row, seed, settings)
            needs = Path(weights[row]) if weights.get(row) else None
            yield Chain(step.name, _name(step, row, seed), deque(commands), needs, commands[-1])


class Runner:
    """Runs chains side by side until they are done or the time is over.

    Args:
        jobs: processes at once.
        ends: in seconds of :func:`time.monotonic`.
        keep: called after each command and now and then, to write down what is there: the machine may go any moment.
    """

    def __init__(self, jobs: int, ends: float, keep: Callable[[], None] = lambda: None) -> None:
        self.jobs, self.ends, self.keep, self.stopping = jobs, ends, keep, False

    def run(self, chains: Sequence[Chain]) -> bool:
        """Whether everything is finished; chains that failed say so."""
        for chain in chains:
            while chain.commands and chain.commands[0].finished():
                chain.commands.popleft()
        if self.ends <= time.monotonic() and any(chain.commands for chain in chains):
            return False
        waiting = deque(chain for chain in chains if chain.commands)
        running: list[Chain] = []
        next_keep = time.monotonic() + KEEP
        with on_stopping_signals(self._stop), ExitStack() as stack:
            stack.callback(self._end, running)  # however it ends, no run outlives it
            while waiting or running:
                if not self.stopping and time.monotonic() > self.ends:
                    self.stopping = True
                    print("the time is over: everything saves and stops", flush=True)
                if self.stopping:
                    return False
                ready = [c for c in waiting if c.needs is None or c.needs.is_file()]
                for chain in ready[: max(self.jobs - len(running), 0)]:
                    waiting.remove(chain)
                    self._start(chain)
                    running.append(chain)
                if not running:
                    for chain in waiting:
                        chain.failed = f"{chain.needs} is missing, its training has failed"
                    break
                time.sleep(0.2)
                ended = [c for c in running if c.process.poll() is not None]
                for chain in ended:
                    running.remove(chain)
                    if self._ended(chain):
                        waiting.appendleft(chain)
                if ended or time.monotonic() > next_keep:
                    self.keep()
                    next_keep = time.monotonic() + KEEP
        return all(not chain.commands for chain in chains)

    def _start(self, chain: Chain) -> None:
        command = chain.commands[0]
        write_json(command.folder / SETTINGS_FILE, command.settings())
        print(f"{chain.name}: {command.tool} in {command.folder}", flush=True)
        with open(command.folder / "output.txt", "a", encoding="utf-8") as file:
            chain.process = _popen(command.line(), file)

    def _ended(self, chain: Chain) -> bool:
        """Note how its process has ended; whether the chain continues."""
        command, code = chain.commands[0], chain.process.returncode
        if code in (EXIT_STOPPED, -signal.SIGTERM):  # somebody else's signal
            self.stopping = True
            return False
        if code:
            chain.failed = f"{command.tool} ended with code {code}, see {command.folder}/output.txt"
            print(f"{chain.name}: {chain.failed}", flush=True)
            return False
        print(f"{chain.name}: {command.tool} is done", flush=True)
        chain.commands.popleft()
        return bool(chain.commands)

    def _end(self, running: Sequence[Chain]) -> None:
        end_command(*(chain.process for chain in running))

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True


def _popen(line: Sequence[str], output: IO[str]) -> subprocess.Popen:
    return start_command(line, stdout=output, stderr=subprocess.STDOUT)


def run_benchmark(step: Step, results: Path, device: str, quick: bool, minutes: float) -> bool:
    """Whether it is finished.

    Raises:
        UserError: it failed.
    """
    file = results / f"{step.name}.json"
    if file.is_file():
        found = read_state(file, dict, "remove it, and the benchmark runs again")
        if "ratios" in found and not found.get("left"):
            return True
    line = [*command_line("benchmark"), step.benchmark, "--device", device, "--json", str(file)]
    line += [*(["--quick"] if quick else []), *map(str, step.arguments)]
    minutes = min(minutes, step.minutes)
    line += ["--minutes", f"{minutes:.2f}"] if math.isfinite(minutes) else []
    print(f"{step.name}: {shlex.join(line[2:])}", flush=True)
    try:
        code = run_command(line, 60 * minutes + GRACE if math.isfinite(minutes) else None)
    except subprocess.TimeoutExpired:
        print(f"{step.name}: ended, the time is over; rows that were measured are kept", flush=True)
        return False
    if code:
        raise UserError(f"{step.name}: benchmark ended with code {code}, see above")
    return not read_state(file, dict, "run the benchmark again").get("left")


def drop_known(chains: Sequence[Chain], known: Mapping[str, dict]) -> None:
    """Leave out what is finished by ``known`` results of the same command, unless its weights are wanted here."""
    for chain in reversed(chains):  # makers of weights come before their users
        run = known.get(chain.name, {})
        same = run.get("finished") and run.get("command") == _command_of(chain.last)
        makes = {path for command in chain.commands for path in command.made}
        wanted = any(other.commands and other.needs in makes and not other.needs.is_file() for other in chains)
        if same and not wanted:
            chain.commands.clear()


def read_runs(results: Path) -> dict[str, dict]:
    """The runs that ``runs.json`` holds; none where there is no such file."""
    file = results / "runs.json"
    return read_state(file, _RUNS, "remove it, and finished runs are collected again") if file.is_file() else {}


def collect(steps: Sequence[Step], chains: Sequence[Chain], results: Path) -> None:
    """Write ``runs.json`` (each run's command, config, curve, last lines and numbers) and ``tables.md``.

    Runs that have left nothing here, or were finished by an earlier call, keep what the file has of them.
    """
    runs = read_runs(results)
    detection = {step.name: TABLES[step.table].detection for step in steps if step.table}
    for chain in chains:
        known = runs.get(chain.name, {})
        if chain.process is None and known.get("finished") and known.get("command") == _command_of(chain.last):
            continue  # the file says on what machine
        found = of_run(chain.last, detection[chain.step])
        if found["finished"] or found["iteration"] is not None and not known.get("finished"):
            runs[chain.name] = found
    write_json(results / "runs.json", runs)
    lines = []
    for step in (step for step in steps if step.table):
        table = TABLES[step.table]
        rows = step.rows or list(table.rows)
        numbers = {row: [runs.get(_name(step, row, seed), {}) for seed in step.seeds] for row in rows}
        where = f"on {Path(step.data).name}, not the paper's data" if step.data else f"({table.title})"
        lines += [f"**{step.name}**: lines of Table {step.table} {where}", ""]
        lines += [*_table(numbers, {row: table.rows[row].label for row in rows}, table.columns), ""]
    with atomic_write(results / "tables.md") as file:
        file.write("\n".join(lines))


def of_run(command: Command, detection: bool) -> dict:
    """What is kept of a run, finished or not."""
    folder = command.folder
    done = command.finished()
    config = folder / "config.yaml"
    metrics = _records(folder / "metrics.json", {})
    points = _records(folder / "evaluations.jsonl", EVALUATION)
    values = read_results(command) if done else (points[-1] if points else {})
    return {
        "command": _command_of(command),
        "machine": _machine(),
        "finished": done,
        "iteration": points[-1].get("iteration") if points else None,
        "epoch": points[-1].get("epoch") if points else None,
        "results": values.get("bbox", values) if detection else values,
        "curve": _thinned(points),
        "training": _thinned([_short(line) for line in metrics if "total_loss" in line]),
        "log": _lines(folder / "log.txt")[-LOG:],
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
    }


def _command_of(command: Command) -> str:
    words = ["--config-file", command.settings()["config"], *command.flags, *command.options]
    return shlex.join(["resnext-det", command.tool, *words])


def _name(step: Step, row: str, seed: int) -> str:
    return f"{step.name}, {row}, seed {seed}"


def _thinned(points: Sequence[dict]) -> list[dict]:
    """At most about :data:`CURVE` of them, the last one among them."""
    return list(points[:: -max(-(-len(points) // CURVE), 1)])[::-1]


def _short(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of one line of ``metrics.json``: the iteration, its loss and error, the rate, seconds of a step."""
    kept = ("iteration", "total_loss", "train/top1_error", "lr", "time")
    return {key: metrics[key] for key in kept if key in metrics}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _records(path: Path, schema: dict) -> list[dict]:
    """The objects of a file of one a line, but those that are being written now or were cut off when a run ended."""
    records = []
    for line in _lines(path):
        with suppress(UserError):
            records.append(parse_state(line, schema, "", ""))
    return records


def _table(numbers: Mapping[str, list[dict]], labels: Mapping[str, str], columns: Mapping[str, str]) -> list[str]:
    """Mean ± deviation of the finished runs of each row, or how far an unfinished one is."""
    lines = ["| | " + " | ".join(columns.values()) + " | runs |", "|---" * (len(columns) + 2) + "|"]
    for row, runs in numbers.items():
        finished = [run["results"] for run in runs if run.get("finished")]
        cells = []
        for metric in columns:
            values = [float(r[metric]) for r in finished if isinstance(r.get(metric), int | float)]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "not run")
        said = f"{len(finished)} of {len(runs)}"
        for run in runs:
            if run and not run["finished"]:
                found = {m: v for m in columns if isinstance(v := run["results"].get(m), int | float)}
                now = ", ".join(f"{columns[m]} {value:.2f}" for m, value in found.items() if value)
                place = f"epoch {run['epoch']:.0f}" if run["epoch"] else f"iteration {run['iteration']}"
                said += f"; one unfinished at {place} ({now})"
        lines.append(f"| {labels[row]} | " + " | ".join(cells) + f" | {said} |")
    return lines


def _machine() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"gpu": gpu, "torch": torch.__version__, "python": platform.python_version(), "system": platform.machine()}
