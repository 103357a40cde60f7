"""Valid inputs of every command, and what must hold of a run that ends with 0."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import pickle
import random
import re
import shlex
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from generator import Call, NoOracle, Oracle, kind
from mutations import File, Inputs
from PIL import Image, ImageOps

CLASSES = ["ant", "bee", "cow"]
SIZE = (48, 36)


def pixels(rng: random.Random, size: tuple[int, int] = SIZE) -> File:
    """A PNG of blocks of colors."""
    small = Image.frombytes("RGB", (4, 3), rng.randbytes(36))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return File(buffer.getvalue(), "image")


def runs(rng: random.Random, box: list[float]) -> dict:
    """Run lengths of a box's pixels, compressed or a list."""
    from pycocotools import mask as tools

    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8, order="F")
    x, y, w, h = (int(v) for v in box)
    mask[y : y + h, x : x + w] = 1
    if rng.random() < 0.5:
        encoded = tools.encode(mask)
        return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode()}
    flat, counts, last = mask.T.ravel(), [], 0
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    counts = [0] * int(flat[0] == 1) + [b - a for a, b in zip(edges, edges[1:], strict=False)]
    return {"size": [SIZE[1], SIZE[0]], "counts": counts} if last == 0 else {}


def box_in(rng: random.Random) -> list[float]:
    x, y = rng.randrange(0, 30), rng.randrange(0, 20)
    box = [x, y, rng.randrange(3, SIZE[0] - x), rng.randrange(3, SIZE[1] - y)]
    return [v + rng.choice([0, 0.5, 0.25]) * (i < 2) for i, v in enumerate(box)] if rng.random() < 0.5 else box


