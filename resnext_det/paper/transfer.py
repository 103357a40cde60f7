"""The transfer benchmarks of pretrained backbones: run what is missing, print means over trials and their difference.

Everything runs through the training command, into ``OUTPUT/PROTOCOL/NETWORK/WEIGHTS/trial0``. What is finished is not
run again; what was interrupted is resumed.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from ..config_files import config_path
from ..errors import UserError
from ..files import atomic_path, atomic_write, safe_component, shown
from ..reporting.tables import NO_VALUE, NOT_RUN
from ..reporting.text import drawn
from .reproduce import RESULTS, TRAINED, Command, read_results

PROTOCOLS = (
    *("voc0712", "voc0712_frozen", "voc0712_1percent", "voc0712_5percent", "voc0712_10percent"),
    *("coco_1x", "coco_2x"),
)
NETWORKS = ("R_50", "X_50_32x4d")
COLUMNS = ("AP50", "AP", "AP75")

PUBLISHED: Mapping[tuple[str, str], Mapping[str, tuple[float, float, float]]] = {
    ("voc0712", "R_50"): {
        "supervised ImageNet": (81.3, 53.5, 58.8),
        "MoCo v1, 200 epochs": (81.5, 55.9, 62.6),
        "MoCo v2, 200 epochs": (82.4, 57.0, 63.6),
        "MoCo v2, 800 epochs": (82.5, 57.4, 64.0),
    }
}
"""{(protocol, network): {backbone: AP50, AP, AP75}}, means of five trials."""

SOURCE = "github.com/facebookresearch/moco, detection/README.md"

RANDOM = "none"
"""In place of a file of weights: a backbone as it is initialized."""

IMAGES_PER_PROCESS = 2  # as in the protocols: 16 images on 8 GPUs

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5%, 1 to 10 degrees of freedom


@dataclass(frozen=True)
class Settings:
    """What the command line says about every run.

    Attributes:
        output: folder of all runs.
        protocol, network: of :data:`PROTOCOLS` and :data:`NETWORKS`.
        processes: of each run.
        batch: images per step; two for each process by default. Rate and schedule follow it (SOLVER.REFERENCE_BATCH).
        options: ``KEY VALUE ...`` over the protocol.
    """

    output: Path
    protocol: str = "voc0712"
    network: str = "R_50"
    processes: int = 1
    batch: int | None = None
    options: tuple[str, ...] = ()


def labels_of(weights: Sequence[str]) -> dict[str, str]:
    """{name of a line and folder: weights}; files of one name get their folder's in front.

    Raises:
        UserError: a file given twice, or a name that cannot be a folder's.
    """
    if len(set(weights)) < len(weights):
        twice = next(name for name, number in Counter(weights).items() if number > 1)
        raise UserError(f"--weights {shown(twice)}: given twice; --trials says how often each runs")
    stems = Counter(Path(name).stem for name in weights)
    labels = {}
    for name in weights:
        path = Path(name)
        label = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.stem}"
        if label in labels:
            raise UserError(f"--weights {shown(name)}: another file has this name; rename one")
        labels[safe_component(label, "name of weights")] = name
    return labels


def command_of(label: str, weights: str, trial: int, settings: Settings) -> Command:
    """The run of one trial: the same seed for every backbone, so that trials are pairs."""
    config = config_path(f"detection/transfer/{settings.network}_C4_{settings.protocol}.yaml")
    folder = settings.output / settings.protocol / settings.network / label / f"trial{trial}"
    batch = settings.batch or IMAGES_PER_PROCESS * max(1, settings.processes)
    options = (
        "MODEL.WEIGHTS",
        "" if weights == RANDOM else weights,
        "SEED",
        str(trial),
        "SOLVER.IMS_PER_BATCH",
        str(batch),
    )
    options = (*options, *settings.options, "OUTPUT_DIR", str(folder))
    flags = ("--resume", "--num-gpus", str(settings.processes))
    return Command("train", Path(config), folder, options, (folder / TRAINED, folder / RESULTS), flags)


def measured(weights: Sequence[str], trials: int, settings: Settings) -> dict[str, dict[int, dict[str, float]]]:
    """{label: {trial: its AP50, AP, AP75}} of the finished runs; a number that is NaN is left out of no trial."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for label, file in labels_of(weights).items():
        found[label] = {}
        for trial in range(trials):
            results = read_results(command_of(label, file, trial, settings), True)
            if results is not None:
                values = {key: results.get(key) for key in COLUMNS}
                found[label][trial] = {k: math.nan if v is None else float(v) for k, v in values.items()}
    return found


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[int, float, float]:
    """(pairs, mean of second - first, half the width of its 95% interval by Student's t; NaN for fewer than two)."""
    differences = [second[trial] - first[trial] for trial in sorted(first.keys() & second.keys())]
    n = len(differences)
    if n < 2:
        return n, statistics.fmean(differences) if n else math.nan, math.nan
    return n, statistics.fmean(differences), _student(n - 1) * statistics.stdev(differences) / math.sqrt(n)


