"""Write the quickstart's data: real handwritten digits to classify, and colored scenes to find them in.

The digits are the 1,797 that scikit-learn carries (8x8 gray levels, Alpaydin and Kaynak 1998); nothing is downloaded.

    digits/classification/{train,val}/{zero..nine}/*.png            an ImageFolder, one image per digit
    digits/detection/{train,minival}/*.png                          scenes of one to six digits on textured paper
    digits/detection/annotations/instances_{train,minival}.json     COCO format
    digits/manifest.json                                            the settings it was made with

Training and test images never share a digit, whatever the seed: the last fifth of every class, in the order in which
scikit-learn stores them, is kept for ``val`` and ``minival``. Those were mostly written by other people.
The same settings and library versions give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_path, read_state, write_json

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECIPE = 1
"""Raise it whenever the same settings begin to give other images: older folders are then made again."""

HELD_OUT = 0.2  # of every class
CROP_SIZE = 64  # pixels, the side of a classification image
CROP_DIGIT = (28, 50)
SCENE_DIGIT = (24, 72)
SCENE_SHORTEST = 0.8  # of the longest side allowed
MOST_TURNED = 15  # degrees; a digit's frame grows to cos 15 + sin 15 = 1.22 times its side, and must still fit
MOST_DIGITS = 6
MOST_COVERED = 0.08  # of the smaller of two boxes may lie under the other
PARTS = ("classification", "detection")


@dataclass(frozen=True)
class Settings:
    """What decides every byte: scenes for training and for minival, seed, longest side of a scene in pixels."""

    train: int = 600
    minival: int = 150
    seed: int = 0
    size: int = 160

    def __post_init__(self) -> None:
        for field in ("train", "minival"):
            if getattr(self, field) < 1:
                raise UserError(f"--{field} {getattr(self, field)}: at least one scene is needed")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")
        smallest = math.ceil(1.3 * SCENE_DIGIT[1] / SCENE_SHORTEST)
        if not smallest <= self.size <= 4096:
            raise UserError(f"--size {self.size}: choose {smallest} to 4096 pixels (digits are up to {SCENE_DIGIT[1]})")


@dataclass(frozen=True)
class Digit:
    """One handwritten digit: its number in scikit-learn's set, its class 0-9, its ink as (8, 8) float in [0, 1]."""

    number: int
    label: int
    ink: np.ndarray


def load_split() -> tuple[list[Digit], list[Digit]]:
    """(training digits, held-out digits); the same for every seed, and every class in both."""
    from sklearn.datasets import load_digits

    data = load_digits()
    digits = [Digit(i, int(t), x / 16.0) for i, (x, t) in enumerate(zip(data.images, data.target, strict=True))]
    train, held_out = [], []
    for label in range(len(CLASSES)):
        of_class = [d for d in digits if d.label == label]
        first_held_out = round(len(of_class) * (1 - HELD_OUT))
        train += of_class[:first_held_out]
        held_out += of_class[first_held_out:]
    return train, held_out


