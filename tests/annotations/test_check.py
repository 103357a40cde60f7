"""The bad inputs of docs/bad_input.md, each by its number."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
from common import ROOT, shared_data
from forked import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resnext_det.annotations.check import (
    check_coco,
    inspect_coco,
    inspect_document,
    read_document,
    report,
    write_fixed,
)
from resnext_det.annotations.check.inspection import ClassCount
from resnext_det.errors import UserError
from resnext_det.images import read_image

SIZE = (64, 48)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE, (250, 100, 10)).save(folder / name)
    return folder


def document() -> dict:
    images = [{"id": i, "file_name": f"{n}.png", "width": 64, "height": 48} for i, n in ((1, "a"), (2, "b"))]
    annotation = {"image_id": 1, "area": 100.0, "iscrowd": 0}
    return {
        "images": images,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {**annotation, "id": 1, "category_id": 1, "bbox": [10, 20, 10, 10]},
            {**annotation, "id": 2, "category_id": 2, "bbox": [30, 5, 20, 5]},
        ],
    }


def inspect(doc: dict, root, **options):
    before = copy.deepcopy(doc)
    checked = inspect_document(doc, "data.json", root, workers=1, **options)
    report(checked)
    assert repr(doc) == repr(before), "the document is never changed"
    return checked


def codes(checked, severity: str) -> set[str]:
    return {code for kind, code in checked.findings.counts if kind == severity}


def error(doc: dict, root, **options) -> str:
    """The one line that stops a training."""
    with pytest.raises(UserError) as caught:
        inspect(doc, root, **options).raise_errors()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_clean_set_has_no_findings(root):
    assert inspect(document(), root, strict=True, for_training=True).findings.items == []


def test_case_01_no_info_or_licenses_is_fine(root):
    doc = {"info": None, **document()}
    assert not inspect(doc, root).findings.items


def test_case_02_no_annotations_is_for_inference_only(root):
    doc = document()
    del doc["annotations"]
    checked = inspect(doc, root)
    assert codes(checked, "warning") == {"no-annotations"} and not checked.errors
    assert "annotations" not in checked.dataset_dicts()[0]
    assert "annotations: is missing" in error(doc, root, for_training=True)


@pytest.mark.parametrize("value", [None, []])
def test_case_03_no_categories_is_an_error(root, value):
    doc = document()
    doc["categories"] = value
    if value is None:
        del doc["categories"]
    assert "categories: is" in error(doc, root)


def test_case_04_no_area_is_width_times_height(root):
    doc = document()
    del doc["annotations"][0]["area"]
    checked = inspect(doc, root)
    assert not checked.errors and checked.fixed()["annotations"][0]["area"] == 100


def test_case_05_iscrowd_absent_or_null_is_0(root):
    doc = document()
    del doc["annotations"][0]["iscrowd"]
    doc["annotations"][1]["iscrowd"] = None
    checked = inspect(doc, root)
    assert not checked.errors and [a["iscrowd"] for a in checked.dataset_dicts()[0]["annotations"]] == [0, 0]


def test_case_06_duplicate_annotation_ids_are_listed(root):
    doc = document()
    doc["annotations"][1]["id"] = 1
    assert "annotations[].id: used more than once: 1;" in error(doc, root)
    assert [a["id"] for a in inspect(doc, root).fixed()["annotations"]] == [1, 2]


def test_case_07_annotation_id_0_leaves_ap_unchanged(root):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    doc = document()
    doc["annotations"][0]["id"] = 0

    def ap(truth: dict) -> float:
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        rows = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in doc["annotations"]]
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        return evaluation.stats[0]

    checked = inspect(doc, root)
    assert not checked.errors
    assert ap(doc) < 0.99 < ap(checked.fixed())


def test_case_08_duplicate_image_ids_are_listed(root):
    doc = document()
    doc["images"][1]["id"] = 1
    assert "images[].id: used more than once: 1;" in error(doc, root)


def test_case_09_text_ids_are_cast_when_lossless(root):
    doc = document()
    doc["images"][0]["id"] = "1"
    doc["annotations"][0]["image_id"] = "1"
    checked = inspect(doc, root)
    assert not checked.errors and checked.dataset_dicts()[0]["image_id"] == 1
    doc["images"][1]["id"] = "0002"
    assert "images[1].id: is '0002', not an integer" in error(doc, root)


def test_case_10_unknown_category_is_an_error(root):
    doc = document()
    doc["annotations"][1]["category_id"] = 7
    assert "annotations[1].category_id (id 2): 7 is not among the categories" in error(doc, root)


def test_case_11_gapped_category_ids_are_mapped_and_shown(root):
    doc = document()
    doc["categories"][0]["id"] = doc["annotations"][0]["category_id"] = 90
    doc["categories"][1]["id"] = doc["annotations"][1]["category_id"] = 0
    checked = inspect(doc, root)
    assert "category-ids-mapped" in codes(checked, "note") and not checked.errors
    assert checked.metadata()["thing_dataset_id_to_contiguous_id"] == {0: 0, 90: 1}
    assert [a["category_id"] for a in checked.dataset_dicts()[0]["annotations"]] == [1, 0]
    assert "    1     90 cat: 1" in report(checked)


def test_case_12_unused_root_category_is_warned_about_and_dropped_on_demand(root):
    doc = document()
    doc["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
        {**category, "supercategory": "pets"} for category in doc["categories"]
    ]
    assert "unused-root-category" in codes(inspect(doc, root), "warning")
    assert inspect(doc, root, drop_unused_root=True).metadata()["thing_classes"] == ["cat", "dog"]


def test_case_13_categories_other_than_in_training_are_an_error(root):
    assert "lacks 'wolf', has instead 'dog'" in error(document(), root, expected_names=["cat", "wolf"])
    assert not inspect(document(), root, expected_names=["dog", "cat"]).errors, "another order is fine"


def test_case_14_other_number_of_classes_is_an_error(root):
    assert "set MODEL.ROI_HEADS.NUM_CLASSES 2" in error(document(), root, model_classes=ClassCount(80))


@pytest.mark.parametrize("box", [[5, 5, 0, 10], [5, 5, 10, -3]])
def test_case_15_zero_area_boxes_are_dropped_and_counted(root, box):
    doc = document()
    doc["annotations"][0]["bbox"] = box
    checked = inspect(doc, root)
    assert not checked.errors and checked.findings.counts[("warning", "bbox-empty")] == 1
    assert len(checked.dataset_dicts()[0]["annotations"]) == 1
    assert "annotations[0].bbox (id 1)" in error(doc, root, strict=True)


@pytest.mark.parametrize("split", ["train", "val"])
def test_case_15_zero_area_boxes_in_published_data(split):
    folder = shared_data("bccd")
    files = [folder / "annotations" / f"instances_{split}{kind}.json" for kind in ("_with_zero_area_boxes", "")]
    broken, clean = (inspect_coco(file, folder / split, check_images=False) for file in files)
    assert broken.findings.counts[("warning", "bbox-empty")] == 1
    assert broken.dataset_dicts() == clean.dataset_dicts()


def test_case_16_corners_instead_of_sizes_are_detected(root):
    doc = document()
    corners = [[10, 20, 20, 30], [30, 5, 50, 10], [40, 30, 60, 45], [2, 3, 60, 40]]
    doc["annotations"] = [{**doc["annotations"][0], "id": i, "bbox": b} for i, b in enumerate(corners, 1)]
    assert "x1, y1, x2, y2" in error(doc, root)
    assert inspect(doc, root).fixed()["annotations"][0]["bbox"] == [10, 20, 10, 10]


def test_case_17_box_outside_is_clipped_and_warned_about(root):
    doc = document()
    doc["annotations"][0]["bbox"] = [50, 20, 40, 10]
    doc["annotations"][1]["bbox"] = [100, 5, 20, 5]
    checked = inspect(doc, root)
    assert codes(checked, "warning") == {"bbox-clipped", "bbox-outside"} and not checked.errors
    assert [a["bbox"] for a in checked.dataset_dicts()[0]["annotations"]] == [[50, 20, 14, 10]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "12", 10**400, True, None])
def test_case_19_coordinates_that_are_no_numbers_are_errors(root, value):
    doc = document()
    doc["annotations"][1]["bbox"][2] = value
    assert "annotations[1].bbox (id 2)" in error(doc, root)


@pytest.mark.parametrize("value", [None, []])
def test_case_20_missing_box_is_an_error_with_the_id(root, value):
    doc = document()
    doc["annotations"][1]["bbox"] = value
    assert "annotations[1].bbox (id 2): is missing" in error(doc, root)


@pytest.mark.parametrize("value", [None, []])
def test_case_21_no_segmentation_is_fine(root, value):
    doc = document()
    doc["annotations"][0]["segmentation"] = value
    assert not inspect(doc, root).findings.items


def test_case_22_images_without_objects_are_kept(root):
    assert inspect(document(), root).dataset_dicts()[1]["annotations"] == []


def test_case_24_unknown_image_is_an_error(root):
    doc = document()
    doc["annotations"][1]["image_id"] = 99
    assert "annotations[1].image_id (id 2): 99 is not among the images" in error(doc, root)


def test_case_25_size_is_read_from_the_file(root):
    doc = document()
    del doc["images"][0]["width"], doc["images"][0]["height"]
    checked = inspect(doc, root, check_images=False)
    assert not checked.errors and (checked.fixed()["images"][0]["width"], checked.images.heights[0]) == SIZE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(document())[:200], "ends in the middle"),
        ('{"images": [{"id": np.int64(3)}]}', "numpy's notation"),
        ("[1]", "results file"),
        ("[" * 100_000, "data.json"),
        ('{"images": ' + "9" * 5000 + "}", "data.json"),
    ],
)
def test_case_26_broken_json(tmp_path, text, says):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_document(tmp_path / "data.json")


def rotate(path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(path, exif=exif)


def test_case_30_exif_rotation_is_named_when_the_size_disagrees(root):
    rotate(root / "a.png")
    assert "before the EXIF orientation 6" in error(document(), root)
    assert read_image(root / "a.png").shape == (64, 48, 3)


def truncate(root) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "a.jpg")
    (root / "a.jpg").rename(root / "a.png")
    data = (root / "a.png").read_bytes()
    (root / "a.png").write_bytes(data[: len(data) // 2])


def test_case_31_broken_image_by_policy(root):
    truncate(root)
    assert "cannot be decoded" in error(document(), root)
    skipped = inspect(document(), root, policy="skip")
    assert not skipped.errors and [d["image_id"] for d in skipped.dataset_dicts()] == [2]
    loaded = inspect(document(), root, policy="load")
    assert not loaded.errors and len(loaded.dataset_dicts()) == 2
    with pytest.raises(UserError):
        read_image(root / "a.png")
    assert read_image(root / "a.png", policy="skip") is None
    assert read_image(root / "a.png", policy="load").shape == (48, 64, 3)


def test_case_32_missing_file_is_an_error(root):
    (root / "b.png").rename(root / "B.png")
    assert "images[1].file_name (id 2): 'b.png' is not in" in error(document(), root, check_images=False)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_case_33_other_modes_become_rgb(root, mode):
    Image.new("RGB", SIZE, (255, 255, 255)).convert(mode).save(root / "a.png")
    assert not inspect(document(), root).errors
    assert read_image(root / "a.png", "RGB").tolist() == np.full((48, 64, 3), 255).tolist()


def test_case_33_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", SIZE).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").min() > 250


def test_case_34_16_bits_keep_the_high_byte_and_floats_are_refused(tmp_path):
    Image.fromarray(np.full((4, 5), 0x8123, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 0x81).all()
    Image.fromarray(np.ones((4, 5), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="floating-point"):
        read_image(tmp_path / "a.tif")


def test_case_35_too_large_image_names_the_limit(root):
    assert "max_megapixels=0.001" in error(document(), root, max_megapixels=0.001)


def test_case_36_corrupt_exif_is_quiet(tmp_path, recwarn):
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert read_image(tmp_path / "a.jpg").shape == (48, 64, 3) and not recwarn.list


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png", "C:\\a.png"])
def test_paths_out_of_the_folder_are_refused(root, name):
    doc = document()
    doc["images"][0]["file_name"] = name
    assert "leads out of" in error(doc, root)


def test_links_out_of_the_folder_need_permission(root, tmp_path):
    (root / "a.png").rename(tmp_path / "a.png")
    (root / "a.png").symlink_to(tmp_path / "a.png")
    assert "is a link out of" in error(document(), root)
    assert not inspect(document(), root, follow_links=True).errors


def test_size_that_is_not_the_images_is_an_error(root):
    doc = document()
    doc["images"][0]["width"] = 65
    assert "images[0] (id 1): size 65x48 is not that of" in error(doc, root)
    assert "size 65x48" in error(inspect(doc, root).fixed(), root), "fixing must not hide it"


def test_fixed_copy_is_clean_and_the_original_untouched(root, tmp_path):
    doc = document()
    doc["annotations"] += [{"image_id": 1, "category_id": 2, "bbox": [1, 1, 0, 1]}, {"id": 1}]
    file, out = tmp_path / "data.json", tmp_path / "out.json"
    file.write_text(json.dumps(doc))
    before = file.read_bytes()
    with pytest.raises(
        UserError, match="would leave out 1 objects of such images, or of none, 1 objects without .*--fix-drop"
    ):
        write_fixed(inspect_coco(file, root), out)
    assert not out.exists()
    os.umask(before_mask := os.umask(0o022))
    write_fixed(inspect_coco(file, root), out, drop=True)
    assert out.stat().st_mode & 0o777 == 0o666 & ~before_mask
    assert not inspect_coco(out, root, strict=True).errors and file.read_bytes() == before
    for taken in (file, out):
        with pytest.raises(UserError, match="exists"):
            write_fixed(inspect_coco(file, root), taken)


def test_the_tool_leaves_with_2_for_errors_and_0_with_warnings(root, tmp_path):
    doc = document()
    doc["annotations"][0]["bbox"] = [1, 1, 0, 1]
    file = tmp_path / "data.json"
    for expected in (0, 2):
        file.write_text(json.dumps(doc))
        done = call("tools/check_dataset.py", "--json", file, "--images", root, folder=ROOT)
        assert done.returncode == expected and "Traceback" not in done.stderr, done.stderr
        doc["annotations"][0]["category_id"] = 9


def test_loaded_dicts_equal_detectron2s_on_real_data():
    from detectron2.data.datasets import load_coco_json

    folder = shared_data("coco_mini")
    for split in ("train2017", "val2017"):
        file = str(folder / "annotations" / f"instances_{split}.json")
        theirs = load_coco_json(file, str(folder / split), f"test_{split}")
        ours = check_coco(file, str(folder / split), check_images=False).dataset_dicts()
        for record in theirs:
            for annotation in record["annotations"]:
                annotation.pop("segmentation")
        assert ours == theirs


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    max_leaves=8,
)


@settings(
    max_examples=int(os.environ.get("RESNEXT_DET_FUZZ_EXAMPLES", 200)),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_document_ends_in_anything_but_findings(root, data):
    doc = document()
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        if not isinstance(doc.get(key), list) or data.draw(st.integers(0, 9)) == 0:
            doc[key] = data.draw(json_values)
        elif doc[key]:
            row = data.draw(st.integers(0, len(doc[key]) - 1))
            if isinstance(doc[key][row], dict):
                field = data.draw(st.sampled_from([*document()[key][0], "segmentation", "supercategory", "ignore"]))
                doc[key][row][field] = data.draw(json_values)
    checked = inspect(doc, root, check_images=False)
    if checked.images is not None and checked.categories is not None:
        checked.dataset_dicts()
        json.dumps(checked.fixed())


def test_check_coco_counts_the_other_errors(root, tmp_path):
    doc = document()
    for annotation in doc["annotations"]:
        annotation["category_id"] = 9
    (tmp_path / "data.json").write_text(json.dumps(doc))
    with pytest.raises(UserError, match="1 more: run tools/check_dataset.py --json"):
        check_coco(tmp_path / "data.json", root)


def many(number: int, root, **values) -> dict:
    """A document of so many small objects in the first image, each with these values."""
    doc = document()
    doc["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [i % 50, i // 50, 4 + i % 7, 4], "iscrowd": 0, **values}
        for i in range(1, number + 1)
    ]
    return doc


def test_boxes_in_fractions_are_an_error_here_as_in_training(root):
    doc = document()
    for annotation in doc["annotations"]:
        annotation["bbox"] = [v / 64 for v in annotation["bbox"]]
        del annotation["area"]
    assert "lie between 0 and 1: they look like fractions; multiply with the image's width" in error(doc, root)
    doc["annotations"][1]["bbox"] = [0, 0, 2, 0.5]
    assert "bbox-fractions" not in codes(inspect(doc, root), "error"), "one box is in pixels"


@pytest.mark.parametrize("area", [1.0, 0, 10**7])
def test_one_area_in_every_record_is_warned_about(root, area):
    assert "area-same" in codes(inspect(many(12, root, area=area), root), "warning")
    assert "area-same" not in codes(inspect(many(12, root), root), "warning"), "left out: width times height"
    same = many(12, root, area=16.0, bbox=[1, 1, 4, 4])
    assert "area-same" not in codes(inspect(same, root), "warning"), "the boxes are as large as each other"


def test_only_crowds_stop_a_training_and_name_the_field(root):
    doc = many(3, root, iscrowd=1)
    assert "all-crowds" in codes(inspect(doc, root), "warning")
    says = error(doc, root, for_training=True)
    assert "annotations[].iscrowd: is 1 in every annotation" in says and "CVAT writes 1 for masks" in says
    doc["annotations"][0]["iscrowd"] = 0
    assert not inspect(doc, root, for_training=True).errors


def test_an_image_of_crowds_alone_stays(root):
    doc = document()
    doc["annotations"].append({**doc["annotations"][0], "id": 3, "image_id": 2, "iscrowd": 1})
    records = inspect(doc, root, for_training=True).dataset_dicts()
    assert [a["iscrowd"] for a in records[1]["annotations"]] == [1]


def test_very_many_objects_are_warned_about_by_the_limits_of_the_run(root):
    doc = many(120, root)
    assert "many-objects" in codes(inspect(doc, root), "warning")
    checked = inspect(doc, root, max_detections=120, detections_per_image=100)
    assert codes(checked, "warning") == {"more-objects-than-detections"}
    assert "raise TEST.DETECTIONS_PER_IMAGE" in report(checked)
    assert not codes(inspect(doc, root, max_detections=120, detections_per_image=120), "warning")


def test_two_classes_of_one_name_are_an_error(root):
    doc = document()
    doc["categories"][1]["name"] = "cat"
    assert "categories[].name: used by several classes: 'cat'; merge or rename them" in error(doc, root)


def test_one_object_without_a_mask_stops_a_training_of_masks(root):
    doc = document()
    doc["annotations"][0]["segmentation"] = [[10, 20, 20, 20, 20, 30]]
    says = error(doc, root, masks=True, for_training=True)
    assert "annotations[1].segmentation (id 2): is missing, and the model learns masks (MODEL.MASK_ON True)" in says
    assert codes(inspect(doc, root, masks=True), "warning") == {"mask-missing"}, "a set to evaluate on"
    doc["annotations"][1]["iscrowd"] = 1
    assert not inspect(doc, root, masks=True, for_training=True).errors


@pytest.mark.parametrize("name", ["$1_$", "你好", "क", "a\x1b[31mb", "x\ny", "<b>&amp;", "../../x", "a" * 200])
def test_names_of_classes_are_plain_text_in_the_report(root, name):
    doc = document()
    doc["categories"][0]["name"] = name
    checked = inspect(doc, root)
    assert not checked.errors and checked.metadata()["thing_classes"][0] == name
    (line,) = [line for line in report(checked).splitlines() if line.startswith("      0      1 ")]
    assert line.endswith(": 1") and line.isprintable()


@pytest.mark.parametrize("name", ["", " ", "a" * 201, "a\0", "\ud800", 5, ["x"], None])
def test_names_that_are_none_are_errors(root, name):
    doc = document()
    doc["categories"][0]["name"] = name
    assert "categories[0].name (id 1)" in error(doc, root)


def test_an_image_named_for_another_format_is_noted(root):
    doc = document()
    (root / "a.png").rename(root / "a.jpg")
    doc["images"][0]["file_name"] = "a.jpg"
    checked = inspect(doc, root)
    assert codes(checked, "note") == {"named-otherwise"} and "a.jpg is PNG by its content" in report(checked)


def test_a_broken_image_says_once_what_to_do(root):
    (root / "a.png").write_bytes(b"no image")
    says = error(document(), root)
    assert says.count("replace") == 1 and "--policy skip or load (in training DATASETS.BROKEN_IMAGES)" in says


def test_the_command_says_each_error_once_and_counts_them(root, tmp_path, capsys):
    from resnext_det.commands.check import main

    doc = document()
    doc["annotations"][0]["category_id"] = 9
    (tmp_path / "data.json").write_text(json.dumps(doc))
    with pytest.raises(UserError, match=r"data.json: 1 error, listed above$"):
        main(["--json", str(tmp_path / "data.json"), "--images", str(root)])
    text = capsys.readouterr().out
    assert text.count("9 is not among the categories") == 1 and text.endswith("\n1 error, 0 warnings\n")
    assert "run tools/check_dataset.py" not in text
    for line in (
        [],
        ["--images", "x"],
        ["--json", "x", "--images", "y", "SEED", "1"],
        ["--config-file", "x", "--fix", "y"],
    ):
        with pytest.raises(UserError, match="check: "):
            main(line)
