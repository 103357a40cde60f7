"""The typed reader of documents sees what Python's reader sees, whatever stands in the file."""

from __future__ import annotations

import json
import random

import pytest

from resnext_det.annotations import records, typed_json
from resnext_det.annotations.check import Options, inspect_coco, inspect_document, report
from resnext_det.annotations.records import ANNOTATION_COLUMNS, open_document
from resnext_det.errors import UserError

ODD = {
    "id": ["7", 7.0, None, -1, 2**63, "x", [1]],
    "image_id": ["1", 1.0, None, 99, True],
    "category_id": ["3", 3.0, 9],
    "bbox": [None, [], [1, 2, 3], ["1", 2, 3, 4], [1, 2, 3, 1e300], [-5, 2, 30, 40], [1, 2, 0, 4]],
    "area": [None, -1, "12", 10**400, 5],
    "iscrowd": [None, True, 2, -1, "1"],
    "ignore": [0, 1, False, ""],
    "segmentation": [[], None, [[1, 2, 3]], [[1, 1, 9, 1, 9, 9]], {"size": [60, 80], "counts": [4800]}, "", 0.0],
    "keypoints": [[], None, [1, 2, 2], [1, 2]],
    "num_keypoints": [1, "1", None],
    "attributes": [{"a": 1, "b": {"c": "}, {"}}, [{"a": 1}, {"a": 2}]],
    "no identifier": ['a ":" text', "\u20ac"],
}


def document(seed: int, odd: float) -> dict:
    rng = random.Random(seed)
    annotations = []
    for i in range(40):
        box = [rng.randrange(40), rng.uniform(0, 30), rng.uniform(1, 30), 20]
        record = {"id": i + 1, "image_id": 1 + i % 3, "category_id": 3, "bbox": box, "area": 4.5, "iscrowd": 0}
        for key in record.keys() | ODD.keys():
            if rng.random() < odd:
                record[key] = rng.choice(ODD.get(key, [0]))
            elif rng.random() < odd / 10:
                record.pop(key, None)
        annotations.append(record)
    images = [
        {"id": i, "file_name": f"\u00fc {i}.jpg", "width": 80, "height": 60, "coco_url": "http://x"} for i in (1, 2, 3)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "x"}], "info": {"a": [1]}}


@pytest.mark.parametrize("seed", range(12))
def test_a_file_and_what_it_holds_give_the_same_findings_and_columns(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(typed_json, "BLOCK", 400)
    content = document(seed, seed % 5 / 20)
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content, indent=seed % 3 or None))
    for root in (None, tmp_path):
        options = Options(check_images=False, masks=seed % 2 == 0, for_training=seed % 4 == 0, workers=1)
        ours, plain = inspect_coco(file, root, options), inspect_document(content, file, root, options)
        assert isinstance(ours.document["annotations"], records.Records)
        assert report(ours) == report(plain)
        assert ours.fixed() == plain.fixed()
        one, other = (vars(checked.dataset(as_written=True, masks=True)) for checked in (ours, plain))
        for key in one:
            assert str(one[key]) == str(other[key]), key


def test_typed_pieces_are_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(typed_json, "BLOCK", 400)
    slow = []
    monkeypatch.setitem(ANNOTATION_COLUMNS, "id", lambda values: slow.append(values) or records.columns.wide(values))
    (tmp_path / "x.json").write_text(json.dumps(document(0, 0)))
    assert len(open_document(tmp_path / "x.json")["annotations"]) == 40 and len(slow) == 1


@pytest.mark.parametrize("where", ["top", "record", "nested"])
def test_a_key_that_stands_twice_is_found_in_every_piece(tmp_path, monkeypatch, where):
    monkeypatch.setattr(typed_json, "BLOCK", 400)
    text = json.dumps(document(0, 0))
    last = text.rindex('"image_id"')
    text = {
        "top": text[:-1] + ', "annotations": []}',
        "record": text[:last] + '"area": 3, ' + text[last:],
        "nested": text[:last] + '"attributes": {"a": 1, "a": 2}, ' + text[last:],
    }[where]
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x.json: '\w+' stands twice"):
        open_document(tmp_path / "x.json")


def test_a_file_that_changes_meanwhile_is_not_read_wrongly(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(document(0, 0)))
    found = open_document(tmp_path / "x.json")["annotations"]
    (tmp_path / "x.json").write_text(json.dumps(document(0, 0), indent=1))
    with pytest.raises(UserError, match="has changed while it was read"):
        found[7]
