"""The transfer benchmarks of pretrained backbones: run what is missing, print means over trials and their difference.

Everything runs through the training commands, into ``OUTPUT/PROTOCOL/NETWORK/WEIGHTS/trial0``, the classification on
frozen features into ``OUTPUT/linear/NETWORK/WEIGHTS``. What is finished is not run again; what was interrupted resumes.
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
from ..files import RESULTS_FILE, atomic_path, atomic_write, safe_component, shown
from ..reporting.tables import NO_VALUE, NOT_RUN
from ..reporting.text import drawn
from .reproduce import TRAINED, Command, image_folders, read_results

PROTOCOLS = (
    *("voc0712", "voc0712_frozen", "voc0712_1percent", "voc0712_5percent", "voc0712_10percent"),
    *("coco_1x", "coco_2x"),
)
NETWORKS = ("R_50", "X_50_32x4d")
COLUMNS = {"AP50": ("bbox", "AP50"), "AP": ("bbox", "AP"), "AP75": ("bbox", "AP75")}
"""{heading: place in a run's ``results.json``}."""

MASK_COLUMNS = {f"mask {name}": ("segm", name) for name in ("AP50", "AP", "AP75")}
"""The same, of the protocols with masks."""

FROZEN_COLUMNS = {"linear": "top1_error", "k-NN": "knn_top1_error"}
"""{heading: error} of the classification on frozen features; the table has 100 - error, the accuracy."""

Values = Mapping[str, float]
"""{heading: percent}."""

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
        classification: folder with class folders under ``train`` and ``val``, to classify on frozen features.
        classification_options: ``KEY VALUE ...`` over ``configs/linear``.
    """

    output: Path
    protocol: str = "voc0712"
    network: str = "R_50"
    processes: int = 1
    batch: int | None = None
    options: tuple[str, ...] = ()
    classification: Path | None = None
    classification_options: tuple[str, ...] = ()

    @property
    def columns(self) -> Mapping[str, tuple[str, str]]:
        """The protocol's, as :data:`COLUMNS`."""
        return COLUMNS | (MASK_COLUMNS if self.protocol.startswith("coco") else {})

    @property
    def published(self) -> Mapping[str, tuple[float, float, float]]:
        """What others have published for this protocol and network; nothing where the data are others."""
        other_data = any(key.startswith("DATASETS.") for key in self.options[::2])
        return {} if other_data else PUBLISHED.get((self.protocol, self.network), {})


def labels_of(weights: Sequence[str]) -> dict[str, str]:
    """{name of a line and folder: weights}; files of one name get their folder's in front.

    Raises:
        UserError: a file given twice, or a name that cannot be a folder's.
    """
    if len(set(weights)) < len(weights):
        twice = next(name for name, number in Counter(weights).items() if number > 1)
        raise UserError(f"--weights {shown(twice)}: given twice; --trials says how often each runs")
    stem_of = {name: Path(name.removesuffix(".tar")).stem for name in weights}  # MoCo's files end in .pth.tar
    stems = Counter(stem_of.values())
    labels = {}
    for name, stem in stem_of.items():
        label = stem if stems[stem] == 1 else f"{Path(name).parent.name}_{stem}"
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
    every = (*options, *settings.options, "OUTPUT_DIR", str(folder))
    flags = ("--resume", "--num-gpus", str(settings.processes))
    return Command("train", Path(config), folder, every, (folder / TRAINED, folder / RESULTS_FILE), flags)


def frozen_command(label: str, weights: str, settings: Settings) -> Command:
    """The classification on frozen features: once for each backbone, whatever the protocol and the trials."""
    assert settings.classification is not None
    train, test = image_folders(settings.classification)
    folder = settings.output / "linear" / settings.network / label
    options = ("MODEL.WEIGHTS", "" if weights == RANDOM else weights, "DATASETS.TRAIN", str(train), "DATASETS.TEST",
               str(test), *settings.classification_options, "OUTPUT_DIR", str(folder))  # fmt: skip
    flags = ("--resume", "--num-gpus", str(settings.processes))
    config = Path(config_path(f"linear/{settings.network}.yaml"))
    return Command("pretrain", config, folder, options, (folder / TRAINED, folder / RESULTS_FILE), flags)


def commands_of(weights: Sequence[str], trials: int, settings: Settings) -> list[Command]:
    """Every run behind the table, the first trial of each backbone first."""
    labels = labels_of(weights)
    frozen = [frozen_command(*one, settings) for one in labels.items()] if settings.classification else []
    return frozen + [command_of(*one, trial, settings) for trial in range(trials) for one in labels.items()]


def measured(weights: Sequence[str], trials: int, settings: Settings) -> dict[str, dict[int, Values]]:
    """{label: {trial: its columns}} of the finished runs; a number that is missing is NaN."""
    found: dict[str, dict[int, Values]] = {label: {} for label in labels_of(weights)}
    for label, file in labels_of(weights).items():
        for trial in range(trials):
            results = read_results(command_of(label, file, trial, settings))
            if results is not None:
                places = settings.columns.items()
                found[label][trial] = {name: _number(results.get(part, {}).get(key)) for name, (part, key) in places}
    return found


def measured_frozen(weights: Sequence[str], settings: Settings) -> dict[str, Values]:
    """{label: its :data:`FROZEN_COLUMNS`} of the finished classifications."""
    found: dict[str, Values] = {}
    for label, file in labels_of(weights).items() if settings.classification else ():
        results = read_results(frozen_command(label, file, settings))
        if results is not None:
            found[label] = {name: 100 - _number(results.get(key)) for name, key in FROZEN_COLUMNS.items()}
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


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


def table_text(
    found: Mapping[str, Mapping[int, Values]],
    trials: int,
    settings: Settings,
    frozen: Mapping[str, Values] | None = None,
) -> str:
    """The table in Markdown: mean and standard deviation over the finished trials, and what was published.

    Below it the paired differences of all backbones to the first.
    """
    columns = [*settings.columns, *(FROZEN_COLUMNS if settings.classification else ())]
    rows = []
    for label, runs in found.items():
        cells = [_mean_and_deviation([run[key] for run in runs.values()]) for key in settings.columns]
        if settings.classification:
            of_label = (frozen or {}).get(label, {})
            cells += [_mean_and_deviation([of_label[key]] if of_label else []) for key in FROZEN_COLUMNS]
        rows.append([label, f"{len(runs)} of {trials}", *cells])
    published = settings.published
    for name, values in published.items():
        cells = [f"{v:.1f}" for v in values]
        rows.append([f"published: {name}", "5", *cells, *[NO_VALUE] * (len(columns) - len(cells))])
    text = [f"Transfer {settings.protocol}, {settings.network} C4", ""]
    if settings.options:
        changes = f"{len(settings.options) // 2} settings are not the protocol's"
        text += [f"{changes}: compare these lines with one another only.", ""]
    text.append(tabulate(rows, ["weights", "trials", *columns], "pipe", disable_numparse=True))
    if settings.classification:
        text += ["", f"linear, k-NN: top-1 accuracy on {settings.classification.name}, one run each, frozen features"]
    if published:
        text += ["", f"Published: {SOURCE}; they expect standard deviations of 0.2, 0.2 and 0.4."]
    (one, first), *others = found.items()
    for two, second in others:
        text.append("")
        for key in settings.columns:
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


def write_csv(
    path: Path, found: Mapping[str, Mapping[int, Values]], settings: Settings, frozen: Mapping[str, Values]
) -> None:
    """One line for each finished run; the last columns are those of its backbone's frozen features."""
    last = tuple(FROZEN_COLUMNS) if settings.classification else ()
    with atomic_write(path) as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["weights", "trial", *settings.columns, *last])
        for label, runs in found.items():
            more = [frozen.get(label, {}).get(key, "") for key in last]
            lines.writerows(
                [label, trial, *(run[key] for key in settings.columns), *more] for trial, run in runs.items()
            )


