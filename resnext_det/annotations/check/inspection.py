"""The check as a whole: from a JSON file and a folder to findings, counts and the data set to train on."""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...images import MAX_MEGAPIXELS
from . import rules
from .files import check_files
from .findings import Findings, some

logger = logging.getLogger(__name__)


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
    image_root: str
    document: dict
    findings: Findings
    images: rules.Images | None = None
    categories: rules.Categories | None = None
    annotations: rules.Annotations | None = None

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
        table = self.annotations
        if not len(self.images.ids):
            return np.zeros_like(table.keep)
        return table.keep & self.images.keep[table.image]

    def raise_errors(self) -> None:
        """Raises UserError, one line, for the first error."""
        errors = self.findings.of("error")
        if not errors:
            return
        more = self.errors - 1
        tail = (
            f"; {more} more: run tools/check_dataset.py --json {self.json_file} --images {self.image_root} for the list"
        )
        raise UserError(f"{errors[0]}{tail if more else ''}")

    def metadata(self) -> dict:
        """detectron2's names for the classes: ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``."""
        return {
            "thing_classes": list(self.categories.names),
            "thing_dataset_id_to_contiguous_id": {value: i for i, value in enumerate(self.categories.ids)},
        }

    def dataset_dicts(self, *, masks: bool = False, keypoints: bool = False) -> list[dict]:
        """detectron2's standard dicts, in the order of image ids; boxes are XYWH_ABS, classes contiguous.

        Images without objects stay, with an empty list. ``masks`` adds ``segmentation`` where it is valid,
        ``keypoints`` those, in detectron2's continuous coordinates. A set without annotations has no key
        ``annotations``.
        """
        from detectron2.structures import BoxMode

        images = self.images
        dicts: list[dict | None] = [None] * len(images.ids)
        for i in np.flatnonzero(images.keep).tolist():
            dicts[i] = {
                "file_name": os.path.join(self.image_root, images.file_names[i]),
                "height": int(images.heights[i]),
                "width": int(images.widths[i]),
                "image_id": int(images.ids[i]),
            }
        table = self.annotations
        if table is not None:
            for record in dicts:
                if record is not None:
                    record["annotations"] = []
            rows = np.flatnonzero(self.kept())
            columns = (table.image, table.boxes, table.category, table.iscrowd)
            for row, image, box, category, crowd in zip(
                rows.tolist(), *(column[rows].tolist() for column in columns), strict=True
            ):
                annotation = {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": category,
                    "iscrowd": crowd,
                }
                source = self.document["annotations"][row]
                if masks and rules.valid_segmentation(source.get("segmentation")):
                    annotation["segmentation"] = _compressed(source["segmentation"])
                if keypoints and source.get("keypoints"):
                    points = source["keypoints"]
                    annotation["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(points)]
                dicts[image]["annotations"].append(annotation)
        return [dicts[i] for i in np.argsort(images.ids, kind="stable").tolist() if dicts[i] is not None]

    def mended(self) -> dict:
        """The document with the fixed records, for ``--fix`` and as the ground truth of an evaluation."""
        document = dict(self.document)
        images = self.images
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
            {**source[row], "id": value} for row, value in zip(self.categories.rows, self.categories.ids, strict=True)
        ]
        table = self.annotations
        if table is not None:
            source = document["annotations"]
            rows = np.flatnonzero(self.kept())
            category_ids = np.array(self.categories.ids)[table.category[rows]]
            columns = (images.ids[table.image[rows]], category_ids, table.boxes[rows], table.areas[rows])
            document["annotations"] = []
            for row, annotation_id, crowd, image_id, category_id, box, area in zip(
                rows.tolist(),
                table.ids[rows].tolist(),
                table.iscrowd[rows].tolist(),
                *(column.tolist() for column in columns),
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
                if segmentation and not rules.valid_segmentation(segmentation):
                    record["segmentation"] = []
                document["annotations"].append(record)
        return document


def _compressed(segmentation: list | dict) -> list | dict:
    """detectron2 reads polygons and compressed run lengths only."""
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], str):
        return segmentation
    from pycocotools import mask

    return mask.frPyObjects(segmentation, *segmentation["size"])


