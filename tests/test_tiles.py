"""Tiles against the whole image: the same bits where there is one tile, no object lost or doubled elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from resnext_det import UserError
from resnext_det.annotations.coco import Detections
from resnext_det.prediction.tiles import Tiled, starts


def squares(images) -> list[Detections]:
    """Finds the uniform rectangles by their gray value: exact boxes, the score by value; class = value % 2."""
    found = []
    for image in images:
        rows = []
        for value in np.unique(image[image > 0]):
            y, x = np.nonzero(image[:, :, 0] == value)
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            rows.append((value % 2, box, value / 255 if len(x) > 40 else 0.99))  # what is cut small is surest of itself
        classes, boxes, scores = zip(*rows, strict=True) if rows else ((), np.zeros((0, 4)), ())
        found.append(
            Detections(
                np.zeros(len(rows), dtype=np.int64), np.array(classes, dtype=np.int64),
                np.array(boxes, dtype=np.float32), np.array(scores),
            )
        )  # fmt: skip
    return found


def scene(height: int, width: int, boxes) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for value, (x, y, w, h) in enumerate(boxes, 100):
        image[y : y + h, x : x + w] = value
    return image


def test_a_seam_object_is_found_once_and_boxes_are_the_images() -> None:
    """Random scenes: what tiles find is what the whole image gives, box by box."""
    random = np.random.default_rng(0)
    for _ in range(30):
        height, width = random.integers(70, 260, 2)
        cells = [(x, y) for x in range(0, width - 24, 25) for y in range(0, height - 24, 25)]
        chosen = random.permutation(len(cells))[:20]
        boxes = [(*cells[i], *random.integers(8, 24, 2)) for i in chosen]
        image = scene(height, width, boxes)
        (wanted,), (found,) = squares([image]), Tiled(squares, 64, 0.4)([image])
        assert (np.diff(found.scores) <= 0).all()
        assert sorted(map(tuple, found.boxes.tolist())) == sorted(map(tuple, wanted.boxes.tolist()))
        by_box = {tuple(box): c for box, c in zip(wanted.boxes.tolist(), wanted.category_ids.tolist(), strict=True)}
        assert [by_box[tuple(box)] for box in found.boxes.tolist()] == found.category_ids.tolist()


def test_an_image_no_larger_than_a_tile_gets_the_same_call() -> None:
    calls = []

    def detect(images):
        calls.append(images)
        return squares(images)

    images = [scene(40, 64, [(1, 1, 9, 9)]), scene(64, 64, [(60, 60, 4, 4)])]
    tiled = Tiled(detect, 64)(images)
    assert calls == [images] and calls[0][0] is images[0]
    for a, b in zip(tiled, squares(images), strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_classes_and_neighbors_in_one_tile_stay_apart() -> None:
    same = Detections(
        np.zeros(2, dtype=np.int64), np.array([0, 1]), np.array([[50, 0, 20, 20]] * 2, dtype=np.float32), np.ones(2)
    )
    nothing = Detections.empty()
    tiles = iter([same, nothing, replaced(same, [0, 0]), nothing])
    assert len(Tiled(lambda images: [next(tiles)], 100, 0)([np.zeros((100, 199, 3), np.uint8)])[0]) == 2
    assert len(Tiled(lambda images: [next(tiles)], 100, 0)([np.zeros((100, 199, 3), np.uint8)])[0]) == 2


def replaced(found: Detections, classes: list[int]) -> Detections:
    return Detections(found.image_ids, np.array(classes), found.boxes, found.scores)


@pytest.mark.parametrize("length, size, overlap", [(1000, 300, 0.2), (301, 300, 0.5), (300, 300, 0.2), (7, 300, 0)])
def test_tiles_cover_a_side(length: int, size: int, overlap: float) -> None:
    places = starts(length, size, overlap)
    assert places[0] == 0 and places[-1] == max(0, length - size) and places == sorted(set(places))
    assert all(b - a <= round(size * (1 - overlap)) for a, b in zip(places, places[1:], strict=False))


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="tiles of 16 pixels that overlap by 0.2: give 32 or more"):
        Tiled(squares, 16)
    masked = Detections.empty()
    masked.masks = []
    with pytest.raises(UserError, match="masks and keypoints cannot be merged"):
        Tiled(lambda images: [masked], 64)([np.zeros((100, 100, 3), np.uint8)])
