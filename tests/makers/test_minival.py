import copy
import json

import pytest
from common import ROOT
from forked import call
from pycocotools.coco import COCO

from resnext_det import UserError
from resnext_det.commands.make_minival import main
from resnext_det.makers import minival
from resnext_det.makers.minival import MINIVAL, REST, Counts


def image(i, year):
    name = f"COCO_val2014_{i:012d}.jpg" if year == 2014 else f"{i:012d}.jpg"
    return {"id": i, "file_name": name, "width": 640, "height": 400 + i}


def box(i, image_id):
    x = {"id": i, "image_id": image_id, "category_id": 1 + i % 2, "iscrowd": 0, "area": 12.0}
    return {**x, "bbox": [1.5, 2.0, 3.0 + i, 4.0], "segmentation": [[1, 2, 3, 4, 5, 6]]}


@pytest.fixture
def val2014():
    return {
        "info": {"year": 2014},
        "licenses": [],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
        "images": [image(i, 2014) for i in (42, 73, 74, 133, 136)],
        "annotations": [box(i, j) for i, j in ((9, 42), (7, 73), (3, 73), (12, 133), (900100, 136))],
    }


@pytest.fixture
def val2017(val2014):
    kept = (136, 73, 74)  # another order, and one image without objects
    return {
        **{k: val2014[k] for k in ("licenses", "categories")},
        "info": {"year": 2017},
        "images": [image(i, 2017) for i in kept],
        "annotations": [copy.deepcopy(a) for a in reversed(val2014["annotations"]) if a["image_id"] in kept],
    }


@pytest.fixture
def folder(tmp_path, val2014, val2017):
    (tmp_path / "instances_val2014.json").write_text(json.dumps(val2014))
    (tmp_path / "instances_val2017.json").write_text(json.dumps(val2017))
    return tmp_path


def test_writes_both_parts_with_the_records_of_val2014(folder, val2014):
    assert minival.make_minival(folder, images=3) == Counts(3, 3, 2, 2)
    kept, rest = (COCO(str(folder / name)) for name in (MINIVAL, REST))
    assert sorted(kept.imgs) == [73, 74, 136] and sorted(kept.anns) == [3, 7, 900100]
    assert sorted(rest.imgs) == [42, 133] and sorted(rest.anns) == [9, 12]
    records = {i["id"]: i for i in val2014["images"]}
    assert all(part.imgs[i] == records[i] for part in (kept, rest) for i in part.imgs)
    for part in (kept, rest):
        assert {k: part.dataset[k] for k in ("info", "licenses", "categories")} == {
            k: val2014[k] for k in ("info", "licenses", "categories")
        }
    assert len(list(folder.iterdir())) == 4  # no partial files


def test_kept_when_right_refused_when_other(folder):
    minival.make_minival(folder, images=3)
    before = (folder / MINIVAL).stat().st_mtime_ns
    minival.make_minival(folder, images=3)
    assert (folder / MINIVAL).stat().st_mtime_ns == before

    (folder / MINIVAL).write_text('{"images": [], "annotations": []}')
    (folder / REST).unlink()
    with pytest.raises(UserError, match=f"{MINIVAL}: is there and holds other"):
        minival.make_minival(folder, images=3)
    assert not (folder / REST).exists()


@pytest.mark.parametrize("name", minival.ARCHIVES)
def test_missing_file_names_itself_and_its_archive(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing; it is in {minival.ARCHIVES[name]}, .*cocodataset"):
        minival.make_minival(folder, images=3)


@pytest.mark.parametrize("content", ["", '{"images": [', "[]", '{"images": []}'])
def test_broken_file_names_itself(folder, content):
    (folder / "instances_val2014.json").write_text(content)
    with pytest.raises(UserError, match="instances_val2014.json: not a whole COCO"):
        minival.make_minival(folder, images=3)


def test_wrong_number_of_images(folder):
    with pytest.raises(UserError, match="instances_val2017.json: holds 3 images, not 5,000"):
        minival.make_minival(folder)


CHANGES = {
    "image of another size": (lambda v: v["images"][0].update(width=641), "images id 136: val2014 has"),
    "unknown image": (lambda v: v["images"].append(image(5, 2017)), r"images id 5 \(1 such\): only in val2017"),
    "lost object": (lambda v: v["annotations"].pop(), r"annotations id 7 \(1 such\): only in val2014"),
    "moved box": (lambda v: v["annotations"][0]["bbox"].__setitem__(0, 1.6), "annotations id 900100: val2014 has"),
    "other category": (lambda v: v["annotations"][0].update(category_id=2), "annotations id 900100"),
    "crowd": (lambda v: v["annotations"][0].update(iscrowd=1), "annotations id 900100"),
    "other image": (lambda v: v["annotations"][0].update(image_id=73), "annotations id 900100"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_difference_is_found_and_nothing_written(folder, val2017, change):
    alter, message = CHANGES[change]
    alter(val2017)
    (folder / "instances_val2017.json").write_text(json.dumps(val2017))
    with pytest.raises(UserError, match=message):
        minival.make_minival(folder, images=len(val2017["images"]))
    assert not (folder / MINIVAL).exists() and not (folder / REST).exists()


def test_rounding_is_not_a_difference(folder, val2017):
    val2017["annotations"][0]["bbox"][0] += 0.004
    (folder / "instances_val2017.json").write_text(json.dumps(val2017))
    assert minival.make_minival(folder, images=3).minival_images == 3


def test_command_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(minival.make_minival, "__defaults__", (3,))
    main(["--annotations", str(folder)])
    assert f"{MINIVAL}: 3 images, 3 annotations" in capsys.readouterr().out


def test_missing_coco_is_one_line_and_exit_code_2(tmp_path):
    done = call(str(ROOT / "tools/make_minival.py"), environment={"DETECTRON2_DATASETS": str(tmp_path)})
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "coco" / "annotations" / "instances_val2014.json") in line