def render_digit(ink: np.ndarray, side: float, angle: float) -> np.ndarray:
    """Scale 8x8 ink to ``side`` pixels, turn it by ``angle`` degrees and crop it to what is visible.

    Returns:
        (h, w) float in [0, 1], the opacity; the first and last rows and columns hold ink, so its frame is the box.
    """
    cells = 12  # the 8x8 ink with a margin that no rotation leaves
    padded = np.zeros((cells, cells), np.float32)
    padded[2:10, 2:10] = ink
    pixels = math.ceil(cells * side / 8)
    scale = cells / pixels
    cos, sin = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
    middle, centre = cells / 2, pixels / 2
    to_cells = (cos, sin, middle - (cos + sin) * centre, -sin, cos, middle - (cos - sin) * centre)
    image = Image.fromarray(padded).transform(
        (pixels, pixels), Image.Transform.AFFINE, to_cells, Image.Resampling.BICUBIC
    )
    # Bicubic enlargement blurs; the ramp gives strokes their edge back and keeps the shade inside narrow loops.
    opacity = np.clip((np.asarray(image) - 0.2) / 0.6, 0, 1)
    visible = opacity > 0.4
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def make_paper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Warm paper, (height, width, 3) float RGB: blotches, grain, uneven light, sometimes rules and stray lines.

    Red exceeds blue on average, so a network trained on RGB notices when it is given BGR.
    """
    warmth = rng.uniform(0.05, 0.3)
    paper = rng.uniform(60, 200) * np.array([1 + warmth, 1, 1 - warmth]) * np.ones((height, width, 1))
    for cell in (6, 12, 30, 60):
        grid = rng.normal(size=(4, height // cell + 2, width // cell + 2)) * rng.uniform(2, 10)
        gray, *color = (_enlarge(g, height, width) for g in grid)
        paper += gray[..., None] + 0.4 * np.stack(color, axis=-1)
    y, x = np.mgrid[:height, :width]
    for period in (rng.uniform(200, 500), rng.uniform(5, 20)):  # light from one side, and the weave
        turn = rng.uniform(0, 2 * np.pi)
        wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period + rng.uniform(0, 2 * np.pi))
        paper += wave[..., None] * rng.uniform(0, 14)
    # Lines across the whole image: edges that are not digits.
    lines = Image.new("L", (width, height))
    draw = ImageDraw.Draw(lines)
    for _ in range(rng.integers(0, 5)):
        ends = [(0.0, rng.uniform(0, height)), (float(width), rng.uniform(0, height))]
        if rng.random() < 0.5:
            ends = [(rng.uniform(0, width), 0.0), (rng.uniform(0, width), float(height))]
        draw.line(ends, fill=255, width=int(rng.integers(1, 3)))
    return paper + np.asarray(lines, np.float64)[..., None] / 255 * rng.uniform(-60, 60, size=3)


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(grid.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))


def compose_scene(
    rng: np.random.Generator, digits: Sequence[Digit], height: int, width: int, sides: tuple[float, float]
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Write ``digits`` on paper, one after the other, where they hardly overlap; one that finds no place is left out.

    Args:
        rng: decides everything.
        digits: at least one; the first always finds a place when ``sides`` fit into the image.
        height, width: of the image, in pixels.
        sides: smallest and largest digit, in pixels.

    Returns:
        (height, width, 3) uint8 RGB, and for each digit (class 0-9, [x, y, w, h] in whole pixels inside the image).
    """
    canvas = make_paper(rng, height, width)
    objects: list[tuple[int, list[int]]] = []
    for digit in digits:
        side = math.exp(rng.uniform(math.log(sides[0]), math.log(sides[1])))
        opacity = render_digit(digit.ink, side, rng.uniform(-MOST_TURNED, MOST_TURNED))
        h, w = opacity.shape
        box = _find_place(rng, h, w, height, width, [box for _, box in objects])
        if box is None:
            continue
        x, y = box[:2]
        patch = canvas[y : y + h, x : x + w]
        patch += opacity[..., None] * (_choose_ink(rng, patch.mean()) - patch)
        objects.append((digit.label, box))
    grain = rng.normal(size=canvas.shape) * rng.uniform(2, 7)
    return np.clip(np.round(canvas + grain), 0, 255).astype(np.uint8), objects


def _find_place(
    rng: np.random.Generator, h: int, w: int, height: int, width: int, taken: list[list[int]]
) -> list[int] | None:
    for _ in range(40):
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if all(_covered((x, y, w, h), other) <= MOST_COVERED for other in taken):
            return [x, y, w, h]
    return None


