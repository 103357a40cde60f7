"""One reader of users' JSON: whatever the command, the same file gets the same answer, and what it is gets named."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import pytest

from resnext_det import cli
from resnext_det.annotations.check import read_document
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.reading import CHUNK, read_json, stream_list
from resnext_det.errors import UserError

TRUTH = {
    "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 50}],
    "categories": [{"id": 4, "name": "Käfer 你好"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [5, 5, 30, 40], "area": 1200, "iscrowd": 0}],
}
FOUND = [{"image_id": 1, "category_id": 4, "bbox": [5, 5, 30, 38], "score": 0.9}]
PREDICTED = {
    "images": [{"id": 9, "file_name": "x/a.png"}],
    "categories": [{"id": 0, "name": "Käfer 你好"}],
    "annotations": [{**FOUND[0], "id": 1, "image_id": 9, "category_id": 0}],
}


def text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.json", data)
    return buffer.getvalue()


def lines(data: bytes) -> bytes:
    return data.replace(b'], "', b']}\n{"') if data.startswith(b"{") else data.strip(b"[]") + b"\n" + data.strip(b"[]")


WHAT_IT_IS = [
    (lambda data: data.decode().encode("utf-16"), "is UTF-16: write it as UTF-8"),
    (lambda data: data.decode().encode("utf-16-be"), "UTF-16 or UTF-32"),
    (lambda data: data.decode().encode("utf-32"), "is UTF-16|UTF-16 or UTF-32"),
    (lambda data: data.replace("ä".encode(), b"\xe4"), "not UTF-8 text at byte|is not among|not those of"),
    (gzip.compress, "is gzip: unpack it"),
    (zipped, "is a ZIP archive: unpack it"),
    (lines, r"several JSON values, one after the other \(JSON lines\)"),
    (lambda data: b"<annotations/>", "is XML or HTML, not JSON"),
    (lambda data: b"", "is empty"),
    (lambda data: b" \n ", "is empty"),
    (lambda data: data[:-20], "the file ends in the middle"),
    (lambda data: data + b"]", "extra data: correct it there"),
]


@pytest.mark.parametrize(("change", "said"), WHAT_IT_IS)
@pytest.mark.parametrize("reader", ["check", "--gt", "--dt", "--dt of predict", "make-minival", "labelme"])
def test_every_reader_names_what_a_file_is(tmp_path, monkeypatch, reader, change, said):
    content = {"gt": text(TRUTH), "dt": text(FOUND), "predicted": text(PREDICTED)}
    content["shapes"] = text({"imagePath": "ä.png", "shapes": [], "imageData": ["x"], "flags": {}})
    part = {"--dt": "dt", "--dt of predict": "predicted", "labelme": "shapes"}.get(reader, "gt")
    changed = change(content[part])
    if changed == content[part]:
        pytest.skip("no letter of another encoding in it")
    content[part] = changed
    for name, data in content.items():
        (tmp_path / f"{name}.json").write_bytes(data)
    (tmp_path / "instances_val2014.json").write_bytes(content["gt"])
    (tmp_path / "instances_val2017.json").write_bytes(content["gt"])
    evaluate = ["evaluate", "--gt", f"{tmp_path}/gt.json", "--dt"]
    line = {
        "check": ["check", "--json", f"{tmp_path}/gt.json", "--images", str(tmp_path)],
        "--gt": [*evaluate, f"{tmp_path}/dt.json"],
        "--dt": [*evaluate, f"{tmp_path}/dt.json"],
        "--dt of predict": [*evaluate, f"{tmp_path}/predicted.json"],
        "make-minival": ["make-minival", "--annotations", str(tmp_path)],
    }
    with pytest.raises(UserError, match=said) as error:
        if reader == "labelme":
            from resnext_det.annotations.formats import labelme

            labelme.read(tmp_path / "shapes.json")
        else:
            cli.call(line[reader][0], line[reader][1:])
    assert "\n" not in str(error.value) and ".json" in str(error.value)


def test_a_byte_order_mark_changes_nothing(tmp_path, capsys):
    for mark in (b"", b"\xef\xbb\xbf"):
        for name, value in (("gt", TRUTH), ("dt", FOUND), ("predicted", PREDICTED)):
            (tmp_path / f"{name}.json").write_bytes(mark + text(value))
        for name in ("dt", "predicted"):
            cli.call("evaluate", ["--gt", f"{tmp_path}/gt.json", "--dt", f"{tmp_path}/{name}.json"])
        assert read_document(tmp_path / "gt.json") == TRUTH
    printed = capsys.readouterr().out
    half = len(printed) // 4
    assert printed == printed[:half] * 4 and "AP50                     100.0000" in printed


@pytest.mark.parametrize("key", ["annotations", "images", "categories"])
def test_a_list_that_stands_twice_is_not_half_read(tmp_path, key):
    """Of a key that stands twice JSON readers keep the last, in silence."""
    twice = text(TRUTH)[:-1] + b", " + text({key: TRUTH[key]})[1:]
    (tmp_path / "gt.json").write_bytes(twice)
    with pytest.raises(UserError, match=f"gt.json: '{key}' stands twice"):
        read_ground_truth(tmp_path / "gt.json")


@pytest.mark.parametrize(("value", "said"), [
    (TRUTH, r"is ground truth \(images, annotations\), not a list of detections; are --gt and --dt swapped\?"),
    ({"image_id": 1}, "is an object, not a list of detections"), ("x", "is a text"), (None, "is null"),
    (3, "is a number"),
    ([1, 2, 3], "detection 0 is 1, not an object with image_id"),
    ([FOUND[0], {**FOUND[0], "score": "0.9"}], "detection 1 has score '0.9'; .* must be numbers"),
    ([{**FOUND[0], "score": 10**400}], "detection 0 has score 1000.*, larger than any float"),
    ([FOUND[0]] * CHUNK + [{**FOUND[0], "image_id": None}], f"detection {CHUNK} has image_id None"),
])  # fmt: skip
def test_results_that_are_none_say_what_they_are(tmp_path, value, said):
    (tmp_path / "dt.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=said):
        Detections.from_json(tmp_path / "dt.json")


def test_swapped_files_are_told(tmp_path):
    (tmp_path / "gt.json").write_bytes(text(TRUTH))
    (tmp_path / "dt.json").write_bytes(text(FOUND))
    with pytest.raises(
        UserError, match=r"dt.json: is not an object .* looks like a results file; .*are --gt and --dt swapped\?"
    ):
        cli.call("evaluate", ["--gt", f"{tmp_path}/dt.json", "--dt", f"{tmp_path}/gt.json"])
    with pytest.raises(UserError, match="are --gt and --dt swapped"):
        cli.call("evaluate", ["--gt", f"{tmp_path}/gt.json", "--dt", f"{tmp_path}/gt.json"])


def test_a_nested_object_that_looks_like_a_detection_is_part_of_its_record(tmp_path):
    nested = [{**FOUND[0], "parent": {**FOUND[0], "bbox": [0, 0, 1, 1]}, "parts": [[{"score": 1}]]}]
    for spaces in (None, 1):
        (tmp_path / "dt.json").write_text(json.dumps(nested, indent=spaces))
        assert list(Detections.from_json(tmp_path / "dt.json").records()) == FOUND


def test_a_list_is_streamed_as_json_reads_it(tmp_path):
    items = [{"a": i, "b": [1, {"c": "]"}]} for i in range(2 * CHUNK + 3)]
    for data in (json.dumps(items), json.dumps(items, indent=0), "[]", " [ ] ", "[1]"):
        (tmp_path / "x.json").write_text(data)
        parts = list(stream_list(tmp_path / "x.json"))
        assert [item for part in parts for item in part] == read_json(tmp_path / "x.json")
        assert all(len(part) <= CHUNK for part in parts)
