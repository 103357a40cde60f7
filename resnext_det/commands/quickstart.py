"""The first run: handwritten digits classified, then found in scenes, by the same programs as any other training."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from ..engine.signals import command_line, run_command
from ..errors import UserError
from ..files import RESULTS_FILE, atomic_write, read_state

OUTPUT = Path("output/quickstart")
PRETRAIN, DETECTOR = OUTPUT / "pretrain", OUTPUT / "detector"
DIGITS = Path("datasets/digits/detection")
MINIVAL = DIGITS / "annotations/instances_minival.json"
SHOWN = 12  # scenes on the sheet

STEPS = (
    ("the data: scikit-learn's handwritten digits", ("make-digits",)),
    ("pretraining: what is a three", ("pretrain", "--config-file", "quickstart/pretrain.yaml", "--resume")),
    ("fine-tuning: where is it", ("train", "--config-file", "detection/quickstart.yaml", "--resume")),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every step that is not done yet, in ``output/quickstart``, and show the results.

    Raises:
        UserError: a step failed.
    """
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    start = time.perf_counter()
    for number, (title, command) in enumerate(STEPS, 1):
        print(f"\n[{number}/{len(STEPS)}] {title}\n    resnext-det {shlex.join(command)}\n", flush=True)
        if code := run_command(command_line(*command)):
            raise UserError(f"{command[0]} ended with code {code}; fix what it says and call quickstart again")
    print(f"\n{summary()}\n{draw()}\n{time.perf_counter() - start:.0f} seconds in all")


def summary() -> str:
    """The two trainings' numbers, from their ``results.json``."""
    again = "remove it and call quickstart again"
    errors = read_state(PRETRAIN / RESULTS_FILE, {"top1_error": float, "top5_error": float}, again)
    numbers = {"AP50": float, "AP": float, "AP75": float}
    boxes = read_state(DETECTOR / RESULTS_FILE, {"bbox": numbers}, again)["bbox"]
    return (
        f"classification of unseen digits: top-1 error {errors['top1_error']:.1f}%, top-5 {errors['top5_error']:.1f}%\n"
        f"detection in unseen scenes: AP@0.5 {boxes['AP50']:.1f}, AP {boxes['AP']:.1f}, AP@0.75 {boxes['AP75']:.1f}"
    )


def draw() -> str:
    """Write the sheet of detections and the curves of both runs; returns where they are."""
    from ..annotations.coco import Detections, read_ground_truth
    from ..reporting.curves import curves_figure, read_runs, save_figure
    from ..reporting.sheet import detections_sheet

    truth = read_ground_truth(MINIVAL)
    detections = Detections.from_json(DETECTOR / "inference/digits_minival/coco_instances_results.json")
    sheet = detections_sheet(truth, detections, DIGITS / "minival", truth.image_ids[:SHOWN].tolist())
    with atomic_write(OUTPUT / "detections.png", "wb") as file:
        sheet.save(file, format="PNG")
    for run in (PRETRAIN, DETECTOR):
        save_figure(curves_figure(read_runs([run])), OUTPUT / f"{run.name}_curves.png")
    report = DETECTOR / "inference/digits_minival/report.html"
    return "\n".join(
        f"{kind}: {path}"
        for kind, path in (
            ("detections", OUTPUT / "detections.png"),
            ("curves", OUTPUT / "pretrain_curves.png"),
            ("curves", OUTPUT / "detector_curves.png"),
            ("report", report),
        )
    )
