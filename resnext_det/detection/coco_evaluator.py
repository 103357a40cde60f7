"""COCO evaluation behind detectron2's evaluator interface: fast, in compact arrays, equal to pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO

from ..annotations.coco import Detections, read_ground_truth
from ..annotations.dataset import Dataset
from ..annotations.evaluation import SCORE_THRESHOLD, Evaluation, evaluate, log_reasons
from ..annotations.thresholds import match
from ..engine.processes import decided_by_main
from ..errors import UserError, listed
from ..images import MAX_MEGAPIXELS
from ..reporting.report import write_report
from .data.checked_sets import source_of
from .data.proposals import write_proposals

logger = logging.getLogger(__name__)

DETECTIONS_FILE = "coco_instances_results.json"
REPORT_FILE = "report.html"
PROPOSALS_FILE = "box_proposals.pkl"
PROPOSAL_LIMITS = (100, 1000)
PROPOSAL_AREAS = {"all": "", "small": "s", "medium": "m", "large": "l"}


def metric_names(class_names: Sequence[str], max_detections: int = 100, *, proposals: bool = False) -> list[str]:
    """What is better the higher it is, in an evaluation of detections or of proposals."""
    if proposals:
        return [f"AR{letter}@{limit}" for limit in PROPOSAL_LIMITS for letter in PROPOSAL_AREAS.values()]
    areas = list(PROPOSAL_AREAS.values())[1:]
    names = ["AP", "AP50", "AP75", "F1", *(f"AP{letter}" for letter in areas)]
    names += [f"AR{limit}" for limit in sorted({1, 10, max_detections})] + [f"AR{letter}" for letter in areas]
    return names + [f"{kind}-{name}" for kind in ("AP", "AP50", "F1") for name in class_names]


class FastCOCOEvaluator(DatasetEvaluator):
    """COCO metrics of a detector, in place of detectron2's ``COCOEvaluator``: same numbers, a tenth of the time.

    Detections are kept as arrays of about 40 bytes a box. Every process sends its own to the first. That one drops
    images that a sampler gave out twice, and evaluates. Nothing is cached between runs.

    Results: ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", …, "AP-<class>", "AP50-<class>"}}``, 0 to
    100, likewise ``segm`` and ``keypoints`` when the model gives them, and ``{"box_proposals": {"AR@100", …}}`` for
    proposals. NaN, with the reason logged, means no ground truth; no detections at all is AP 0. Boxes also have what
    :meth:`~resnext_det.annotations.thresholds.Matches.results` adds.

    Attributes:
        tables: of the last evaluation of boxes, :meth:`~resnext_det.annotations.thresholds.Matches.tables`.
    """

    def __init__(
        self,
        dataset_name: str | None = None,
        output_dir: str | os.PathLike | None = None,
        *,
        json_file: str | os.PathLike | None = None,
        category_ids: Mapping[int, int] | None = None,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        max_dets_per_image: int = 100,
        areas: Mapping[str, tuple[float, float]] | None = None,
        kpt_oks_sigmas: Sequence[float] = (),
        score_threshold: float | None = None,
        report: bool = False,
        truth: Dataset | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
    ):
        """
        Args:
            dataset_name: a set registered with detectron2; its metadata say the rest. Sets that are not in COCO's
                format are converted in memory.
            output_dir: where ``coco_instances_results.json`` (and ``box_proposals.pkl``) go; None writes nothing.
            json_file: COCO annotation file, in place of ``dataset_name``.
            category_ids: dataset category id -> contiguous class index of the model. By default the metadata's, else
                the file's ids in rising order.
            tasks: of ``bbox``, ``segm``, ``keypoints``; by default what the model gives.
            distributed: gather from all processes. False evaluates this one's detections.
            max_dets_per_image: COCO's limit per image and category for AP; keypoints keep COCO's 20.
            areas: {name: from, to} in square pixels, in place of COCO's sizes.
            kpt_oks_sigmas: as ``TEST.KEYPOINT_OKS_SIGMAS``; COCO's by default.
            score_threshold: ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` of the model, to warn when it costs AP.
            report: write ``report.html`` about the boxes into ``output_dir``.
            truth: the set as the check gave it, its classes in the model's order; else it is read here.
            max_megapixels: larger images are not shown on the page.

        Raises:
            UserError: unknown set, or unusable annotations; with ``distributed`` in all processes, which all build it.
        """
        if (dataset_name is None) == (json_file is None):
            raise UserError("evaluator: give a dataset_name or a json_file, one of them")
        self._name = str(dataset_name or json_file)
        self._set, self._json = dataset_name, json_file
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._tasks = None if tasks is None else tuple(tasks)
        self._distributed = distributed
        self._limits = tuple(sorted({1, 10, max_dets_per_image}))
        self._areas = areas
        self._kpt_oks_sigmas = tuple(kpt_oks_sigmas)
        self._score_threshold = score_threshold
        self._report = report
        self._max_megapixels = max_megapixels
        self._truth: Dataset | None = truth
        self.tables: dict[str, Any] = {}
        self._dataset_ids = None if truth is None else truth.category_ids

        def read() -> None:
            if self._truth is None:
                self._truth = self._read_truth("segm" in (self._tasks or ()))
                registered = None if dataset_name is None else MetadataCatalog.get(dataset_name)
                ids = category_ids or registered and registered.get("thing_dataset_id_to_contiguous_id")
                self._dataset_ids = _dataset_ids(ids, self._truth)

        # Mistakes show before hours of inference, in all processes; the others need no copy.
        decided_by_main(read) if distributed else read()
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._images: list[int] = []
        self._parts: list[Detections] = []  # one per image, category ids still the model's
        self._proposals: list[tuple[int, np.ndarray, np.ndarray]] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keep the detections (``instances``) and proposals of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: the model's dicts, boxes ``x0, y0, x1, y1`` in pixels of the original image.
        """
        for given, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                self._images.append(given["image_id"])
                self._parts.append(detections_of(output["instances"], given["image_id"]))
            if "proposals" in output:
                proposals = output["proposals"].to("cpu")
                boxes, logits = proposals.proposal_boxes.tensor.numpy(), proposals.objectness_logits.numpy()
                self._proposals.append((given["image_id"], boxes, logits))

    def evaluate(self, img_ids: Iterable[int] | None = None) -> dict[str, dict[str, float]]:
        """Gather, save and evaluate.

        Args:
            img_ids: evaluate these images only.

        Returns:
            See the class; ``{}`` on every process but the first, and where the set has no annotations.

        Raises:
            UserError: detections of images or classes that the set does not have.
        """
        own = _merged(self._images, self._parts)
        self._images, self._parts = own[0], [own[1]] if len(own[1]) else []
        if self._distributed and comm.get_world_size() > 1:
            gathered = comm.gather((self._images, own[1], self._proposals), dst=0)
            results = decided_by_main(lambda: self._rate(gathered, img_ids))
            return results if comm.is_main_process() else {}
        return self._rate([(self._images, own[1], self._proposals)], img_ids)

    def _rate(self, gathered: list[tuple], img_ids: Iterable[int] | None) -> dict[str, dict[str, float]]:
        """Save and evaluate what all processes have found."""
        images, detections, proposals = _without_repeats(gathered)
        detections = self._with_dataset_ids(detections)
        results: dict[str, dict[str, float]] = OrderedDict()
        if proposals:
            self._evaluate_proposals(proposals, results)
        if images or not proposals:
            self._evaluate_detections(images, detections, img_ids, results)
        return results

    def _with_dataset_ids(self, detections: Detections) -> Detections:
        classes = len(self._dataset_ids)
        strange = np.setdiff1d(detections.category_ids, np.arange(classes))
        if strange.size:
            raise UserError(
                f"the model predicts class {listed(strange.tolist())}, and {self._truth.source} has {classes} classes; "
                f"set MODEL.ROI_HEADS.NUM_CLASSES (RetinaNet: MODEL.RETINANET.NUM_CLASSES) to {classes}"
            )
        detections.category_ids = self._dataset_ids[detections.category_ids]
        detections.source = "the model's detections"
        return detections

    def _evaluate_detections(
        self, images: list[int], detections: Detections, img_ids: Iterable[int] | None, results: dict
    ) -> None:
        if self._output_dir is not None:
            path = self._output_dir / DETECTIONS_FILE
            detections.write_json(path)
            logger.info("%d detections saved to %s", len(detections), path)
        if not self._truth.annotated:
            logger.warning("%s has no annotations: detections are saved, AP is not computed.", self._truth.source)
            return
        unseen = len(np.setdiff1d(self._truth.image_ids if img_ids is None else list(img_ids), images))
        if unseen:
            logger.warning("%d images were never shown to the model; all their objects count as missed.", unseen)
        if self._score_threshold is not None and self._score_threshold > SCORE_THRESHOLD:
            logger.warning(
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST is %g: AP misses the detections below it. Set it to %g or less.",
                self._score_threshold,
                SCORE_THRESHOLD,
            )
        tasks = sorted(self._tasks or _tasks_of(detections))
        for task in tasks:
            try:
                evaluation = self._evaluate_task(task, detections, img_ids)
            except UserError as error:
                if len(tasks) == 1 or task == "bbox":
                    raise
                logger.error("no AP of %s: %s", task, error)  # the other numbers of a long evaluation stand
                continue
            results[task] = evaluation.results()
            if task == "bbox" and img_ids is None:
                matches = match(self._truth, detections, limit=self._limits[-1])
                results[task] |= matches.results()
                self.tables = matches.tables()
            total = {name: value for name, value in results[task].items() if "-" not in name}
            logger.info("Evaluation of %s:\n%s", task, create_small_table(total))
            log_reasons(evaluation, len(detections))
            if task == "bbox" and self._report and self._output_dir is not None:
                self._write_report(self._truth, detections, evaluation)

    def _evaluate_task(self, task: str, detections: Detections, img_ids: Iterable[int] | None) -> Evaluation:
        truth = self._truth
        if task == "segm" and truth.masks is None:
            truth = self._read_truth(True).in_order_of(truth.class_names)
        return evaluate(
            truth,
            detections,
            task,
            max_detections=None if task == "keypoints" else self._limits,
            areas=self._areas,
            image_ids=img_ids,
            kpt_oks_sigmas=self._kpt_oks_sigmas,
        )

    def _read_truth(self, with_masks: bool) -> Dataset:
        found = self._json if self._set is None else _ground_truth_of(self._set)
        return read_ground_truth(found, with_masks=with_masks)

    def _write_report(self, truth: Dataset, detections: Detections, evaluation: Evaluation) -> None:
        path = self._output_dir / REPORT_FILE
        root = None if self._set is None else MetadataCatalog.get(self._set).get("image_root")
        try:
            write_report(
                path, truth, detections, evaluation, image_root=root, title=self._name,
                max_megapixels=self._max_megapixels,
            )  # fmt: skip
            logger.info("report with curves and images: %s", path)
        except Exception:  # the numbers of a long evaluation are worth more than the page about them
            logger.exception("%s could not be written", path)

    def _evaluate_proposals(self, proposals: list[tuple[int, np.ndarray, np.ndarray]], results: dict) -> None:
        """Average recall of class-agnostic boxes, by detectron2's own function."""
        if self._output_dir is not None:
            write_proposals(self._output_dir / PROPOSALS_FILE, *zip(*proposals, strict=True))
        if not self._truth.annotated:
            logger.warning("%s has no annotations: proposals are saved, AR is not computed.", self._truth.source)
            return
        table = COCO()
        table.dataset = {
            "images": [{"id": i} for i in self._truth.image_ids.tolist()],
            "categories": [{"id": i} for i in self._truth.category_ids.tolist()],
            "annotations": self._truth.records(),
        }
        with contextlib.redirect_stdout(io.StringIO()):
            table.createIndex()
        predictions = []
        for image_id, boxes, logits in proposals:
            instances = Instances((0, 0))  # the size is not read
            instances.proposal_boxes = Boxes(torch.from_numpy(boxes))
            instances.objectness_logits = torch.from_numpy(logits)
            predictions.append({"image_id": image_id, "proposals": instances})
        metrics = {}
        for limit in PROPOSAL_LIMITS:
            for area, letter in PROPOSAL_AREAS.items():
                found = _evaluate_box_proposals(predictions, table, area=area, limit=limit)
                metrics[f"AR{letter}@{limit}"] = float(found["ar"].item() * 100)
        logger.info("Evaluation of box proposals:\n%s", create_small_table(metrics))
        results["box_proposals"] = metrics


def detections_of(instances: Instances, image_id: int) -> Detections:
    """The ``Instances`` that a detectron2 model gives for one image, as arrays. Category ids are the model's classes.

    Boxes become ``x, y, width, height`` in float32 and keypoints move by half a pixel, as in detectron2's evaluator.
    """
    instances = instances.to("cpu")
    boxes = instances.pred_boxes.tensor.numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    masks = mask_sizes = keypoints = None
    if instances.has("pred_masks"):
        columns = np.asarray(instances.pred_masks, dtype=np.uint8)
        encoded = [mask_tools.encode(np.asfortranarray(mask)) for mask in columns]
        masks = [mask["counts"] for mask in encoded]
        mask_sizes = np.array([mask["size"] for mask in encoded], dtype=np.int64).reshape(-1, 2)
    if instances.has("pred_keypoints"):
        points = instances.pred_keypoints.numpy().copy()
        points[:, :, :2] -= 0.5
        keypoints = points.reshape(len(points), points.shape[1] * points.shape[2])
    return Detections(
        np.full(len(boxes), image_id, dtype=np.int64),
        instances.pred_classes.numpy().astype(np.int64),
        boxes,
        instances.scores.numpy().astype(np.float64),
        masks,
        mask_sizes,
        keypoints,
    )


def _ground_truth_of(name: str) -> str | Mapping:
    """The file of a set in COCO's format, the content of a file in another format, or detectron2's records."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("labels_format") is not None:
        return source_of(name).document
    return metadata.get("json_file") or convert_to_coco_dict(name)


def _dataset_ids(category_ids: Mapping[int, int] | None, truth: Dataset) -> np.ndarray:
    """Dataset category id of each class of the model."""
    if not category_ids:
        return truth.category_ids
    by_class = sorted((index, dataset_id) for dataset_id, index in category_ids.items())
    if [index for index, _ in by_class] != list(range(len(by_class))):
        raise UserError(f"{truth.source}: the classes of the category mapping are not 0, 1, 2 …; number them so")
    return np.array([dataset_id for _, dataset_id in by_class], dtype=np.int64)


def _tasks_of(detections: Detections) -> list[str]:
    given = {"segm": detections.masks, "keypoints": detections.keypoints}
    return ["bbox", *(task for task, values in given.items() if values is not None)]


def _merged(images: list[int], parts: list[Detections]) -> tuple[list[int], Detections]:
    """One table of the detections of this process; of an image that came twice, the first time counts."""
    if len(set(images)) == len(images) or len(parts) != len(images):
        return images, Detections.concatenate(parts)
    first = {}
    for image, part in zip(images, parts, strict=True):
        first.setdefault(image, part)
    logger.info("%d images were predicted twice by one process; the first time counts.", len(images) - len(first))
    return list(first), Detections.concatenate(list(first.values()))


def _without_repeats(gathered: list[tuple]) -> tuple[list[int], Detections, list]:
    """Join the processes' detections and proposals; samplers may give an image to two of them."""
    seen: set[int] = set()
    parts, proposals, shown = [], [], set()
    repeated = 0
    for images, detections, own_proposals in gathered:
        again = seen & set(images)
        repeated += len(again)
        seen |= set(images)
        parts.append(detections.take(~np.isin(detections.image_ids, list(again))) if again else detections)
        for proposal in own_proposals:
            if proposal[0] not in shown:
                shown.add(proposal[0])
                proposals.append(proposal)
    if repeated:
        logger.info("%d images were predicted by two processes; the first one's detections count.", repeated)
    return sorted(seen), Detections.concatenate(parts), proposals
