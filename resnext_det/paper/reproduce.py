"""A table of the paper in one command: train what is missing, print the paper's numbers beside those measured here.

Everything runs through the other tools (``pretrain.py``, ``train_net.py``, ``dump_proposals.py``) in processes of their
own, into ``OUTPUT/imagenet/resnet101/seed0``, ``OUTPUT/table8/R50/seed0/...``. Finished runs there are not run again,
also when another table wants the same training; what was interrupted is resumed.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..config_files import config_folder, config_path, read_config
from ..engine.signals import command_line, run_command
from ..errors import UserError
from ..files import METRICS, RESULTS_FILE, finished, read_state, shown, write_json
from ..reporting.tables import Results, results_table
from ..variants import Variant, parse_name
from .tables import TABLES, Row, Table

SETTINGS_FILE = "reproduce.json"
TRAINED = "model_final.pth"
_SETTINGS = {"tool": str, "config": str, "options": [str]}  # of SETTINGS_FILE


@dataclass(frozen=True)
class Settings:
    """What the command line says about every run.

    Attributes:
        output: folder of all runs.
        data: a set in place of the paper's: for Tables 3 to 7 folders ``train`` and ``val`` of classes, for
            Table 8 ``annotations/instances_SPLIT.json`` beside image folders ``SPLIT``.
        options: ``KEY VALUE ...`` over every configuration.
        width: factor of all channel numbers.
        weights: file of pretrained weights by row, for Table 8.
        protocol: ``paper``, RPN and Fast R-CNN as two networks, or ``joint``.
        processes: of each run.
    """

    output: Path
    data: Path | None = None
    options: tuple[str, ...] = ()
    width: Fraction = Fraction(1)
    weights: Mapping[str, str] | None = None
    protocol: str = "paper"
    processes: int = 1


def shown_config(path: Path) -> str:
    """``path`` as ``--config-file`` takes it anywhere: relative to the package's configs where it is one of them."""
    folder = config_folder().resolve()
    return path.resolve().relative_to(folder).as_posix() if path.resolve().is_relative_to(folder) else str(path)


@dataclass(frozen=True)
class Command:
    """One run of a command of this package, finished when ``made`` are there, in this order of age."""

    tool: str
    config: Path
    folder: Path
    options: tuple[str, ...]
    made: tuple[Path, ...]
    flags: tuple[str, ...] = ()

    def line(self) -> list[str]:
        """The command, for :mod:`subprocess`."""
        return [*command_line(self.tool), "--config-file", str(self.config), *self.flags, *self.options]

    def settings(self) -> dict:
        """All that decides its result, to be compared with finished runs."""
        config = shown_config(self.config)
        return {"tool": self.tool, "config": config, "options": list(self.options)}

    def finished(self) -> bool:
        """Whether all it makes is there, and newer than what it is made from.

        Raises:
            UserError: it was made with other settings.
        """
        record = self.folder / SETTINGS_FILE
        if record.is_file():
            earlier = read_state(record, _SETTINGS, "remove it, and its folder is made anew")
            if earlier != self.settings():
                differ = [key for key in earlier if earlier[key] != self.settings().get(key)]
                raise UserError(
                    f"{self.folder}: was run with other {' and '.join(differ)} ({record}); choose another --output, or "
                    "remove it"
                )
        return finished(self.made)

    def run(self) -> None:
        """Run it, its output on the terminal.

        Raises:
            UserError: it failed.
        """
        write_json(self.folder / SETTINGS_FILE, self.settings())
        print(f"$ {shlex.join(self.line())}", flush=True)
        code = run_command(self.line())
        if code:
            raise UserError(f"{self.folder}: {self.tool} ended with code {code}, see above; the same command continues")


def run_missing(commands: Iterable[Command], *, dry_run: bool) -> None:
    """Run the commands that are not finished, in order; with ``dry_run`` print them.

    Raises:
        UserError: one failed, or was run with other settings.
    """
    for command in commands:
        if command.finished():
            continue
        if dry_run:
            print(shlex.join(command.line()))
        else:
            command.run()