def read_json(json_file: str | Path, hint: str = "give the annotations' JSON file") -> dict:
    """The document in ``json_file``; ``hint`` follows "no such file".

    Raises:
        UserError: missing, not JSON (where, and the likely reason), or not a COCO document.
    """
    path = Path(json_file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; write it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the path and its permissions") from None
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(_json_error(path, text, error)) from None
    except (RecursionError, ValueError) as error:  # very deep nesting, integers of thousands of digits
        raise UserError(f"{path}: not usable JSON ({error}); write it again") from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(document, dict):
        hint = (
            "this looks like a results file; give the ground truth"
            if isinstance(document, list)
            else "see COCO's format"
        )
        raise UserError(f"{path}: is not an object with images, annotations and categories; {hint}")
    return document


def _json_error(path: Path, text: str, error: json.JSONDecodeError) -> str:
    near = text[error.pos : error.pos + 40]
    if near.startswith(("np.", "numpy.", "int64(", "float32(", "array(", "tensor(")):
        why = f"numpy's notation {' '.join(near.split())[:20]!r}: convert with int(), float() or .tolist()"
    elif not near.strip() or error.msg.startswith("Unterminated"):
        why = "the file ends in the middle: copy it again; if json.dump stopped at a numpy integer, use int()"
    else:
        why = f"{error.msg.lower()}: correct it there"
    return f"{path}: not JSON at line {error.lineno}, column {error.colno}; {why}"


def inspect_document(
    document: dict,
    json_file: str | Path,
    image_root: str | Path,
    *,
    model_classes: ClassCount | None = None,
    expected_categories: dict[int, str] | None = None,
    check_images: bool = True,
    decode: bool = True,
    policy: str = "error",
    max_megapixels: float = MAX_MEGAPIXELS,
    follow_links: bool = False,
    drop_unused_root: bool = False,
    for_training: bool = False,
    strict: bool = False,
    workers: int | None = None,
    listed: int = 20,
) -> CheckedDataset:
    """Everything that is to be found in a parsed document and its images. Raises nothing for what it finds.

    Args:
        model_classes: how many the model has, where that is to be compared.
        expected_categories: {id: name} of the training set, for a set to evaluate on.
        check_images: open every image; else only see that it is there.
        decode: decode it whole, which finds truncated files; else read its header.
        policy: for broken images, one of :data:`resnext_det.images.POLICIES`.
        max_megapixels: larger images are errors.
        follow_links: allow symbolic links that lead out of the folder.
        drop_unused_root: leave out a supercategory that stands among the categories without annotations.
        for_training: annotations are required, and at least one usable box.
        strict: warnings are errors.
        workers: threads that read images; None is one per core.
        listed: findings of a kind that are kept in full; the others are counted.
    """
    findings = Findings(str(json_file), listed)
    checked = CheckedDataset(str(json_file), str(image_root), document, findings)
    wanted = ["images", "categories"] + (["annotations"] if "annotations" in document or for_training else [])
    absent = [key for key in wanted if key not in document]
    for key in absent:
        findings.add("error", f"no-{key}", "is missing", f"add the list {key!r}", field=key)
    rows = {key: rules.records(document, key, findings) for key in wanted if key not in absent}
    if "annotations" not in wanted:
        findings.add(
            "warning", "no-annotations", "is missing: fit for inference, not for training or AP", "nothing to do",
            field="annotations",
        )  # fmt: skip
    if rows.get("images") is not None:
        checked.images = rules.check_images(rows["images"], findings)
        check_files(
            checked.images,
            Path(image_root),
            findings,
            check_images=check_images,
            decode=decode,
            policy=policy,
            max_megapixels=max_megapixels,
            follow_links=follow_links,
            workers=workers or os.cpu_count() or 1,
        )
    annotations = rows.get("annotations")
    if rows.get("categories") is not None:
        used = rules.columns.integers(rules.columns.get(annotations or [], "category_id")).values
        checked.categories = rules.check_categories(
            rows["categories"], set(np.unique(used).tolist()), findings, drop_unused_root
        )
    if checked.categories is not None:
        _expected(checked.categories, model_classes, expected_categories, findings)
        if checked.images is not None and annotations is not None:
            checked.annotations = rules.check_annotations(annotations, checked.images, checked.categories, findings)
            if for_training and not checked.kept().any():
                findings.add("error", "no-boxes", "holds no usable box", "annotate objects", field="annotations")
    if strict:
        _make_strict(findings)
    return checked


def _expected(categories, model: ClassCount | None, expected: dict[int, str] | None, findings: Findings) -> None:
    found = len(categories.ids)
    if model is not None and found != model.number:
        findings.add(
            "error", "num-classes", f"has {found} classes, the model {model.number}",
            f"set {model.key} {found}", field="categories",
        )  # fmt: skip
    actual = dict(zip(categories.ids, categories.names, strict=True))
    if expected is not None and actual != expected:
        lacking = [(k, v) for k, v in expected.items() if actual.get(k) != v]
        extra = [(k, v) for k, v in actual.items() if expected.get(k) != v]
        findings.add(
            "error", "categories-differ", f"differs from the training set: lacks {some(lacking, 5) or 'none'}, has "
            f"instead {some(extra, 5) or 'none'}", "use the same ids and names in both", field="categories",
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


def inspect_coco(json_file: str | Path, image_root: str | Path, **options) -> CheckedDataset:
    """:func:`inspect_document` of a file; ``options`` are its."""
    return inspect_document(read_json(json_file), json_file, image_root, **options)


def check_coco(json_file: str | Path, image_root: str | Path, **options) -> CheckedDataset:
    """The check before training: logs the warnings, and raises for errors.

    ``options`` are those of :func:`inspect_document`.

    Raises:
        UserError: one line, the first error and how many more there are.
    """
    checked = inspect_coco(json_file, image_root, **options)
    checked.raise_errors()
    for finding in checked.findings.of("warning"):
        logger.warning("%s", finding)
    return checked


def load_checked(
    json_file: str | Path, image_root: str | Path, name: str | None = None, *, masks: bool = False, **options
) -> list[dict]:
    """detectron2's dataset dicts of a checked set: what was checked is what is trained on.

    Args:
        name: sets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of this data set in the MetadataCatalog.
        masks: see :meth:`CheckedDataset.dataset_dicts`.
        options: those of :func:`inspect_document`.

    Raises:
        UserError: as :func:`check_coco`.
    """
    checked = check_coco(json_file, image_root, **options)
    if name is not None:
        from detectron2.data import MetadataCatalog

        MetadataCatalog.get(name).set(**checked.metadata())
    return checked.dataset_dicts(masks=masks)


def write_fixed(checked: CheckedDataset, out: str | Path) -> dict:
    """Writes :meth:`CheckedDataset.mended` to the new file ``out``, whole or not at all, and returns it.

    Raises:
        UserError: ``out`` exists (the original is never touched), or the document cannot be fixed.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out}: --fix writes a new file and this one exists; choose another name")
    if checked.images is None or checked.categories is None:
        checked.raise_errors()
    document = checked.mended()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=out.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); check the folder and its space") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
    return document


def report(checked: CheckedDataset) -> str:
    """Findings and counts for people to read."""
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
    if table is not None:
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
            f"  {i:>5} {value:>6} {name}: {counts[i]}"
            for i, (value, name) in enumerate(zip(categories.ids, categories.names, strict=True))
        ]
    lines.append(f"{checked.errors} errors, {checked.warnings} warnings")
    return "\n".join(lines)


@dataclass(frozen=True)
class ClassCount:
    number: int
    key: str = "MODEL.ROI_HEADS.NUM_CLASSES"
