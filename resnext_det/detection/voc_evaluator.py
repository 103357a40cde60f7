"""Pascal VOC's evaluation behind detectron2's evaluator interface, COCO's numbers beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import create_small_table

from ..annotations.coco import Detections
from ..annotations.voc_evaluation import YEARS, evaluate_voc, rounded
from ..errors import UserError
from .coco_evaluator import FastCOCOEvaluator, detections_of

logger = logging.getLogger(__name__)


class VOCEvaluator(FastCOCOEvaluator):
    """VOC's metrics in place of detectron2's ``PascalVOCDetectionEvaluator``: equal digits on any number of processes.

    Results: ``{"bbox": {"AP", "AP50", "AP75", "AP-<class>", ...}, "coco": {...}}``; ``coco`` holds COCO's numbers of
    the boxes, in which objects marked difficult count like others.
    """

    def __init__(self, dataset_name: str, *args, year: int | None = None, rounding: bool = True, **options) -> None:
        """
        Args:
            dataset_name, args, options: see :class:`FastCOCOEvaluator`.
            year: 2007 for the metric of eleven points, 2012 for the area; the set's own by default.
            rounding: scores of three decimals and boxes of one, as detectron2 writes them.

        Raises:
            UserError: another year; unusable annotations.
        """
        self._year = year or MetadataCatalog.get(dataset_name).get("year", YEARS[1])
        if self._year not in YEARS:
            raise UserError(f"{dataset_name}: no metric of the year {self._year}; choose {YEARS[0]} or {YEARS[1]}")
        self._rounding = rounding
        super().__init__(dataset_name, *args, **options)

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keep the detections of a batch; see :meth:`FastCOCOEvaluator.process`."""
        super().process(inputs, [{k: v for k, v in output.items() if k != "instances"} for output in outputs])
        for given, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                part = detections_of(output["instances"], given["image_id"])
                # Corners until the evaluation: x + width would not be the model's x in every digit.
                part.boxes = output["instances"].pred_boxes.tensor.cpu().numpy().copy()
                self._images.append(given["image_id"])
                self._parts.append(part)

    def _evaluate_detections(
        self, images: list[int], detections: Detections, img_ids: Iterable[int] | None, results: dict
    ) -> None:
        corners = detections.boxes.copy()
        detections.boxes[:, 2:] -= detections.boxes[:, :2]
        super()._evaluate_detections(images, detections, img_ids, results)
        if "bbox" not in results:
            return
        coco = results.pop("bbox")
        chosen = None if img_ids is None else set(img_ids)
        classes = {dataset_id: k for k, dataset_id in enumerate(self._dataset_ids.tolist())}
        objects = []
        for record, difficult in zip(self._truth.records(), self._truth.difficult.tolist(), strict=True):
            if chosen is None or record["image_id"] in chosen:
                x, y, w, h = record["bbox"]
                place = (record["image_id"], classes[record["category_id"]])
                objects.append((*place, (x + 1, y + 1, x + w, y + h), difficult))
        corners[:, :2] += 1
        scores = detections.scores
        if self._rounding:
            corners, scores = rounded(corners, scores)
        names = dict(zip(self._truth.category_ids.tolist(), self._truth.class_names, strict=True))
        evaluation = evaluate_voc(
            objects,
            detections.image_ids,
            np.array([classes[i] for i in detections.category_ids.tolist()], dtype=np.int64),
            corners,
            scores,
            [names[i] for i in classes],
            eleven_points=self._year == YEARS[0],
        )
        results |= {"bbox": evaluation.results(), "coco": coco}
        empty = [n for n, row in zip(evaluation.class_names, evaluation.precision, strict=True) if np.isnan(row).any()]
        if empty:
            logger.warning("AP is NaN: no object that counts, yet detections, of %s", ", ".join(empty))
        total = {name: value for name, value in results["bbox"].items() if "-" not in name}
        logger.info("Evaluation by VOC%d's metric:\n%s", self._year, create_small_table(total))