def _student(freedom: int) -> float:
    """The 97.5% quantile; beyond the table by its expansion about the normal one, three decimals right."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def table_text(found: Mapping[str, Mapping[int, Mapping[str, float]]], trials: int, settings: Settings) -> str:
    """The table in Markdown: mean and standard deviation over the finished trials, and what was published."""
    rows = []
    for label, runs in found.items():
        cells = [_mean_and_deviation([run[key] for run in runs.values()]) for key in COLUMNS]
        rows.append([label, f"{len(runs)} of {trials}", *cells])
    published = PUBLISHED.get((settings.protocol, settings.network), {})
    rows += [[f"published: {name}", "5", *(f"{v:.1f}" for v in values)] for name, values in published.items()]
    text = [f"Transfer {settings.protocol}, {settings.network} C4", ""]
    if settings.options:
        changes = f"{len(settings.options) // 2} settings are not the protocol's"
        text += [f"{changes}: compare these lines with one another only.", ""]
    text.append(tabulate(rows, ["weights", "trials", *COLUMNS], "pipe", disable_numparse=True))
    if published:
        text += ["", f"Published: {SOURCE}; they expect standard deviations of 0.2, 0.2 and 0.4."]
    if len(found) == 2:
        (one, first), (two, second) = found.items()
        text.append("")
        for key in COLUMNS:
            pairs = ({trial: run[key] for trial, run in runs.items()} for runs in (first, second))
            n, mean, half = paired_difference(*pairs)
            if n == 0:
                text.append(f"{key}, {two} - {one}: {NOT_RUN}")
            else:
                interval = NO_VALUE if math.isnan(half) else f"{mean - half:+.2f} to {mean + half:+.2f}"
                text.append(f"{key}, {two} - {one}: {mean:+.2f}, 95% interval {interval} ({n} pairs)")
    return "\n".join(text)


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return NOT_RUN
    if any(map(math.isnan, values)):
        return NO_VALUE
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def write_csv(path: Path, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """One line for each finished run."""
    with atomic_write(path) as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["weights", "trial", *COLUMNS])
        for label, runs in found.items():
            lines.writerows([label, trial, *(run[key] for key in COLUMNS)] for trial, run in runs.items())


def write_png(path: Path, found: Mapping[str, Mapping[int, Mapping[str, float]]], settings: Settings) -> None:
    """Every trial as a point, their means as lines, the published means as dashed ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(COLUMNS), 3.5), layout="constrained")
    axes = figure.subplots(1, len(COLUMNS))
    published = PUBLISHED.get((settings.protocol, settings.network), {})
    for column, (axis, key) in enumerate(zip(axes, COLUMNS, strict=True)):
        for place, runs in enumerate(found.values()):
            values = [run[key] for run in runs.values()]
            axis.plot([place] * len(values), values, "o", alpha=0.6, color=f"C{place}")
            if values:
                axis.hlines(statistics.fmean(values), place - 0.3, place + 0.3, color=f"C{place}")
        if not settings.options:
            for values in published.values():
                axis.axhline(values[column], linestyle="--", linewidth=0.7, color="gray")
        axis.set_title(key)
        axis.set_xticks(range(len(found)), [drawn(shown(label, 20)) for label in found], rotation=20)
        axis.set_xlim(-0.5, len(found) - 0.5)
    figure.suptitle(f"Transfer {settings.protocol}, {settings.network} C4")
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120)
