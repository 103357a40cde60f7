"""The check as a whole: from a JSON file and a folder to findings, counts and the data set to train on."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError, counted
from ...files import atomic_write, shown
from .. import columns
from .. import masks as masks_room
from ..dataset import Dataset, Texts, texts_of_json
from ..image_dicts import dataset_dicts
from ..reading import read_json
from ..records import Records, open_document
from . import tables
from .files import check_files
from .findings import Findings, some
from .objects import Annotations, check_annotations
from .options import ClassCount, Options

logger = logging.getLogger(__name__)

__all__ = ["CheckedDataset", "ClassCount", "Options", "check_coco", "dataset_dicts", "inspect_coco", "inspect_document"]


@dataclass
class CheckedDataset:
    """A data set with what was found in it. The tables hold the fixed records.

    Attributes:
        json_file, image_root: where it is from.
        document: the JSON as read.
        findings: everything found.
        images, categories, annotations: tables; None where errors left nothing to read them from. ``annotations`` is
            also None where the document has none (a test set).
    """

    json_file: str
    image_root: str | None
    document: dict
    findings: Findings
    images: tables.Images | None = None
    categories: tables.Categories | None = None
    annotations: Annotations | None = None

    @property
    def errors(self) -> int:
        """How many records have errors."""
        return self.findings.count("error")

    @property
    def warnings(self) -> int:
        """How many records have warnings."""
        return self.findings.count("warning")

    def kept(self) -> np.ndarray:
        """Mask over the annotations: usable, and of a usable image."""
        images, table = self.images, self.annotations
        assert images is not None and table is not None
        if not len(images.ids):
            return np.zeros_like(table.keep)
        return table.keep & images.keep[table.image]

    def changed(self) -> bool:
        """Whether a record was fixed or left out."""
        images, table = self.images, self.annotations
        assert images is not None
        if not images.keep.all() or len(images.ids) < len(self.document["images"]):
            return True
        if table is None:
            return False
        same = (table.boxes == table.given).all() and (table.areas == table.given_areas).all()
        return not (same and self.kept().all())

    def lost(self) -> dict[str, int]:
        """What :meth:`fixed` leaves out: {kind: how many}, of kinds that have any."""
        images, table = self.images, self.annotations
        assert images is not None
        twice = len(self.document["images"]) - len(images.ids)
        left_out = int((~images.keep).sum())
        counts = {"image records with an unusable or repeated id or name": twice, "missing or broken images": left_out}
        if table is not None:
            of_lost = (table.image < 0) | ~images.keep[table.image] if len(images.ids) else np.ones_like(table.keep)
            counts |= {
                "objects of such images, or of none": int(of_lost.sum()),
                "objects without a usable box or class": int((~table.keep & ~of_lost).sum()),
            }
        return {kind: number for kind, number in counts.items() if number}

    def raise_errors(self) -> None:
        """Raises UserError, one line, for the first error."""
        errors = self.findings.of("error")
        if not errors:
            return
        more = self.errors - 1
        images = "FOLDER" if self.image_root is None else self.image_root
        tail = f"; {more} more: run tools/check_dataset.py --json {self.json_file} --images {images} for the list"
        raise UserError(f"{errors[0]}{tail if more else ''}")

    def metadata(self) -> dict:
        """detectron2's names for the classes: ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``."""
        assert self.categories is not None
        return {
            "thing_classes": list(self.categories.names),
            "thing_dataset_id_to_contiguous_id": {value: i for i, value in enumerate(self.categories.ids)},
        }

    def dataset(self, *, as_written: bool = False, masks: bool = False) -> Dataset:
        """The set as one value; images by rising id.

        Args:
            as_written: boxes, areas and images count as the file has them, for an evaluation equal to pycocotools';
                else what was fixed, without what was left out.
            masks: keep segmentations.

        Raises:
            UserError: there are errors that leave nothing to read.
        """
        images, categories, table = self.images, self.categories, self.annotations
        if images is None or categories is None:
            self.raise_errors()
            raise UserError(f"{self.json_file}: no usable images or categories")
        chosen = np.flatnonzero(images.keep | as_written)
        chosen = chosen[np.argsort(images.ids[chosen], kind="stable")]
        common: dict[str, Any] = {
            "source": self.json_file,
            "image_root": self.image_root,
            "image_ids": images.ids[chosen],
            "file_names": Texts.of(images.file_names[i] for i in chosen.tolist()),
            "widths": images.widths[chosen],
            "heights": images.heights[chosen],
            "category_ids": columns.integers(categories.ids, wide=True).values,
            "class_names": list(categories.names),
        }
        if table is None:
            none = np.zeros(0, dtype=np.int64)
            return Dataset(
                **common, annotation_ids=none, image=none, category=none, boxes=np.zeros((0, 4)), areas=np.zeros(0),
                iscrowd=none, difficult=none.astype(bool), annotated=False,
            )  # fmt: skip
        rows = np.flatnonzero(table.known if as_written else self.kept())
        by_image = images.ids[table.image[rows]]
        if (by_image[1:] < by_image[:-1]).any():
            rows = rows[np.argsort(by_image, kind="stable")]
        all_rows = len(rows) == len(table.ids) and (rows[1:] > rows[:-1]).all()
        chosen_rows = slice(None) if all_rows else rows  # all of them: no copies
        place = np.full(len(images.ids), -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        records: Records = table.records
        difficult, visible = records.table["difficult"].values, records.table["num_keypoints"]
        texts: dict[str, Texts] = {}
        for key, usable in (("segmentation", _segmentation), ("keypoints", _points)):
            there = records.table[key].values[rows]
            if there.any() if key == "keypoints" else masks:
                found = (usable(record[key]) for record in records.those(rows[there]))
                texts[key] = texts_of_json(next(found) if some else None for some in there.tolist())
        points = texts.get("keypoints")
        if points is not None and not len(points.data):
            points = None
        numbers = np.where(visible.missing, -1, visible.values)
        numbers[[*visible.bad, *visible.cast]] = -1
        return Dataset(
            **common,
            annotation_ids=table.ids[chosen_rows],
            image=place[table.image[chosen_rows]],
            category=table.category[chosen_rows],
            boxes=(table.given if as_written else table.boxes)[chosen_rows],
            areas=(table.given_areas if as_written else table.areas)[chosen_rows],
            iscrowd=table.iscrowd[chosen_rows],
            difficult=difficult[chosen_rows],
            masks=texts.get("segmentation"),
            keypoints=points,
            num_keypoints=None if points is None else numbers[chosen_rows],
        )

    def dataset_dicts(self, *, masks: bool = False, keypoints: bool = False) -> list[dict]:
        """:func:`dataset_dicts` of what was fixed."""
        return dataset_dicts(self.dataset(masks=masks), keypoints=keypoints)

    def fixed(self) -> dict:
        """The document with the fixed records, for ``--fix`` and as the ground truth of an evaluation."""
        document = dict(self.document)
        images, categories = self.images, self.categories
        assert images is not None and categories is not None
        source = document["images"]
        document["images"] = [
            {
                **source[row],
                "id": image_id,
                **({"width": width, "height": height} if width and height else {}),
            }
            for row, image_id, width, height, keep in zip(
                *(c.tolist() for c in (images.rows, images.ids, images.widths, images.heights, images.keep)),
                strict=True,
            )
            if keep
        ]
        source = document["categories"]
        document["categories"] = [
            {**source[row], "id": value} for row, value in zip(categories.rows, categories.ids, strict=True)
        ]
        table = self.annotations
        if table is not None:
            source = document["annotations"]
            rows = np.flatnonzero(self.kept())
            category_ids = np.array(categories.ids, dtype=np.int64)[table.category[rows]]
            fixed = (images.ids[table.image[rows]], category_ids, table.boxes[rows], table.areas[rows])
            document["annotations"] = []
            for row, annotation_id, crowd, image_id, category_id, box, area in zip(
                rows.tolist(),
                table.ids[rows].tolist(),
                table.iscrowd[rows].tolist(),
                *(column.tolist() for column in fixed),
                strict=True,
            ):
                record = {
                    **source[row],
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": crowd,
                }
                segmentation = record.get("segmentation")
                if segmentation and masks_room.fault(segmentation):
                    record["segmentation"] = []
                document["annotations"].append(record)
        return document


def _segmentation(value: Any) -> Any:
    """The segmentation where it is a usable one: polygons, or run lengths in the compressed text all readers know."""
    if not value or masks_room.fault(value):
        return None
    if isinstance(value, dict):
        return {"size": value["size"], "counts": masks_room.compressed(value["counts"]).decode("ascii")}
    return value


def _points(value: Any) -> list | None:
    """The keypoints where they are usable ones."""
    usable = isinstance(value, list) and len(value) % 3 == 0 and all(map(masks_room.finite_number, value))
    return value if usable else None


def read_document(json_file: str | Path, hint: str = "give the annotations' JSON file") -> dict:
    """The document in ``json_file``; ``hint`` follows "no such file".

    Raises:
        UserError: missing, not JSON (where, and the likely reason), or not a COCO document.
    """
    return _object(read_json(json_file, hint), json_file)


def open_set(json_file: str | Path, hint: str = "give the annotations' JSON file") -> dict:
    """:func:`read_document` for a check alone: images and annotations are :class:`~..records.Records`, no lists."""
    return _object(open_document(json_file, hint), json_file)


def _object(document: Any, json_file: str | Path) -> dict:
    if not isinstance(document, dict):
        why = (
            "this looks like a results file; give the ground truth (are --gt and --dt swapped?)"
            if isinstance(document, list)
            else "see COCO's format"
        )
        raise UserError(f"{shown(json_file)}: is not an object with images, annotations and categories; {why}")
    return document


def inspect_document(
    document: dict,
    json_file: str | Path,
    image_root: str | Path | None,
    options: Options | None = None,
    **changes: Any,
) -> CheckedDataset:
    """Everything that is to be found in a parsed document and its images. Raises nothing for what it finds.

    Args:
        document: as read; it is not changed.
        json_file: its file, for messages.
        image_root: folder of the images; None for ground truth alone, whose records count as they are written.
        options, changes: what is looked for; :class:`Options`, and single values in place of its.
    """
    options = replace(options or Options(), **changes)
    truth = image_root is None
    findings = Findings(str(json_file), options.listed)
    checked = CheckedDataset(str(json_file), None if truth else str(image_root), document, findings)
    wanted = ["images", "categories"] + (["annotations"] if "annotations" in document or options.for_training else [])
    absent = [key for key in wanted if key not in document]
    for key in absent:
        findings.add("error", f"no-{key}", "is missing", f"add the list {key!r}", field=key)
    rows = {key: tables.records(document, key, findings) for key in wanted if key not in absent}
    if "annotations" not in wanted and not truth:
        findings.add(
            "warning", "no-annotations", "is missing: fit for inference, not for training or AP", "nothing to do",
            field="annotations",
        )  # fmt: skip
    if (images := rows.get("images")) is not None:
        checked.images = tables.check_images(images, findings, truth=truth)
        if image_root is not None:
            check_files(
                checked.images,
                Path(image_root),
                findings,
                check_images=options.check_images,
                decode=options.decode,
                policy=options.policy,
                max_megapixels=options.max_megapixels,
                channels=options.channels,
                follow_links=options.follow_links,
                workers=options.workers or os.cpu_count() or 1,
            )
    annotations = rows.get("annotations")
    if (categories := rows.get("categories")) is not None:
        used = [] if annotations is None else np.unique(annotations.table["category_id"].values).tolist()
        checked.categories = tables.check_categories(
            categories, set(used), findings, drop_unused_root=options.drop_unused_root, truth=truth
        )
    if checked.categories is not None:
        _compare_classes(checked.categories, options, findings)
        if checked.images is not None and annotations is not None:
            checked.annotations = check_annotations(
                annotations, checked.images, checked.categories, findings, options, truth=truth
            )
            if options.for_training and not checked.kept().any():
                findings.add("error", "no-boxes", "holds no usable box", "annotate objects", field="annotations")
    if options.strict:
        _make_strict(findings)
    return checked


def refuse_classes(dataset: Dataset, options: Options) -> None:
    """Raises UserError where the classes of a set that was checked before are not those looked for."""
    findings = Findings(dataset.source, options.listed)
    _compare_classes(tables.Categories([], dataset.class_names, []), options, findings)
    CheckedDataset(dataset.source, dataset.image_root, {}, findings).raise_errors()


def _compare_classes(categories: tables.Categories, options: Options, findings: Findings) -> None:
    found, model = len(categories.names), options.model_classes
    if model is not None and found != model.number:
        findings.add(
            "error", "num-classes", f"has {counted(found, 'class')}, the model {model.number}",
            f"set {model.key} {found}", field="categories",
        )  # fmt: skip
    expected = options.expected_names
    if expected is not None and set(categories.names) != set(expected):
        lacking = [name for name in expected if name not in categories.names]
        extra = [name for name in categories.names if name not in expected]
        findings.add(
            "error", "categories-differ", f"differs from the training set: lacks {some(lacking, 5) or 'none'}, has "
            f"instead {some(extra, 5) or 'none'}", "use the same names in both", field="categories",
        )  # fmt: skip


def _make_strict(findings: Findings) -> None:
    import dataclasses
    from collections import Counter

    def harder(severity: str) -> str:
        return "error" if severity == "warning" else severity

    findings.items = [dataclasses.replace(item, severity=harder(item.severity)) for item in findings.items]
    counts: Counter[tuple[str, str]] = Counter()
    for (severity, code), n in findings.counts.items():
        counts[(harder(severity), code)] += n
    findings.counts = counts


def inspect_coco(
    json_file: str | Path, image_root: str | Path | None, options: Options | None = None, **changes: Any
) -> CheckedDataset:
    """:func:`inspect_document` of a file."""
    return inspect_document(open_set(json_file), json_file, image_root, options, **changes)


def check_coco(
    json_file: str | Path, image_root: str | Path, options: Options | None = None, **changes: Any
) -> CheckedDataset:
    """The check before training: logs the warnings, and raises for errors.

    Raises:
        UserError: one line, the first error and how many more there are.
    """
    checked = inspect_coco(json_file, image_root, options, **changes)
    checked.raise_errors()
    for finding in checked.findings.of("warning"):
        logger.warning("%s", finding)
    return checked


def write_fixed(checked: CheckedDataset, out: str | Path, *, drop: bool = False) -> dict:
    """Writes :meth:`CheckedDataset.fixed` to the new file ``out``, whole or not at all, and returns it.

    Args:
        drop: leave out the images and objects that are unusable; they are counted in the log.

    Raises:
        UserError: ``out`` exists (the original is never touched), the document cannot be fixed, something would be
            left out without ``drop``, or no image would be left.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise UserError(f"{shown(out)}: --fix writes a new file and this one exists; choose another name")
    if checked.images is None or checked.categories is None:
        checked.raise_errors()
    assert checked.images is not None
    lost = checked.lost()
    what = ", ".join(f"{number} {kind}" for kind, number in lost.items())
    if not checked.images.keep.any():
        raise UserError(
            f"{shown(out)}: nothing would be left of {shown(checked.json_file)} ({what}); it is not written"
        )
    if lost and not drop:
        raise UserError(f"{shown(out)}: --fix would leave out {what}; correct them, or add --fix-drop to drop them")
    if lost:
        logger.warning("%s: left out are %s", shown(out), what)
    document = checked.fixed()
    try:
        with atomic_write(out) as file:
            json.dump(document, file)
    except OSError as error:
        raise UserError(f"{shown(out)}: cannot be written ({error.strerror}); check the folder and its space") from None
    return document


def report(checked: CheckedDataset) -> str:
    """Findings and counts for people to read; names from the data are shown plain."""
    lines = []
    for severity in ("error", "warning", "note"):
        lines += [f"{severity}: {finding}" for finding in checked.findings.of(severity)]
    lines += [
        f"{severity} {code}: {n} in all, {checked.findings.listed} listed"
        for (severity, code), n in checked.findings.counts.items()
        if n > checked.findings.listed
        and sum(i.code == code for i in checked.findings.items) >= checked.findings.listed
    ]
    images, table, categories = checked.images, checked.annotations, checked.categories
    if images is not None and len(images.ids):
        lines.append(f"images: {int(images.keep.sum())} used of {len(checked.document['images'])}")
        for side, values in (("width", images.widths[images.keep]), ("height", images.heights[images.keep])):
            if len(values):
                lines.append(f"  {side}: {values.min()} to {values.max()}, median {np.median(values):g}")
    if categories is not None:
        lines.append(f"categories: {len(categories.ids)}")
    if table is not None and images is not None and categories is not None:
        kept = checked.kept()
        crowds = kept & (table.iscrowd == 1)
        negatives = int(images.keep.sum()) - len(np.unique(table.image[kept]))
        lines.append(
            f"annotations: {int(kept.sum())} used of {len(kept)}, {int((~kept).sum())} left out, "
            f"{int(crowds.sum())} crowds; {negatives} images without objects"
        )
        side = np.sqrt(table.areas[kept])
        lines.append(
            f"  small (< 32²) {int((side < 32).sum())}, medium {int(((side >= 32) & (side < 96)).sum())}, "
            f"large (>= 96²) {int((side >= 96).sum())}"
        )
        counts = np.bincount(table.category[kept], minlength=len(categories.ids))
        lines.append("  class index, id, name, annotations:")
        lines += [
            f"  {i:>5} {value:>6} {shown(name)}: {counts[i]}"
            for i, (value, name) in enumerate(zip(categories.ids, categories.names, strict=True))
        ]
    lines.append(f"{counted(checked.errors, 'error')}, {counted(checked.warnings, 'warning')}")
    return "\n".join(lines)
