"""Valid inputs of the commands that read weights and configs: convert, train, pretrain, predict, proposals, export."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from generator import Call, NoOracle, Oracle, kind
from mutations import NAMES, ODD, File, Inputs
from PIL import Image
from valid import CLASSES, coco, pixels, read, reference

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
Tensors = dict[str, torch.Tensor]


@cache
def network() -> tuple[Tensors, dict[str, str]]:
    """A small classifier under torchvision's names, no two tensors of it equal, and {torchvision's name: ours}."""
    from resnext_det import create_model
    from resnext_det.weights import save_checkpoint
    from resnext_det.weights.conversion import convert

    torch.manual_seed(0)
    ours = create_model("resnext14_2x2d", num_classes=3).state_dict()
    for value in ours.values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(f"{folder}/a.pth", ours, {})
        convert(f"{folder}/a.pth", f"{folder}/b.pth", "torchvision")
        theirs = torch.load(f"{folder}/b.pth", weights_only=True)["model"]
    known = {value.numpy().tobytes(): name for name, value in ours.items()}
    names = {name: known[value.numpy().tobytes()] for name, value in theirs.items() if value.ndim}
    counter = "num_batches_tracked"
    counters = {
        n: names[n.replace(counter, "weight")].replace("weight", counter) for n in theirs if n.endswith(counter)
    }
    return theirs, names | counters


def changed(rng: random.Random, tensors: dict[str, Any]) -> str:
    """Change one tensor of these; returns what."""
    name = rng.choice(list(tensors))
    value = tensors[name]
    what = rng.choice(["lost", "renamed", "extra", "shape", "type", "half", "nan", "value", "one", "none", "view"])
    if what == "lost":
        del tensors[name]
    elif what == "renamed":
        tensors[rng.choice([name + "x", "module." + name, name.replace("layer", "lager"), *NAMES])] = tensors.pop(name)
    elif what == "extra":
        tensors[rng.choice(["extra.weight", "layer9.0.conv1.weight", *NAMES])] = torch.ones(2)
    elif what == "shape":
        tensors[name] = rng.choice(
            [value[None], value.reshape(-1), value.reshape(-1)[:0], value.repeat(2, *[1] * (value.ndim - 1))]
        )
    elif what == "type":
        tensors[name] = value.to(rng.choice([torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]))
    elif what == "half":
        tensors.update({key: one.to(rng.choice([torch.float16, torch.bfloat16])) for key, one in tensors.items()})
    elif what == "nan":
        tensors[name] = torch.full(value.shape, rng.choice([math.nan, math.inf, -1.0]))
    elif what == "value":
        tensors[name] = rng.choice([1, "x", None, [1.0], {}, {"a": torch.ones(1)}])
    elif what == "one":
        tensors[name] = value.flatten()[0]
    elif what == "view":
        tensors[name] = value.expand(2, *value.shape)[1]
    else:
        return "none"
    return f"weights: {what}"


def saved(content: object, form: str) -> bytes:
    """As a file: torch's two formats, detectron2's pickle, safetensors."""
    buffer = io.BytesIO()
    if form == "safetensors":
        from safetensors.torch import save

        plain = {
            k: v.contiguous().clone() for k, v in content.items() if isinstance(v, torch.Tensor) and k.isprintable()
        }
        return save(plain)
    if form == "pkl":
        arrays = {
            k: v.numpy() if isinstance(v, torch.Tensor) and v.dtype != torch.bfloat16 else v for k, v in content.items()
        }
        return pickle.dumps({"model": arrays, "__author__": "x"}, 2)
    torch.save(content, buffer, _use_new_zipfile_serialization=form == "pth")
    return buffer.getvalue()


FACTS = {"depth": 14, "num_groups": 2, "width_per_group": 2, "class_names": CLASSES, "channel_order": "RGB"}


@kind(1.5)
def convert(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    theirs, ours = network()
    tensors: dict[str, Any] = {name: value.clone() for name, value in theirs.items()}
    changes = [changed(rng, tensors)] if rng.random() < 0.8 else []
    wanted = dict(tensors)
    form = rng.choice(["pth", "pth", "safetensors", "pkl", "old"])
    named = {ours.get(k, k): v for k, v in tensors.items()} if rng.random() < 0.5 or form == "pkl" else tensors
    content: dict[str, Any] = dict(named)
    wrapped = rng.choice(["", "", "state_dict", "model", "model_ema", "module."]) if form in ("pth", "old") else ""
    if wrapped == "module.":
        content = {f"module.{k}": v for k, v in content.items()}
    elif wrapped:
        content = {wrapped: content, "epoch": 3, "arch": "x"}
    if wrapped == "model" and rng.random() < 0.5:
        facts: dict[str, Any] = dict(FACTS)
        if rng.random() < 0.7:
            facts[rng.choice(list(facts))] = rng.choice(ODD)
            changes.append("metadata: another value")
        content["resnext_det"] = facts
    try:
        data = saved(content, form)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        data, changes = b"", ["empty"]
    ending = {"old": "pth"}.get(form, form)
    to = rng.choice(["native", "torchvision", "timm"])
    out = rng.choice([".pth", ".pth", ".safetensors"])
    line = ["convert", f"{{in}}/w.{ending}", "{out}/o" + out, "--to", to]
    inputs = Inputs({f"w.{ending}": File(data, "bytes")}, line, notes=changes)

    def converted(call: Call) -> None:
        path = Path(call.line[2])
        if not path.is_file() or "--trust-pickle" in call.line:
            raise NoOracle("another line")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, weights_only=True)["model"]
        back = {native: name for name, native in ours.items()}
        found = {back.get(name, name): value for name, value in found.items()}
        plain = {k: v for k, v in wanted.items() if k in theirs and not k.endswith("num_batches_tracked")}
        for name, value in plain.items():
            if name not in found and f"left out: {name.partition('.')[0]} " in call.said:
                continue  # no head of that trunk, it says
            assert name in found, f"{name} is lost"
            assert torch.equal(found[name].float(), value.float()) or not torch.isfinite(value.float()).all(), (
                f"{name} is another"
            )
        strange = [k for k in found if k not in theirs]
        assert not strange, f"{strange} come from nowhere"
        model = torch_network(len(found["fc.weight"])) if "fc.weight" in found else None
        if model is not None:
            left = model.load_state_dict({k: v for k, v in found.items() if k in theirs}, strict=False)
            assert all(k.endswith("num_batches_tracked") for k in left.missing_keys), (
                f"torchvision misses {left.missing_keys}"
            )

    return inputs, converted


def torch_network(classes: int) -> torch.nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=classes, groups=2, width_per_group=2)


# detectors


@cache
def detector() -> tuple[bytes, dict]:
    """Weights of a small untrained detector, as a training writes them, and its config as plain values."""
    from detectron2.modeling import build_model
    from tiny import CONFIG

    from resnext_det.detection.config import setup
    from resnext_det.detection.initial_weights import architecture
    from resnext_det.weights import save_checkpoint

    values = yaml.safe_load(CONFIG)
    values["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] = 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tiny.yaml")
        file.write_text(yaml.safe_dump(values))
        cfg = setup(str(file), ["OUTPUT_DIR", f"{folder}/out"])
        torch.manual_seed(0)
        facts = {**architecture(cfg), "config": cfg.dump(), "class_names": CLASSES}
        save_checkpoint(f"{folder}/d.pth", build_model(cfg).state_dict(), facts)
        return Path(folder, "d.pth").read_bytes(), values


def mutated_detector(rng: random.Random) -> tuple[bytes, list[str]]:
    data, _ = detector()
    if rng.random() < 0.6:
        return data, []
    content = torch.load(io.BytesIO(data), weights_only=True)
    if rng.random() < 0.5:
        return _saved(content, changed(rng, content["model"]), data)
    facts = next(key for key in content if key != "model")
    what = rng.choice(list(content[facts]))
    if what == "config" and rng.random() < 0.7:
        lines = content[facts][what].splitlines()
        place = rng.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + str(rng.choice(ODD)) if rng.random() < 0.7 else ""
        content[facts][what] = "\n".join(lines)
    else:
        content[facts][what] = rng.choice(ODD)
    return _saved(content, f"metadata: {what}", data)


def _saved(content: dict, what: str, data: bytes) -> tuple[bytes, list[str]]:
    try:
        return saved(content, "pth"), [what]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return data, []


@kind(0.8)
def predict(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    data, notes = mutated_detector(rng)
    files = {"w.pth": File(data, "bytes"), **{f"images/{i}.png": pixels(rng, (60, 48)) for i in (1, 2)}}
    line = ["predict", "--weights", "{in}/w.pth", "--output", "{out}/p", "--score-threshold", "0", "--dtype", "fp32"]
    if rng.random() < 0.2:
        files["set.json"] = File(coco(rng, 2))
        line += ["--ids-from", "{in}/set.json"]
    line += rng.choice([[], ["--no-drawings"], ["--broken", "skip"], ["--batch-size", "2"]])
    inputs = Inputs(files, [*line, "--input", "{in}/images"], notes=notes)

    def predicted(call: Call) -> None:
        from detectron2.data.detection_utils import read_image
        from detectron2.engine import DefaultPredictor

        from resnext_det.detection.config import setup

        output = call.flag("--output")  # "" is the working folder
        folder = call.out / ("output/predictions" if output is None else output)
        content = read(folder / "detections.json")
        for record in content["annotations"]:
            assert all(map(math.isfinite, [*record["bbox"], record["score"]])), f"{record}"
        weights = Path(call.flag("--weights"))
        if call.flag("--score-threshold") != "0" or notes or not weights.is_file() or call.flag("--dtype") != "fp32":
            raise NoOracle("another line or weights")
        config = call.folder / "oracle.yaml"
        config.write_text(yaml.safe_dump(detector()[1]))
        cfg = setup(str(config), ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(call.folder / "tmp")])
        stock = DefaultPredictor(cfg)
        if "--batch-size" in call.line and len({(i["width"], i["height"]) for i in content["images"]}) > 1:
            raise NoOracle("images of a batch are padded to one size, which stock does as well in a batch")
        numbers = {category["id"]: k for k, category in enumerate(content["categories"])}
        for image in content["images"]:
            path = Path(image["file_name"])
            path = path if path.is_file() else call.given / "images" / path.name
            try:
                wanted = stock(read_image(str(path), "BGR"))["instances"]  # whatever INPUT.FORMAT is: it turns them
            except Exception as error:
                raise NoOracle(f"stock: {type(error).__name__}") from None
            with Image.open(path) as opened:
                if opened.mode in ("I;16", "I", "F", "CMYK"):
                    raise NoOracle("stock reads this mode otherwise")
            records = [r for r in content["annotations"] if r["image_id"] == image["id"]]
            ours = np.array([[r["score"], numbers[r["category_id"]], *r["bbox"]] for r in records]).reshape(-1, 6)
            boxes = wanted.pred_boxes.tensor
            boxes[:, 2:] -= boxes[:, :2]
            theirs = torch.cat([wanted.scores[:, None], wanted.pred_classes[:, None], boxes], dim=1).numpy()
            assert len(ours) == len(theirs), f"{path.name}: {len(ours)} detections, stock has {len(theirs)}"
            far = np.abs(ours[:, None] - theirs[None]) / [
                1e-6,
                0.5,
                *[1e-3] * 4,
            ]  # of scores up to 1, pixels up to 1100
            assert not len(ours) or (far.max(axis=2).min(axis=0) < 1).all(), f"{path.name}: {ours[:2]} {theirs[:2]}"

    return inputs, predicted


def training_set(rng: random.Random, number: int, config: dict) -> Inputs:
    """A config, two sets, and the words that name them."""
    files = {"c.yaml": File(config, "yaml")}
    words: list[str] = []
    sets = []
    for name in ("train", "test"):
        files[f"{name}.json"] = File(coco(rng, 2))
        files |= {f"{name}/{i}.png": pixels(rng) for i in (1, 2)}
        sets.append([f"fuzz{number}_{name}", f"{{in}}/{name}.json", f"{{in}}/{name}"])
    words += ["DATASETS.REGISTER", json.dumps(sets), "DATASETS.TRAIN", f"('{sets[0][0]}',)"]
    words += ["DATASETS.TEST", f"('{sets[1][0]}',)", "OUTPUT_DIR", "{out}/run"]
    return Inputs(files, words)


@kind(0.7)
def train(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    data, values = detector()
    config = json.loads(json.dumps(values))
    config["SOLVER"]["MAX_ITER"] = 2
    config["TEST"]["REPORT"] = False
    inputs = training_set(rng, number, config)
    more = rng.choice(
        [[], [], ["MODEL.WEIGHTS", "{in}/w.pth"], ["TEST.MAX_DETECTIONS", "50"], ["TEST.VALIDATION_LOSS", "True"],
         ["DATASETS.CHECK", "json"], ["DATASETS.BROKEN_IMAGES", "skip"]]
    )  # fmt: skip
    if more[:1] == ["MODEL.WEIGHTS"]:
        data, inputs.notes = mutated_detector(rng)
        inputs.files["w.pth"] = File(data, "bytes")
    evaluating = ["--eval-only"] if more[:1] == ["MODEL.WEIGHTS"] and rng.random() < 0.7 else []
    inputs.line = ["train", "--config-file", "{in}/c.yaml", *evaluating, *inputs.line, *more]

    def trained(call: Call) -> None:
        out = Path(call.flag("OUTPUT_DIR") or ".")
        if (out / "model_final.pth").is_file():
            found = torch.load(out / "model_final.pth", weights_only=True)["model"]
            assert all(torch.isfinite(v).all() for v in found.values() if v.is_floating_point()), (
                "weights are not finite"
            )
        detections = list(out.rglob("coco_instances_results.json"))
        truth = call.given / "test.json"
        if not detections or not truth.is_file() or not (out / "results.json").is_file():
            raise NoOracle("nothing evaluated")
        ours = json.loads((out / "results.json").read_text()).get("bbox", {})
        try:
            document = fixed(truth, call.given / "test")
        except Exception as error:
            raise NoOracle(f"{type(error).__name__}") from None
        limit = call.flag("TEST.MAX_DETECTIONS")
        theirs = reference(document, read(detections[0]), "bbox", int(limit) if limit else None)
        for name, value in theirs.items():
            same = ours.get(name) == value or (
                value is not None and math.isclose(ours.get(name) or 0, value, abs_tol=1e-9)
            )
            assert same, f"{name} is {ours.get(name)}, pycocotools has {value}"

    return inputs, trained


def fixed(truth: Path, images: Path) -> dict:
    from resnext_det.annotations.check import inspect_coco

    return inspect_coco(truth, images, workers=1, policy="skip").mended()


@kind(0.3)
def proposals(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    data, values = detector()
    inputs = training_set(rng, number, json.loads(json.dumps(values)))
    inputs.files["w.pth"] = File(data, "bytes")
    line = ["proposals", "--config-file", "{in}/c.yaml", "--output", "{out}/p"]
    inputs.line = [*line, *inputs.line, "MODEL.WEIGHTS", "{in}/w.pth"]

    def written(call: Call) -> None:
        for path in Path(call.flag("--output") or call.out).glob("*.pkl"):
            content = pickle.loads(path.read_bytes())
            for boxes in content["boxes"]:
                assert np.isfinite(boxes).all() and (boxes >= 0).all(), "boxes outside"

    return inputs, written


@kind(0.6)
def pretrain(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    files = {
        f"{split}/{name}/{i}.png": pixels(rng, (24, 20))
        for split in ("train", "val")
        for name in CLASSES
        for i in (1, 2)
    }
    config = {
        "MODEL": {"NAME": "resnext14_2x2d", "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "DEVICE": "cpu"},
        "DATALOADER": {"NUM_WORKERS": 0}, "INPUT": {"CROP_SIZE": 32}, "TEST": {"SHORT_SIDE": 32, "CROP_SIZE": 32},
        "SOLVER": {"EPOCHS": 1, "STEPS": [], "IMS_PER_BATCH": 3, "REFERENCE_BATCH": 3, "BASE_LR": 0.01},
        "SEED": 1,
    }  # fmt: skip
    files["c.yaml"] = File(config, "yaml")
    line = ["pretrain", "--config-file", "{in}/c.yaml", "DATASETS.TRAIN", "{in}/train", "DATASETS.TEST", "{in}/val"]
    inputs = Inputs(files, [*line, "OUTPUT_DIR", "{out}/run"])

    def trained(call: Call) -> None:
        out = Path(call.flag("OUTPUT_DIR") or ".")
        results = json.loads((out / "results.json").read_text())
        number = sum(1 for p in (call.given / "val").rglob("*") if p.is_file() and not p.name.startswith("."))
        wrong = results["top1_error"] / 100 * number
        assert 0 <= results["top1_error"] <= 100
        if "skipped" not in call.said and "left out" not in call.said:
            assert abs(wrong - round(wrong)) < 1e-6 * max(number, 1), f"{wrong} of {number} images"

    return inputs, trained


@kind(0.02)
def export(rng: random.Random, number: int) -> tuple[Inputs, Oracle]:
    data, notes = mutated_detector(rng)
    files = {"w.pth": File(data, "bytes"), "i/1.png": pixels(rng, (60, 48))}
    line = [
        "export",
        "--weights",
        "{in}/w.pth",
        "--output",
        "{out}/e",
        "--format",
        rng.choice(["onnx", "program", "all"]),
    ]
    inputs = Inputs(files, [*line, "--check", "{in}/i"], notes=notes)

    def written(call: Call) -> None:
        folder = Path(call.flag("--output") or call.out / "output/export")
        about = json.loads((folder / "detector.json").read_text())
        assert about["class_names"] and os.listdir(folder)

    return inputs, written