def plan(number: int | str, name: str, seed: int, settings: Settings) -> list[Command]:
    """The runs behind one line of a table; the last one leaves ``results.json`` with its numbers.

    Raises:
        UserError: settings that do not fit the table.
    """
    table = TABLES[number]
    row = table.rows[name]
    if table.detection:
        return _detection_plan(settings.output / f"table{number}" / name / f"seed{seed}", name, row, seed, settings)
    return _classification_plan(settings.output / f"table{number}" / name / f"seed{seed}", name, row, seed, settings)


def _training(
    tool: str, config: Path, folder: Path, options: Iterable[str], settings: Settings, without: tuple[str, ...] = ()
) -> Command:
    """One training; keys that begin with ``without`` are for the other steps, and this one would refuse them."""
    given = (*options, *settings.options)
    kept = [pair for pair in zip(given[::2], given[1::2], strict=True) if not pair[0].startswith(without)]
    options = (*itertools.chain.from_iterable(kept), "OUTPUT_DIR", str(folder))
    made = (folder / TRAINED, folder / RESULTS_FILE)
    return Command(tool, config, folder, options, made, ("--resume", "--num-gpus", str(settings.processes)))


def _classification_plan(folder: Path, name: str, row: Row, seed: int, settings: Settings) -> list[Command]:
    config = _config(row.config)
    options = ["SEED", str(seed), *_classifier_width(config, settings.width)]
    if settings.data is not None:
        train, test = image_folders(settings.data)
        options += ["DATASETS.TRAIN", str(train), "DATASETS.TEST", str(test)]
    # Rows of one configuration share a training, in whatever table they stand.
    trained = settings.output / Path(row.config).with_suffix("") / f"seed{seed}"
    training = _training("pretrain", config, trained, options, settings)
    if not row.test:
        return [training]
    options = [*training.options[:-2], *row.test, "MODEL.WEIGHTS", str(training.made[0]), "OUTPUT_DIR", str(folder)]
    evaluation = Command("pretrain", config, folder, tuple(options), (training.made[0], folder / RESULTS_FILE),
                         ("--eval-only", "--num-gpus", str(settings.processes)))  # fmt: skip
    return [training, evaluation]


def _detection_plan(folder: Path, name: str, row: Row, seed: int, settings: Settings) -> list[Command]:
    sets, names = detection_sets(settings.data) if settings.data is not None else ([], None)
    common = ["SEED", str(seed), *sets]
    if settings.weights:
        if name not in settings.weights:
            raise UserError(f"--weights: none for {name}; give --weights {name} FILE too")
        common += ["MODEL.WEIGHTS", settings.weights[name]]
    if settings.protocol == "joint":
        config = _config(f"detection/coco2014/{row.config}_C4_1x.yaml")
        options = [*common, *_detector_width(config, settings.width)]
        return [_training("train", config, folder / "joint", options, settings)]
    rpn_config, fast_config = (_config(f"detection/paper/{step}-{row.config}.yaml") for step in ("RPN", "Fast"))
    width = _detector_width(rpn_config, settings.width)
    rpn = _training("train", rpn_config, folder / "rpn", [*common, *width], settings, ("MODEL.ROI_",))
    train, test = names or (("coco_2014_train", "coco_2014_valminusminival"), ("coco_2014_minival",))
    files = {n: folder / "rpn" / "proposals" / f"{n}.pkl" for n in (*train, *test)}
    dump = Command(
        "proposals",
        rpn_config,
        folder / "rpn" / "proposals",
        rpn.options,
        (rpn.made[0], *files.values()),
        ("--num-gpus", str(settings.processes)),
    )
    options = [*common, *width]
    for split, of_split in (("TRAIN", train), ("TEST", test)):
        options += [f"DATASETS.PROPOSAL_FILES_{split}", str(tuple(str(files[n]) for n in of_split))]
    return [
        rpn,
        dump,
        _training("train", fast_config, folder / "fast", options, settings, ("MODEL.RPN.", "MODEL.ANCHOR_GENERATOR.")),
    ]