def polygon(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(rng: random.Random, images: int = 3, *, masks: bool = False, points: bool = False) -> dict:
    """A document of COCO's form."""
    first = rng.choice([1, 1, 0, 5])
    objects: list[dict] = []
    for image in range(images):
        for _ in range(rng.randrange(4)):
            box = box_in(rng)
            crowd = int(rng.random() < 0.1)
            record: dict[str, Any] = {
                "id": len(objects) + 1, "image_id": image + 1,
                "category_id": first + 2 * rng.randrange(1 if points else 3),
                "bbox": box, "area": box[2] * box[3], "iscrowd": crowd,
            }  # fmt: skip
            if masks:
                record["segmentation"] = runs(rng, box) if crowd or rng.random() < 0.3 else polygon(box)
            if points:
                record["keypoints"] = [v for i in range(17) for v in (box[0] + i % 3, box[1] + i % 5, rng.randrange(3))]
                record["num_keypoints"] = sum(v > 0 for v in record["keypoints"][2::3])
            objects.append(record)
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(1, images + 1)
        ],
        "categories": [{"id": first + 2 * i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": objects,
    }


def read(path: Path) -> Any:
    return json.loads(path.read_bytes().decode("utf-8-sig"))


def whole(value: Any) -> Any:
    """An id as an integer where that loses nothing."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and str(int(value)) == value:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


# evaluate: pycocotools


@kind(45)
def evaluate(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    iou_type = rng.choice(["bbox", "bbox", "segm", "keypoints"])
    truth = coco(rng, masks=iou_type == "segm", points=iou_type == "keypoints")
    found = []
    for _ in range(rng.randrange(1, 9)):
        near = rng.choice(truth["annotations"]) if truth["annotations"] and rng.random() < 0.8 else None
        box = (
            box_in(rng)
            if near is None
            else [max(0, v + rng.randrange(-1, 2)) for v in near["bbox"][:2]] + near["bbox"][2:]
        )
        record: dict[str, Any] = {
            "image_id": near["image_id"] if near else 1,
            "category_id": (near or rng.choice(truth["categories"]))["category_id" if near else "id"],
            "score": round(rng.random(), 1),
        }
        if iou_type != "segm" or rng.random() < 0:
            record["bbox"] = box
        if iou_type == "segm":
            record["segmentation"] = runs(rng, [*box[:2], *(max(1, v - 1) for v in box[2:])])
        if iou_type == "keypoints":
            record["keypoints"] = [v for i in range(17) for v in (box[0] + i % 3, box[1] + i % 5, 1)]
        found.append(record)
    if iou_type == "bbox" and rng.random() < 0.2:
        files = [{"id": i["id"] + 7, "file_name": f"somewhere/{i['file_name']}"} for i in truth["images"]]
        annotations = [{"id": i, **r, "image_id": r["image_id"] + 7} for i, r in enumerate(found, 1)]
        content: Any = {"images": files, "categories": truth["categories"], "annotations": annotations}
    else:
        content = found
    inputs = Inputs({"gt.json": File(truth), "dt.json": File(content)})
    inputs.line = [
        "evaluate",
        "--gt",
        "{in}/gt.json",
        "--dt",
        "{in}/dt.json",
        "--iou-type",
        iou_type,
        "--out",
        "{out}/r.json",
    ]
    if rng.random() < 0.2:
        inputs.line += ["--max-detections", str(rng.choice([1, 2, 10, 300]))]
    if rng.random() < 0.02 and iou_type == "bbox":
        inputs.line += ["--report", "{out}/page.html"]
    return inputs, evaluated


def evaluated(call: Call) -> None:
    """The twelve numbers are pycocotools'."""
    if call.flag("--out") is None or not Path(call.flag("--out")).is_file():
        raise NoOracle("no --out")
    iou_type = call.flag("--iou-type") or "bbox"
    ours = json.loads(Path(call.flag("--out")).read_text())[iou_type]
    truth, found = read(Path(call.flag("--gt"))), read(Path(call.flag("--dt")))
    limit = call.flag("--max-detections")
    theirs = reference(truth, found, iou_type, None if limit is None else int(limit))
    for name, value in theirs.items():
        assert ours[name] == (None if value is None else value), f"{name} is {ours[name]}, pycocotools has {value}"


def reference(truth: dict, found: Any, iou_type: str, limit: int | None) -> dict[str, float | None]:
    from pycocotools import mask as mask_tools
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if isinstance(found, dict):
        names = {image["file_name"]: whole(image["id"]) for image in truth["images"]}
        ids = {
            image["id"]: names[next(n for n in names if image["file_name"].endswith(n))] for image in found["images"]
        }
        own = {str(c["name"]): whole(c["id"]) for c in truth["categories"]}
        classes = {c["id"]: own[str(c["name"])] for c in found["categories"]}
        found = [
            {**r, "image_id": ids[r["image_id"]], "category_id": classes[r["category_id"]]}
            for r in found["annotations"]
        ]
    for record in truth["images"] + truth["categories"]:
        record["id"] = whole(record["id"])
    for number, record in enumerate(truth.get("annotations", []), 1):
        record.update({key: whole(record[key]) for key in ("image_id", "category_id")}, id=number)
        record["iscrowd"] = int(whole(record.get("iscrowd") or 0))
        if "bbox" in record:
            area = record.get("area")
            usable = type(area) in (int, float) and math.isfinite(area)
            record["area"] = area if usable else record["bbox"][2] * record["bbox"][3]
    for record in found:
        record.update({key: whole(record[key]) for key in ("image_id", "category_id")})
        record.update({key: record[key] for key in ("bbox", "keypoints", "segmentation") if record.get(key)})
        for key in ("bbox", "keypoints", "segmentation"):
            if record.get(key) in (None, []):
                record.pop(key, None)
        mask = record.get("segmentation")
        if iou_type == "segm" and isinstance(mask, dict) and isinstance(mask.get("counts"), list):
            record["segmentation"] = mask_tools.frPyObjects(mask, *mask["size"])
        if iou_type == "segm":
            record.pop("bbox", None)  # pycocotools would take the areas of boxes; detectron2 takes them away
    if not found:
        return {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            table = COCO()
            table.dataset = truth
            table.createIndex()
            evaluation = COCOeval(table, table.loadRes(found), iou_type)
            if iou_type != "keypoints":
                evaluation.params.maxDets = sorted({1, 10, limit or 100}) if limit != 1 else [1, 10]
            elif limit:
                evaluation.params.maxDets = [limit]
            evaluation.evaluate()
            evaluation.accumulate()
    except Exception as error:
        raise NoOracle(f"{type(error).__name__}: {str(error)[:80]}") from None
    precision = evaluation.eval["precision"]

    def mean(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return float(np.mean(values)) * 100 if values.size else None

    result = {"AP": mean(precision[:, :, :, 0, -1]), "AP50": mean(precision[:1, :, :, 0, -1])}
    for place, area in enumerate(evaluation.params.areaRngLbl[1:], 1):
        result[f"AP{area[0]}"] = mean(precision[:, :, :, place, -1])
    return result


# check: stock detectron2's loader


@kind(15)
def check(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    inputs = Inputs({"data.json": File(coco(rng, masks=rng.random() < 0.5, points=rng.random() < 0.2))})
    for i in (1, 2, 3):
        inputs.files[f"images/{i}.png"] = pixels(rng)
    inputs.line = ["check", "--json", "{in}/data.json", "--images", "{in}/images", "--workers", "1"]
    more = [["--fix", "{out}/fixed.json"], ["--fix-drop"], ["--policy", "skip"], ["--policy", "load"], ["--strict"],
            ["--masks"], ["--num-classes", "3"], ["--headers-only"], ["--max-megapixels", "1"], ["--list", "1"],
            ["--like", "{in}/data.json"], ["--keypoints"]]  # fmt: skip
    for words in more:
        if rng.random() < (0.4 if "--fix" in words[0] else 0.1):
            inputs.line += words
    return inputs, checked


def checked(call: Call) -> None:
    """What training would read is what stock detectron2 reads of the fixed copy, or of a set without any warning."""
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    from resnext_det.annotations.check import inspect_coco

    file, root = call.flag("--json"), call.flag("--images")
    fixed = call.flag("--fix")
    if Path(file).is_dir():
        raise NoOracle("a folder, recognized by what is in it")
    if fixed is None and not call.said.rstrip().endswith("0 errors, 0 warnings"):
        raise NoOracle("warnings, and no --fix")
    if "annotations: is missing" in call.said:
        raise NoOracle("no annotations")
    options = {"policy": call.flag("--policy") or "error", "decode": "--headers-only" not in call.line}
    if call.flag("--max-megapixels"):
        options["max_megapixels"] = float(call.flag("--max-megapixels"))
    ours = inspect_coco(file, root, workers=1, **options).dataset_dicts()
    name = f"fuzz_{call.number}"
    try:
        theirs = load_coco_json(fixed or file, root, name)
    except Exception as error:
        raise NoOracle(f"{type(error).__name__}: {str(error)[:80]}") from None
    finally:
        MetadataCatalog.pop(name, None)
    for record in theirs:
        for annotation in record["annotations"]:
            annotation.pop("segmentation", None)
            annotation.pop("keypoints", None)
            annotation["iscrowd"] = annotation.get("iscrowd") or 0
            annotation.pop("ignore", None)
    assert json.dumps(ours) == json.dumps(theirs) or ours == theirs, f"{ours} and stock {theirs}"


# labels of other formats: parsers of a few lines each


def labels(rng: random.Random, form: str, images: int = 3) -> tuple[dict[str, File], str]:
    """Files of a set of this format, and what to read."""
    document = coco(rng, images, masks=rng.random() < 0.3)
    for record in document["annotations"]:
        record["iscrowd"] = 0
        if isinstance(record.get("segmentation"), dict):
            record["segmentation"] = polygon(record["bbox"])
    names = {c["id"]: c["name"] for c in document["categories"]}
    folder = {"yolo": "images/", "voc": "JPEGImages/", "cvat": "images/"}.get(form, "")
    files = {f"{folder}{image['file_name']}": pixels(rng) for image in document["images"]}
    of = {i["id"]: [a for a in document["annotations"] if a["image_id"] == i["id"]] for i in document["images"]}
    if form == "coco":
        return {**files, "labels.json": File(document)}, "{in}/labels.json"
    if form == "yolo":
        for image, objects in of.items():
            lines = []
            for record in objects:
                x, y, w, h = record["bbox"]
                kind_of = [c["id"] for c in document["categories"]].index(record["category_id"])
                values = [(x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1], w / SIZE[0], h / SIZE[1]]
                if "segmentation" in record:
                    values = [v / SIZE[i % 2] for i, v in enumerate(record["segmentation"][0])]
                lines.append(" ".join(map(str, [kind_of, *values])) + "\n")
            files[f"labels/{image}.txt"] = File("".join(lines), "text")
        files["data.yaml"] = File({"train": "images", "names": list(names.values())}, "yaml")
        return files, "{in}/data.yaml"
    if form == "voc":
        for image, objects in of.items():
            size = f"<width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth>"
            parts = [f"<annotation><filename>{image}.png</filename><size>{size}</size>"]
            for record in objects:
                x, y, w, h = record["bbox"]
                values = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
                corners = "".join(f"<{key}>{value}</{key}>" for key, value in values)
                parts.append(f"<object><name>{names[record['category_id']]}</name><difficult>0</difficult>"
                             f"<bndbox>{corners}</bndbox></object>")  # fmt: skip
            files[f"Annotations/{image}.xml"] = File("".join(parts) + "</annotation>", "text")
        files["ImageSets/Main/train.txt"] = File("".join(f"{image}\n" for image in of), "text")
        files["labels.txt"] = File("".join(f"{name}\n" for name in names.values()), "text")
        return files, "{in}"
    if form == "cvat":
        parts = ['<?xml version="1.0"?><annotations><version>1.1</version><meta><task><labels>']
        parts += [f"<label><name>{name}</name></label>" for name in names.values()] + ["</labels></task></meta>"]
        for image, objects in of.items():
            parts.append(f'<image id="{image}" name="{image}.png" width="{SIZE[0]}" height="{SIZE[1]}">')
            for record in objects:
                x, y, w, h = record["bbox"]
                label = names[record["category_id"]]
                if "segmentation" in record:
                    points = ";".join(f"{a},{b}" for a, b in np.reshape(record["segmentation"][0], (-1, 2)).tolist())
                    parts.append(f'<polygon label="{label}" points="{points}"/>')
                else:
                    parts.append(f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>')
            parts.append("</image>")
        return {**files, "annotations.xml": File("".join(parts) + "</annotations>", "text")}, "{in}/annotations.xml"
    for image, objects in of.items():
        shapes: list[dict] = []
        for record in objects:
            x, y, w, h = record["bbox"]
            shape = "polygon" if "segmentation" in record else "rectangle"
            points = (
                np.reshape(polygon(record["bbox"])[0], (-1, 2)).tolist()
                if shape == "polygon"
                else [[x, y], [x + w, y + h]]
            )
            shapes.append({"label": names[record["category_id"]], "shape_type": shape, "points": points})
        content = {"imagePath": f"{image}.png", "imageWidth": SIZE[0], "imageHeight": SIZE[1], "shapes": shapes}
        files[f"{image}.json"] = File(content)
    return files, "{in}"


Boxes = list[tuple[str, str, float, float, float, float]]
"""(stem of the image, class, corners)."""


def upright_size(image: Path) -> tuple[int, int]:
    with Image.open(image) as opened:
        try:
            return ImageOps.exif_transpose(opened).size
        except OSError:  # cut off behind its header, which is all that a conversion reads
            return opened.size


def boxes_of(form: str, root: Path, place: Path) -> Boxes:
    """All boxes of a set as a plain parser reads them."""
    found: Boxes = []
    if form == "coco":
        document = read(place)
        names = {whole(c["id"]): str(c["name"]) for c in document["categories"]}
        files = {whole(i["id"]): Path(i["file_name"]).stem for i in document["images"]}
        for record in document["annotations"]:
            x, y, w, h = map(float, record["bbox"])
            found.append((files[whole(record["image_id"])], names[whole(record["category_id"])], x, y, x + w, y + h))
    elif form == "yolo":
        data = yaml.safe_load((root / "data.yaml").read_text("utf-8-sig"))
        names = dict(enumerate(data["names"])) if isinstance(data["names"], list) else data["names"]
        images = {p.stem: upright_size(p) for p in (root / "images").rglob("*") if p.is_file()}
        for file in sorted((root / "labels").rglob("*.txt")):
            for line in file.read_text("utf-8-sig").splitlines():
                number, *values = map(float, line.split()) if line.strip() else (0,)
                if not values or file.stem not in images:
                    continue
                if len(values) == 4:
                    x, y, w, h = values
                    corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                else:
                    corners = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
                w, h = images[file.stem]
                found.append(
                    (file.stem, str(names[int(number)]).strip(), *(v * (w, h)[i % 2] for i, v in enumerate(corners)))
                )
    elif form == "voc":
        present = {path.name: path.stem for path in (root / "JPEGImages").iterdir()}
        for file in sorted((root / "Annotations").glob("*.xml")):
            document = ET.fromstring(file.read_bytes())
            given = present.get(document.findtext("filename") or "", file.stem)
            image = file.stem if file.stem in present.values() else given
            for record in document.findall("object"):
                x, y, x2, y2 = (float(record.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
                found.append((image, record.findtext("name").strip(), x - 1, y - 1, x2, y2))
    elif form == "cvat":
        for image in ET.fromstring((root / "annotations.xml").read_bytes()).findall("image"):
            for shape in image:
                if shape.tag == "box":
                    corners = [float(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
                elif shape.tag == "polygon":
                    values = [float(v) for v in re.split("[;,]", shape.get("points"))]
                    corners = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
                else:
                    continue
                found.append((Path(image.get("name")).stem, shape.get("label").strip(), *corners))
    else:
        for file in sorted(root.glob("*.json")):
            content = read(file)
            image = Path(content["imagePath"]).stem if (root / str(content.get("imagePath"))).is_file() else file.stem
            for shape in content["shapes"]:
                values = [float(v) for point in shape["points"] for v in point]
                corners = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
                found.append((image, shape["label"].strip(), *corners))
    return found


def same_boxes(found: Boxes, wanted: Boxes, *, losses: bool, slack: float = 1.1) -> None:
    """Every box found is one that is wanted, clipped or not, and unless something was left out none lacks."""
    left = list(wanted)
    for stem, name, *corners in found:
        for i, (other, called, *theirs) in enumerate(left):
            near = max(abs(a - b) for a, b in zip(corners, theirs, strict=True)) <= slack
            inside = [min(max(v, 0), SIZE[i % 2]) for i, v in enumerate(theirs)]
            near |= max(abs(a - b) for a, b in zip(corners, inside, strict=True)) <= slack
            if other == stem and called == name and near:
                del left[i]
                break
        else:
            raise AssertionError(f"{stem} {name} {corners} is not among {wanted}")
    assert losses or not left, f"{left} are lost in silence"


def form_of(rng: random.Random) -> str:
    return rng.choice(["coco", "yolo", "voc", "cvat", "labelme"])


@kind(25)
def convert_data(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    form, to = form_of(rng), rng.choice(["coco", "yolo", "voc"])
    files, place = labels(rng, form)
    inputs = Inputs(files, ["convert-data", place, "{out}/new", "--to", to])

    def converted(call: Call) -> None:
        out = Path(call.line[2])
        if not (call.flag("--to") == to and call.line[1] == place.replace("{in}", str(call.given))):
            raise NoOracle("another line")
        try:
            wanted = boxes_of(form, call.given, Path(call.line[1]))
        except Exception as error:
            raise NoOracle(f"{form} {type(error).__name__}: {str(error)[:60]}") from None
        files = {"coco": out / "annotations" / "instances_train.json"}
        found = boxes_of(to, out, files.get(to, out))
        losses = any(word in call.said for word in ("left out", "cannot hold")) or form in ("yolo", "voc", "coco")
        same_boxes(found, wanted, losses=losses)

    return inputs, converted


@kind(3)
def make_labeled_shards(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    form = form_of(rng)
    files, place = labels(rng, form)
    inputs = Inputs(files, ["make-shards", "--labels", place, "{out}/new", "--per-shard", "2"])

    def packed(call: Call) -> None:
        out = Path(call.line[3])
        if call.line[:3] != ["make-shards", "--labels", place.replace("{in}", str(call.given))]:
            raise NoOracle("another line")
        try:
            wanted = boxes_of(form, call.given, Path(call.line[2]))
        except Exception as error:
            raise NoOracle(f"{form} {type(error).__name__}: {str(error)[:60]}") from None
        document = read(out / "instances.json")
        kept = {}
        for image in document["images"]:
            shard, part = image["file_name"].split("/")
            offset, size, name = part.split("-", 2)
            data = (out / shard).read_bytes()[int(offset) : int(offset) + int(size)]
            kept[image["id"]] = name.split("_", 1)[1].rpartition(".")[0]
            assert any(path.read_bytes() == data for path in call.given.rglob("*") if path.is_file()), name
        names = {category["id"]: category["name"] for category in document["categories"]}
        found = [(kept[a["image_id"]], names[a["category_id"]].strip(), x, y, x + w, y + h)
                 for a in document["annotations"] for x, y, w, h in [a["bbox"]]]  # fmt: skip
        plain = [(re.sub("[^A-Za-z0-9_-]", "_", stem), *rest) for stem, *rest in wanted]
        same_boxes(found, plain, losses=True)

    return inputs, packed


@kind(8)
def split(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    form = form_of(rng)
    files, place = labels(rng, form, 6)
    inputs = Inputs(files, ["split", place, "{out}/new", "--seed", str(rng.randrange(5))])
    inputs.line += rng.choice([[], ["--val", "0.4"], ["--val", "0.3", "--test", "0.2"], ["--folds", "3"]])

    def parted(call: Call) -> None:
        parts = {path.stem: read(path) for path in Path(call.line[2]).glob("instances_*.json")}
        if any("fold" in name for name in parts):
            parts = {name: part for name, part in parts.items() if name.endswith("_val")}
        ids = [image["file_name"] for part in parts.values() for image in part["images"]]
        assert parts and len(ids) == len(set(ids)), f"an image twice among {ids}"
        try:
            wanted = boxes_of(form, call.given, Path(call.line[1]))
        except Exception as error:
            raise NoOracle(f"{form} {type(error).__name__}: {str(error)[:60]}") from None
        found = [box for path in Path(call.line[2]).glob("instances_*.json") if path.stem in parts
                 for box in boxes_of("coco", call.out, path)]  # fmt: skip
        same_boxes(found, wanted, losses=True)

    return inputs, parted


@kind(7)
def check_formats(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    form = rng.choice(["yolo", "voc", "cvat", "labelme"])
    files, place = labels(rng, form)
    images = {"yolo": "{in}/images", "voc": "{in}/JPEGImages", "cvat": "{in}/images"}.get(form, "{in}")
    inputs = Inputs(files, ["check", "--json", place, "--images", images, "--workers", "1"])

    def counted(call: Call) -> None:
        used, of = map(int, re.search(r"annotations: (\d+) used of (\d+)", call.said).groups())
        try:
            wanted = boxes_of(form, call.given, call.given)
        except Exception as error:
            raise NoOracle(f"{form} {type(error).__name__}: {str(error)[:60]}") from None
        assert of <= len(wanted), f"{of} of {len(wanted)} objects"
        assert used == of or "left out" in call.said

    return inputs, counted


# makers


@kind(3)
def make_cifar(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    rows = np.frombuffer(rng.randbytes(6 * 3072), np.uint8).reshape(6, 3072)
    kinds = [rng.randrange(3) for _ in range(6)]
    form = rng.choice(["python", "binary", "images"])
    cuts = {"data_batch_1": slice(0, 4), "test_batch": slice(4, 6)}
    if form == "python":
        parts = {name: pickle.dumps({b"data": rows[cut], b"labels": kinds[cut]}, 2) for name, cut in cuts.items()}
        parts["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}, 2)
    elif form == "binary":
        table = np.hstack([np.array(kinds, np.uint8)[:, None], rows])
        parts = {f"{name}.bin": table[cut].tobytes() for name, cut in cuts.items()}
        parts["batches.meta.txt"] = "\n".join(CLASSES).encode()
    else:
        parts = {f"{['train', 'test'][i // 4]}/{CLASSES[k]}/{i}.png": pixels(rng).data() for i, k in enumerate(kinds)}
    if rng.random() < 0.8:  # within the archive, where a change of its bytes does not reach
        name = rng.choice(list(parts))
        what = rng.choice(["cut", "name", "remove", "bytes"])
        if what == "cut":
            parts[name] = parts[name][: rng.randrange(len(parts[name]) + 1)]
        elif what == "name":
            parts[rng.choice(["../x.png", "train/../../x.png", "/tmp/x.png", "test/$1_$/你.png", name + ".bak"])] = (
                parts.pop(name)
            )
        elif what == "remove":
            del parts[name]
        else:
            data = bytearray(parts[name])
            data[rng.randrange(len(data))] = rng.randrange(256)
            parts[name] = bytes(data)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=rng.choice(["w:gz", "w"])) as tar:
        for name, data in parts.items():
            member = tarfile.TarInfo(f"cifar/{name}" if form != "images" else name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    inputs = Inputs({"c.tar.gz": File(buffer.getvalue(), "bytes")}, ["make-cifar", "{in}/c.tar.gz", "{out}/cifar"])

    def made(call: Call) -> None:
        files = [p for p in Path(call.line[2]).rglob("*") if p.is_file() and p.name != ".made_by.json"]
        train, test = map(int, re.search(r"(\d+) training and (\d+) test images", call.said).groups())
        assert len(files) == train + test, f"{len(files)} files, {train} + {test} said"
        if form != "images":
            known = {bytes(row) for row in rows.reshape(6, 3, 1024).transpose(0, 2, 1).reshape(6, -1)}
            strange = [p for p in files if Image.open(p).convert("RGB").tobytes() not in known]
            assert len(strange) <= 1, f"{strange} are other images"

    return inputs, made


def class_folders(rng: random.Random, each: int = 2) -> dict[str, File]:
    return {f"images/{name}/{i}.png": pixels(rng, (20, 24)) for name in CLASSES for i in range(each)}


@kind(3)
def make_shards(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    inputs = Inputs(class_folders(rng), ["make-shards", "{in}/images", "{out}/shards", "--per-shard", "4"])

    def made(call: Call) -> None:
        written = Counter_of(Path(call.line[2]))
        folder = Path(call.line[1])
        wanted = sorted(p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        missing = [data for data in wanted if data not in written]
        assert all(data in wanted for data in written), "shards hold what no file has"
        assert not missing or "skipped" in call.said or "left out" in call.said, (
            f"{len(missing)} images lost in silence"
        )

    return inputs, made


def Counter_of(folder: Path) -> list[bytes]:  # noqa: N802
    """The images in all shards of a folder."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.isfile() and not m.name.endswith((".cls", ".json"))]
    return sorted(found)


@kind(3)
def index_shards(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(4):
            parts = {"png": pixels(rng, (8, 8)).data(), "cls": str(i % 3).encode()}
            if rng.random() < 0.15:
                ending = rng.choice(["png", "cls"])
                parts[ending] = rng.choice([b"", b"x", b"99", b"-1", b"1.5", parts[ending][:5]])
            if rng.random() < 0.05:
                del parts[rng.choice(list(parts))]
            for ending, data in parts.items():
                member = tarfile.TarInfo(
                    f"{rng.choice(['k', 'k', 'k', 'a/k', 'k.x'])}{i}.{ending}"
                    if rng.random() < 0.1
                    else f"k{i}.{ending}"
                )
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    files = {
        "s/0.tar": File(buffer.getvalue(), "bytes"),
        "classes.txt": File("".join(f"{c}\n" for c in CLASSES), "text"),
    }
    inputs = Inputs(files, ["make-shards", "--index", "{in}/s", "--classes", "{in}/classes.txt"], writes_in=True)

    def made(call: Call) -> None:
        count = int(re.search(r"index of (\d+) images", call.said).group(1))
        tars = sum((Counter_of(folder) for folder in {p.parent for p in call.given.rglob("*.tar")}), [])
        assert count == len(tars), f"{count} in the index, {len(tars)} in the shards"

    return inputs, made


@kind(3)
def make_imagenet_val(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    words = [f"n0000000{rng.randrange(3)}" for _ in range(5)]
    files = {f"flat/ILSVRC2012_val_{i:08d}.JPEG": pixels(rng, (4, 4)) for i in range(1, 6)}
    if rng.random() < 0.5:
        files["labels.txt"] = File("".join(f"{word}\n" for word in words), "text")
    else:
        rows = [f"ILSVRC2012_val_{i:08d},{word} 1 2 3 4 \n" for i, word in enumerate(words, 1)]
        rng.shuffle(rows)
        files["labels.csv"] = File("ImageId,PredictionString\n" + "".join(rows), "text")
    name = next(name for name in files if name.startswith("labels"))
    inputs = Inputs(files, ["make-imagenet-val", "{in}/flat", f"{{in}}/{name}", "--out", "{out}/val"])

    def made(call: Call) -> None:
        out = Path(call.flag("--out") or call.out / "datasets/imagenet/val")
        text = Path(call.line[2]).read_text("utf-8-sig")
        if call.line[2].endswith(".csv"):
            wanted = {r["ImageId"]: r["PredictionString"].split()[0] for r in csv.DictReader(io.StringIO(text))}
            wanted = {int(name.rpartition("_")[2]): word for name, word in wanted.items()}
        else:
            wanted = dict(enumerate(text.split(), 1))
        found = {int(p.stem.rpartition("_")[2]): p.parent.name for p in out.rglob("*.JPEG")}
        assert found == wanted, f"{found} and {wanted}"

    return inputs, made


@kind(2)
def make_imagenet5k(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    files = {
        f"full/{c}/{i}.png": pixels(rng, (4, 4)) for c in ("ant", "dog", "elk") for i in range(rng.randrange(1, 4))
    }
    files |= {f"known/{c}/0.png": pixels(rng, (4, 4)) for c in ("ant", "bee")}
    files["list.txt"] = File("ant\nelk\n", "text")
    inputs = Inputs(files, ["make-imagenet5k", "{in}/full", "{in}/known", "--out", "{out}/new"])
    inputs.line += rng.choice([["--extra", "1"], ["--classes", "{in}/list.txt"]])

    def made(call: Call) -> None:
        count = int(re.search(r": (\d+) classes", call.said).group(1))
        folders = [
            entry
            for entry in Path(call.flag("--out") or call.out / "datasets/imagenet5k/train").iterdir()
            if entry.is_dir()
        ]
        assert len(folders) == count and all(p.is_dir() for p in folders), f"{count} said, {len(folders)} there"

    return inputs, made


@kind(2)
def make_minival(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 6} for i in range(1, 8)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0} for i in range(1, 8)
    ]
    whole_set = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "ant"}]}
    part = {**whole_set, "images": images[:5], "annotations": objects[:5]}
    files = {"a/instances_val2014.json": File(whole_set), "a/instances_val2017.json": File(part)}
    from resnext_det.makers import minival

    minival.make_minival.__defaults__ = (5,)  # images, not 5,000
    inputs = Inputs(files, ["make-minival", "--annotations", "{in}/a"], writes_in=True)

    def made(call: Call) -> None:
        parts = [read(call.given / "a" / f"instances_{name}2014.json") for name in ("minival", "valminusminival")]
        val2014, val2017 = (read(call.given / "a" / f"instances_val{year}.json") for year in (2014, 2017))
        ids = [{image["id"] for image in part["images"]} for part in parts]
        assert ids[0] == {i["id"] for i in val2017["images"]} and not ids[0] & ids[1]
        assert ids[0] | ids[1] == {i["id"] for i in val2014["images"]}

    return inputs, made


# what prints commands or numbers, and draws


@kind(3)
def analyze(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    name = rng.choice(
        ["resnet50", "resnext50_32x4d", "resnext29_8x64d_cifar", "resnext14_2x2d", "seresnet50", "resnext101_64x4d"]
    )
    inputs = Inputs(
        {}, ["analyze", name, "--num-classes", str(rng.choice([10, 1000])), "--size", str(rng.choice([32, 224]))]
    )
    if rng.random() < 0.1:
        inputs.line = ["analyze", *rng.choice([["--table", "2"], ["--figure", "4"]])]

    def counted(call: Call) -> None:
        import torch

        from resnext_det import create_model

        if "--table" in call.line or "--figure" in call.line:
            return
        with torch.device("meta"):
            classes = call.flag("--num-classes")
            model = create_model(call.line[1], 1000 if classes is None else int(classes))
        total = f"{sum(p.numel() for p in model.parameters()):,}"
        assert total in call.said, f"{total} parameters are not in what was printed"

    return inputs, counted


@kind(0.7)
def curves(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    lines = []
    for i in range(rng.randrange(1, 12)):
        lines.append({"iteration": i * 20, "lr": 0.02, "time": 0.5, "total_loss": 3 / (i + 1), "loss_cls": 1 / (i + 1)})
        if i % 3 == 0:
            lines[-1] |= {"bbox/AP": 3.0 * i, "bbox/AP50": 6.0 * i}
    name = rng.choice(["a", "a", "$1_$", "你 好", "a_{"])
    inputs = Inputs(
        {f"{name}/metrics.json": File(lines, "lines")}, ["curves", f"{{in}}/{name}", "--out", "{out}/c.png"]
    )
    if rng.random() < 0.3:
        other = [{"iteration": i, "train/top1_error": 50.0 - i, "total_loss": 2.0, "lr": 0.1} for i in range(5)]
        inputs.files["b/metrics.json"] = File(other, "lines")
        inputs.line.insert(2, "{in}/b")

    def drawn(call: Call) -> None:
        with Image.open(call.flag("--out") or call.out / "curves.png") as image:
            image.load()

    return inputs, drawn


@kind(2)
def transfer(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    files = {"a.pth": File(b"weights", "bytes"), "s.yaml": File({"SOLVER": {"BASE_LR": 0.1}, "SEED": 3}, "yaml")}
    inputs = Inputs(files, ["transfer", "--protocol", "voc0712", "--trials", "2", "--output", "{out}/t", "--dry-run"])
    inputs.line += ["--settings", "{in}/s.yaml", "--weights", "{in}/a.pth", "none"]

    def printed(call: Call) -> None:
        if "--dry-run" in call.line:
            lines = [line for line in call.said.splitlines() if "--config-file" in line]
            assert all(shlex.split(line) for line in lines) and not list(call.out.iterdir())

    return inputs, printed


@kind(2)
def reproduce(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    document = coco(rng)
    files = {f"set/annotations/instances_{name}.json": File(document) for name in ("train2017", "val2017")}
    files |= {f"set/{name}/1.png": pixels(rng) for name in ("train2017", "val2017")}
    files["s.yaml"] = File({"SOLVER": {"MAX_ITER": 5}, "TEST": {"EVAL_PERIOD": 0}}, "yaml")
    inputs = Inputs(files, ["reproduce", "--table", rng.choice(["3", "7", "8"]), "--dry-run", "--seeds", "0"])
    inputs.line += ["--output", "{out}/r", "--settings", "{in}/s.yaml", *rng.choice([[], ["--data", "{in}/set"]])]

    def printed(call: Call) -> None:
        if "--dry-run" in call.line:
            assert not list(call.out.iterdir()), "a dry run writes"

    return inputs, printed


@kind(3)
def study(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    steps = [
        {"name": "one", "table": 3, "rows": ["resnet50"], "seeds": [0], "data": "d", "settings": "s.yaml"},
        {"name": "two", "table": 8, "protocol": "joint", "rows": ["R50"], "seeds": [0, 1],
         "weights": {"R50": "{output}/w{seed}.pth"}, "set": {"SOLVER.MAX_ITER": 3}, "width": "1/4"},
        {"name": "three", "benchmark": "grouped-conv", "minutes": 3},
    ]  # fmt: skip
    files = {"s.yaml": File({"SOLVER": {"MAX_ITER": 5}}, "yaml"), "study.yaml": File(steps, "yaml")}
    inputs = Inputs(
        files, ["study", "{in}/study.yaml", "--minutes", "0", "--output", "{out}/o", "--results", "{out}/r"]
    )
    if rng.random() < 0.5:
        inputs.files["r/runs.json"] = File({})
        inputs.line[-1] = "{in}/r"
        inputs.writes_in = True
    inputs.fixed = 4  # with more time it would train
    inputs.codes = (2, 75)
    return inputs, lambda call: None