def write_png(
    path: Path, found: Mapping[str, Mapping[int, Values]], settings: Settings, frozen: Mapping[str, Values]
) -> None:
    """Every trial as a point, their means as lines, the published means as dashed ones."""
    from matplotlib.figure import Figure

    values_of = {key: [[run[key] for run in runs.values()] for runs in found.values()] for key in settings.columns}
    if settings.classification:
        values_of |= {key: [[frozen[n][key]] if n in frozen else [] for n in found] for key in FROZEN_COLUMNS}
    published = settings.published
    width = min(3, len(values_of)) if len(values_of) != 5 else 5
    height = -(-len(values_of) // width)
    figure = Figure(figsize=(3 * width, 3.5 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).flat
    for column, (axis, (key, of_labels)) in enumerate(zip(axes, values_of.items(), strict=False)):
        for place, values in enumerate(of_labels):
            axis.plot([place] * len(values), values, "o", alpha=0.6, color=f"C{place}")
            if values:
                axis.hlines(statistics.fmean(values), place - 0.3, place + 0.3, color=f"C{place}")
        if not settings.options and column < len(COLUMNS):
            for numbers in published.values():
                axis.axhline(numbers[column], linestyle="--", linewidth=0.7, color="gray")
        axis.set_title(key)
        axis.set_xticks(range(len(found)), [drawn(shown(label, 20)) for label in found], rotation=20)
        axis.set_xlim(-0.5, len(found) - 0.5)
    figure.suptitle(f"Transfer {settings.protocol}, {settings.network} C4")
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120)