def _config(name: str) -> Path:
    return Path(config_path(name))


def image_folders(data: Path) -> tuple[Path, Path]:
    """(training, test) folders of a set of images in class folders.

    Raises:
        UserError: not there.
    """
    test = [data / name for name in ("val", "test", "minival") if (data / name).is_dir()]
    if not (data / "train").is_dir() or not test:
        raise UserError(f"--data {data}: needs the folders train and val (or test), one folder per class in each")
    return data / "train", test[0]


def detection_sets(data: Path) -> tuple[list[str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """(options that register a COCO-format set and name its classes, (training sets, test sets)).

    Raises:
        UserError: no training or test split.
    """
    from ..annotations.coco import read_ground_truth  # numpy is not needed to print a plan

    splits = {}
    for path in sorted((data / "annotations").glob("instances_*.json")):
        name = path.stem.removeprefix("instances_")
        if (data / name).is_dir():
            splits[name] = path
    train = [name for name in splits if name.startswith("train")]
    test = [name for start in ("minival", "val", "test") for name in splits if name.startswith(start)]
    if not train or not test:
        raise UserError(
            f"--data {data}: needs annotations/instances_train*.json and instances_val*.json (or minival, test), each "
            "beside a folder of images with the same ending"
        )
    chosen = {f"reproduce_{name}": (str(splits[name]), str(data / name)) for name in (train[0], test[0])}
    first, second = chosen
    names = (first,), (second,)
    classes = len(read_ground_truth(chosen[names[0][0]][0]).class_names)
    options = ["DATASETS.REGISTER", str([[name, *files] for name, files in chosen.items()])]
    options += ["DATASETS.TRAIN", str(names[0]), "DATASETS.TEST", str(names[1])]
    return [*options, "MODEL.ROI_HEADS.NUM_CLASSES", str(classes)], names


def _classifier_width(config: Path, width: Fraction) -> list[str]:
    if width == 1:
        return []
    model = _read(config)["MODEL"]
    variant = parse_name(model["NAME"])
    scaled = replace(variant, width=_whole(variant.width, width)).name
    stem, res2 = model.get("STEM_OUT_CHANNELS", 64), model.get("RES2_OUT_CHANNELS", 256)
    return ["MODEL.NAME", scaled, "MODEL.STEM_OUT_CHANNELS", str(_whole(stem, width)), "MODEL.RES2_OUT_CHANNELS",
            str(_whole(res2, width))]  # fmt: skip


def _detector_width(config: Path, width: Fraction) -> list[str]:
    if width == 1:
        return []
    keys = {"WIDTH_PER_GROUP": 64, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256}
    keys |= {key: value for key, value in _read(config)["MODEL"]["RESNETS"].items() if key in keys}
    return [part for key, value in keys.items() for part in (f"MODEL.RESNETS.{key}", str(_whole(value, width)))]


def _read(config: str | Path) -> dict:
    return read_config(str(config))


def options_of(settings: Mapping, where: str, prefix: str = "") -> list[str]:
    """Settings, nested or with dots in their keys, as ``KEY VALUE ...``."""
    options: list[str] = []
    for key, value in settings.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise UserError(f"{where}: {shown(key)} is no key of a config")
        whole = prefix + key
        options += options_of(value, where, f"{whole}.") if isinstance(value, Mapping) else (whole, str(value))
    return options


def options_of_file(file: str | None) -> list[str]:
    """A YAML file's settings as ``KEY VALUE ...``."""
    settings = _read(file) if file else {}
    if not isinstance(settings, Mapping):
        raise UserError(f"--settings {file}: holds {type(settings).__name__}, not keys and values")
    return options_of(settings, f"--settings {file}")


def _whole(channels: int, width: Fraction) -> int:
    scaled = channels * width
    if scaled.denominator != 1 or scaled < 1:
        raise UserError(f"--width {width}: leaves {float(scaled):g} of {channels} channels; choose another factor")
    return int(scaled)


def read_results(command: Command) -> dict[str, Any] | None:
    """What ``results.json`` of a finished run holds; None where it is not finished."""
    fix = "remove it, and the run is evaluated again"
    return read_state(command.folder / RESULTS_FILE, METRICS, fix) if command.finished() else None


def table_text(number: int | str, rows: Sequence[str], seeds: Sequence[int], settings: Settings) -> str:
    """The table in Markdown: means over the finished seeds, and for several of them the single numbers below."""
    table = TABLES[number]
    measured = {name: _measured(number, name, seeds, settings) for name in rows}
    labels = {name: _label(table, name, settings) for name in rows}
    runs = {labels[name]: _mean(found, table.columns) for name, found in measured.items()}
    paper = {labels[name]: table.rows[name].paper for name in rows}
    digits = 1 if table.detection else 2
    text = [f"Table {number}: {table.title}", ""]
    if changes := _changes(settings):
        text += [f"A miniature ({changes}): only its lines can be compared with one another, not with the paper's.", ""]
    lines = {**runs, **dict.fromkeys(table.quoted)}
    numbers = {**paper, **table.quoted}
    text.append(results_table(lines, table.columns, paper=numbers, quoted=table.quoted, digits=digits))
    if len(seeds) > 1:
        text += ["", *_by_seed(table, {labels[name]: found for name, found in measured.items()}, digits)]
    return "\n".join(text)


def _changes(settings: Settings) -> str:
    """How the runs differ from the paper's, "" where they do not."""
    changes = [f"data {settings.data.name}"] if settings.data is not None else []
    changes += [f"{settings.width} of the channels"] if settings.width != 1 else []
    changes += [f"{len(settings.options) // 2} settings"] if settings.options else []
    return ", ".join(changes)


def _label(table: Table, name: str, settings: Settings) -> str:
    """The paper's name of a line, and the network that stands in for it in a miniature."""
    row = table.rows[name]
    keys = dict(zip(settings.options[::2], settings.options[1::2], strict=True))
    depth = keys.get("MODEL.RESNETS.DEPTH")
    if not table.detection and settings.width != 1:
        return f"{row.label}, here {_classifier_width(_config(row.config), settings.width)[1]}"
    if settings.width == 1 and depth is None:
        return row.label
    resnets = _read(_config(f"detection/coco/{row.config}_C4_1x.yaml"))["MODEL"]["RESNETS"]
    width = _whole(resnets["WIDTH_PER_GROUP"], settings.width)
    network = Variant(int(depth or resnets["DEPTH"]), resnets["NUM_GROUPS"], width)
    return f"{row.label}, here {network.depth} layers {network.template}"


def _measured(number: int | str, name: str, seeds: Sequence[int], settings: Settings) -> dict[int, Results]:
    found = {}
    for seed in seeds:
        results = read_results(plan(number, name, seed, settings)[-1])
        if results is not None:
            found[seed] = results.get("bbox", {}) if TABLES[number].detection else results
    return found


def _mean(found: Mapping[int, Results], metrics: Iterable[str]) -> Results | None:
    if not found:
        return None
    values = {metric: [_value(results.get(metric)) for results in found.values()] for metric in metrics}
    return {metric: sum(numbers) / len(numbers) for metric, numbers in values.items()}


def _value(number: float | None) -> float:
    return math.nan if number is None else number


def _by_seed(table: Table, by_label: Mapping[str, Mapping[int, Results]], digits: int) -> list[str]:
    lines = []
    for label, found in by_label.items():
        for metric, heading in table.columns.items():
            numbers = {seed: _value(results.get(metric)) for seed, results in found.items()}
            if len(numbers) > 1 and all(map(math.isfinite, numbers.values())):
                single = ", ".join(f"{n:.{digits}f} (seed {seed})" for seed, n in numbers.items())
                mean, spread = statistics.mean(numbers.values()), statistics.stdev(numbers.values())
                lines.append(f"{label}, {heading}: {mean:.{digits}f} ± {spread:.{digits}f}; {single}")
    return lines