def _covered(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over the smaller of two xywh boxes."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


def _choose_ink(rng: np.random.Generator, paper: float) -> np.ndarray:
    """A cool color, (3,) RGB, darker or lighter than the paper under it by a contrast that varies."""
    contrast = rng.uniform(45, 120)
    darker = paper - contrast > 10 and (paper + contrast > 245 or rng.random() < 0.6)
    coolness = rng.uniform(0, 0.35)
    return (paper + (-contrast if darker else contrast)) * np.array([1 - coolness, 1, 1 + coolness])


def write_classification(folder: Path, digits: Sequence[Digit], seed: Sequence[int]) -> int:
    """Write each digit once, alone on paper, as ``folder/<class>/<number>.png``; returns how many."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for digit in tqdm(digits, desc=f"classification/{folder.name}", disable=None):
        rng = np.random.default_rng([*seed, digit.number])
        canvas, _ = compose_scene(rng, [digit], CROP_SIZE, CROP_SIZE, CROP_DIGIT)
        _save(canvas, folder / CLASSES[digit.label] / f"{digit.number:04d}.png")
    return len(digits)


def write_detection(
    folder: Path, annotations: Path, digits: Sequence[Digit], scenes: int, size: int, seed: Sequence[int]
) -> int:
    """Write ``scenes`` scenes of ``digits`` to ``folder`` and their COCO JSON to ``annotations``; returns how many."""
    folder.mkdir(parents=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    objects: list[dict] = []
    for i in tqdm(range(scenes), desc=f"detection/{folder.name}", disable=None):
        rng = np.random.default_rng([*seed, i])
        height, width = (int(rng.integers(math.ceil(SCENE_SHORTEST * size), size + 1)) for _ in range(2))
        chosen = rng.choice(len(digits), size=int(rng.integers(1, MOST_DIGITS + 1)), replace=False)
        canvas, found = compose_scene(rng, [digits[c] for c in chosen], height, width, SCENE_DIGIT)
        image = {"id": i + 1, "file_name": f"{i + 1:06d}.png", "width": width, "height": height, "license": 1}
        _save(canvas, folder / image["file_name"])
        images.append(image)
        for label, box in found:
            common = {"id": len(objects) + 1, "image_id": image["id"], "category_id": label + 1}
            objects.append({**common, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    coco = {
        "info": {"description": f"Handwritten digits in composed scenes, {folder.name}", "version": str(RECIPE)},
        "licenses": [{"id": 1, "name": "CC BY 4.0: Optical Recognition of Handwritten Digits, Alpaydin and Kaynak"}],
        "images": images,
        "annotations": objects,
        "categories": [{"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES)],
    }
    annotations.write_text(json.dumps(coco), encoding="utf-8")
    return scenes


def _save(canvas: np.ndarray, file: Path) -> None:
    Image.fromarray(canvas).save(file, compress_level=1)  # grain hardly compresses: higher levels only cost time


def make_digits(folder: Path | str, settings: Settings = Settings()) -> bool:  # noqa: B008 (frozen)
    """Write the whole tree to ``folder``; see the module's docstring.

    Returns:
        False when the same settings had already been written there in full, and nothing was done.

    Raises:
        UserError: ``folder`` exists and is not one that this function made.
    """
    folder = Path(folder)
    manifest = folder / "manifest.json"
    wanted = {"made_by": "make_digits", "recipe": RECIPE, **asdict(settings)}
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        written = _read_manifest(manifest)
        if written.get("made_by") != wanted["made_by"]:
            raise UserError(f"{folder}: exists and was not made by make_digits; choose another --output or remove it")
        if written == {**wanted, "images": _count_images(folder)}:
            return False
    write_json(manifest, wanted)  # without "images": not complete
    train, held_out = load_split()
    seed = settings.seed
    with atomic_path(folder / PARTS[0]) as classification, atomic_path(folder / PARTS[1]) as detection:
        number = write_classification(classification / "train", train, [seed, 0])
        number += write_classification(classification / "val", held_out, [seed, 1])
        for split, digits, scenes, stream in (
            ("train", train, settings.train, 2),
            ("minival", held_out, settings.minival, 3),
        ):
            target = detection / "annotations" / f"instances_{split}.json"
            number += write_detection(detection / split, target, digits, scenes, settings.size, [seed, stream])
    write_json(manifest, {**wanted, "images": number})
    return True


def _read_manifest(file: Path) -> dict:
    try:
        return read_state(file, dict, "")
    except UserError:
        return {}


def _count_images(folder: Path) -> int:
    return sum(1 for part in PARTS for _ in (folder / part).rglob("*.png"))
