"""Planted errors come first, each as its kind; and the columns say what loops over images and boxes say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from coco_sets import random_set
from PIL import Image

from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.label_errors import KINDS, _trust, joined_folds, label_errors
from resnext_det.annotations.thresholds import iou, match
from resnext_det.cli import call
from resnext_det.errors import UserError


def planted_set() -> tuple[dict, list[dict], dict[int | None, str]]:
    """20 images of 12 objects, what a good detector finds in them, and {annotation id, None for none: its error}."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(1, 21):
        for place in range(12):
            box, category = [100 * (place % 4) + 10, 100 * (place // 4) + 10, 60, 60], 1 + place % 2
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": image, "category_id": category, "bbox": box})
            near = (np.array(box) + rng.uniform(-4, 4, 4)).tolist()
            score = float(rng.uniform(0.8, 1))
            detections.append({"image_id": image, "category_id": category, "bbox": near, "score": score})
    annotations[30]["category_id"] = 3 - annotations[30]["category_id"]
    annotations[70]["bbox"] = [annotations[70]["bbox"][0] + 30, annotations[70]["bbox"][1] + 12, 60, 60]
    annotations.append({"id": 999, "image_id": 3, "category_id": 1, "bbox": [450, 40, 60, 60]})
    del annotations[110]
    truth = {
        "images": [{"id": i, "width": 600, "height": 400, "file_name": f"{i}.png"} for i in range(1, 21)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "<b>"}],
        "annotations": annotations,
    }
    return truth, detections, {31: "swapped", 71: "shifted", 999: "invented", None: "missing"}


def test_planted_errors_come_first_each_as_its_kind() -> None:
    document, records, planted = planted_set()
    truth, found = read_ground_truth(document), Detections.from_records(records)
    suspects = label_errors(truth, found)
    first = suspects.records(truth, found)[: len(planted)]
    assert {one.get("label", {}).get("annotation_id"): one["kind"] for one in first} == planted
    (missing,) = (one for one in first if one["kind"] == "missing")
    assert missing["found"]["bbox"] == records[110]["bbox"] and missing["file_name"] == "10.png"
    assert suspects.score[3] > 0.8 > 0.2 > suspects.score[4:].max(initial=0)


def by_loops(truth, found, least) -> dict[tuple[int, int], tuple[str, float]]:
    """{(object or -1, detection or -1): kind and score}."""
    matches = match(truth, found)
    trust, taken = _trust(matches), matches.taken[0]
    n, crowd = len(matches.score), truth.iscrowd == 1
    support = {o: trust[d] for d, o in enumerate(taken) if o >= 0 and not crowd[o]}
    seen = set(matches.image.tolist())
    free = [d for d in range(n) if taken[d] < 0]
    overlap = {
        (d, o): iou(matches.box[[d]], truth.boxes[[o]])[0]
        for d in free for o in range(len(truth)) if truth.image[o] == matches.image[d] and not crowd[o]
    }  # fmt: skip
    near: dict[int, list[int]] = {d: [] for d in free}
    for (d, o), much in overlap.items():
        if much >= 0.1:
            near[d].append(o)
    alone = [d for d in free if all(overlap[d, o] < 0.5 for o in near[d])]
    beside = {}
    for d in alone:
        own = [o for o in near[d] if truth.category[o] == matches.category[d]]
        if own:
            beside[d] = max(own, key=lambda o: overlap[d, o])
    usual = {}
    for k in range(len(truth.class_names)):
        members = [o for o in range(len(truth)) if truth.category[o] == k and not crowd[o] and truth.image[o] in seen]
        usual[k] = sum(support.get(o, 0) for o in members) / max(len(members), 1)
    answer = {}
    for o in range(len(truth)):
        if crowd[o] or truth.image[o] not in seen:
            continue
        swaps = [d for d in free if overlap.get((d, o), 0) >= 0.5 and matches.category[d] != truth.category[o]]
        shifts = [d for d in alone if beside.get(d) == o]
        ways = [
            (max((trust[d] for d in ds), default=0), kind) for ds, kind in ((swaps, "swapped"), (shifts, "shifted"))
        ]
        ways.append((usual[truth.category[o]] * (1 - max(way[0] for way in ways)), "invented"))
        value, kind = max(ways, key=lambda way: way[0])
        if value * (1 - support.get(o, 0)) >= least:
            answer[o] = kind, value * (1 - support.get(o, 0))
    kept: list[int] = []
    values = {d: trust[d] * (support.get(beside[d], 0) if d in beside else 1) for d in alone}
    for d in sorted(alone, key=lambda d: -values[d]):
        rivals = [e for e in kept if matches.image[e] == matches.image[d]]
        if values[d] >= least and all(iou(matches.box[[d]], matches.box[[e]])[0] < 0.5 for e in rivals):
            kept.append(d)
            answer[-1 - int(matches.index[d])] = "missing", values[d]
    return answer


@pytest.mark.parametrize("seed", range(4))
def test_random_sets_with_crowds_are_ranked_as_by_loops(seed: int) -> None:
    document, records = random_set(seed, images=12)
    truth, found = read_ground_truth(document), Detections.from_records(records)
    suspects = label_errors(truth, found, least=0.02)
    assert (np.diff(suspects.score) <= 0).all()
    names = [
        o if o >= 0 else -1 - d for o, d in zip(suspects.object.tolist(), suspects.detection.tolist(), strict=True)
    ]
    answer = {name: (KINDS[k], s) for name, k, s in zip(names, suspects.kind, suspects.score, strict=True)}
    expected = by_loops(truth, found, 0.02)
    assert answer.keys() == expected.keys() and {kind for kind, _ in answer.values()} == set(KINDS)
    for name, (kind, score) in expected.items():
        assert answer[name] == (kind, pytest.approx(score, abs=1e-12))


def test_images_of_no_fold_are_left_out_and_no_image_is_in_two() -> None:
    document, records, _ = planted_set()
    truth = read_ground_truth(document)
    parts = [Detections.from_records([r for r in records if r["image_id"] in ids]) for ids in ((1, 2), (4,))]
    suspects = label_errors(truth, joined_folds(parts))
    assert {int(i) for i in truth.image[suspects.object]} <= {0, 1, 3}
    with pytest.raises(UserError, match="image_id 4 stands in detections too; give"):
        joined_folds([*parts, parts[1]])
    assert len(label_errors(truth, Detections.empty())) == 0


def test_command_writes_page_and_list(tmp_path, capsys) -> None:
    document, records, planted = planted_set()
    (tmp_path / "gt.json").write_text(json.dumps(document))
    folds = [[r for r in records if r["image_id"] % 2 == k] for k in (0, 1)]
    for k, fold in enumerate(folds):
        (tmp_path / f"{k}.json").write_text(json.dumps(fold))
    for i in range(1, 20):  # the last is absent
        Image.new("RGB", (600, 400), (200, 210, 220)).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{k}.json") for k in (0, 1)]
    common = ["--gt", str(tmp_path / "gt.json"), "--dt", *files, "--images", str(tmp_path)]
    call("evaluate", [*common, "--label-errors", str(tmp_path / "errors.html")])
    listed = json.loads((tmp_path / "errors.json").read_text())
    assert {one.get("label", {}).get("annotation_id"): one["kind"] for one in listed[:4]} == planted
    page = (tmp_path / "errors.html").read_text()
    shown = [one for one in listed[:200] if one["file_name"] != "20.png"]
    assert page.count("<figure>") == min(len(listed), 200) and page.count("data:image/jpeg") == len(shown)
    assert "<b>" not in re.sub("<b>[0-9]+[.] ", "", page) and not re.findall("https?://|<script", page)
    assert "1 missing, 1 swapped" in capsys.readouterr().out
    for page in ("errors.json", "0.html", "gt.json"):  # its list would be the page itself, an input, an input
        with pytest.raises(UserError, match="--label-errors .*: it would write over another"):
            call("evaluate", [*common, "--label-errors", str(tmp_path / page)])
