"""Labels of every format: recognized, read alike, written back, and every mistake one line."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from common import shared_data
from PIL import Image

from resnext_det import cli
from resnext_det.annotations.check import read_document
from resnext_det.annotations.formats import read, recognize
from resnext_det.annotations.formats.reading import splits_of
from resnext_det.errors import UserError

NAMES = ["ant", "bee", "cow"]


def write_image(path: Path, size: tuple[int, int] = (80, 60), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(str(path) + str(seed))
    Image.new("RGB", size, tuple(generator.randrange(256) for _ in range(3))).save(path)


def coco_set(folder: Path) -> Path:
    """Two splits with boxes on fractions of pixels."""
    generator = random.Random(3)
    for split, count in (("train", 5), ("val", 3)):
        document: dict = {"images": [], "annotations": []}
        document["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
        for i in range(1, count + 1):
            name = f"{split}{i}.png"
            write_image(folder / split / name)
            document["images"].append({"id": i, "file_name": name, "width": 80, "height": 60})
            for _ in range(generator.randrange(4)):
                x, y = generator.uniform(0, 40), generator.uniform(0, 30)
                box = [x, y, generator.uniform(2, 39), generator.uniform(2, 29)]
                number = len(document["annotations"]) + 1
                document["annotations"].append({
                    "id": number, "image_id": i, "category_id": generator.randint(1, 3), "bbox": box,
                    "area": box[2] * box[3], "iscrowd": 0,
                })  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(document))
    return folder


def same(found: dict, wanted: dict) -> None:
    assert [c["name"] for c in found["categories"]] == [c["name"] for c in wanted["categories"]]
    assert [c["id"] for c in found["categories"]] == [c["id"] for c in wanted["categories"]]
    assert [(i["id"], i["file_name"]) for i in found["images"]] == [(i["id"], i["file_name"]) for i in wanted["images"]]
    assert len(found["annotations"]) == len(wanted["annotations"])
    for ours, theirs in zip(found["annotations"], wanted["annotations"], strict=True):
        assert all(ours[key] == theirs[key] for key in ("id", "image_id", "category_id"))
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.01)


@pytest.mark.parametrize("form", ["yolo", "voc", "coco"])
def test_there_and_back(form: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = coco_set(tmp_path / "in")
    cli.call("convert-data", [str(folder / "train.json"), str(tmp_path / "one"), "--to", form, "--images",
                              str(folder / "train")])  # fmt: skip
    assert "train.json: coco" in capsys.readouterr().out
    there = tmp_path / "one"
    if form == "coco":
        source = read(there / "annotations" / "instances_train.json", there / "train")
    else:
        assert recognize(there) == form
        source = read(splits_of(there)["train"])
    same(source.document, read_document(folder / "train.json"))
    assert all((Path(source.image_root) / i["file_name"]).is_file() for i in source.document["images"])


def test_splits_stay_apart_through_yolo_and_voc(tmp_path: Path) -> None:
    from resnext_det.annotations.formats import write

    folder = coco_set(tmp_path / "in")
    sources = {split: read(folder / f"{split}.json", folder / split) for split in ("train", "val")}
    write(sources, tmp_path / "yolo", "yolo")
    assert sorted(splits_of(tmp_path / "yolo")) == ["train", "val"]
    again = {split: read(path) for split, path in splits_of(tmp_path / "yolo").items()}
    write(again, tmp_path / "voc", "voc")
    for split, path in splits_of(tmp_path / "voc").items():
        same(read(path).document, sources[split].document)


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_voc_equals_the_same_set_in_coco(split: str) -> None:
    root = shared_data("bccd_voc")
    found = read(root / "ImageSets" / "Main" / f"{split}.txt", shared_data("bccd") / split).document
    file = next((shared_data("bccd") / "annotations").glob(f"*{split}*.json"))
    wanted = read_document(file)
    sizes = {i["id"]: i["file_name"] for i in wanted["images"]}
    names = {c["id"]: c["name"] for c in wanted["categories"]}
    theirs = {(sizes[a["image_id"]], names[a["category_id"]], *map(round, a["bbox"])) for a in wanted["annotations"]}
    sizes = {i["id"]: i["file_name"] for i in found["images"]}
    names = {c["id"]: c["name"] for c in found["categories"]}
    # The JSON keeps xmin and ymin as VOC counts them, from 1, and width without the last pixel.
    ours = {
        (sizes[a["image_id"]], names[a["category_id"]], round(x + 1), round(y + 1), round(w - 1), round(h - 1))
        for a in found["annotations"] for x, y, w, h in [a["bbox"]]
    }  # fmt: skip
    exact = {(sizes[a["image_id"]], names[a["category_id"]], *map(round, a["bbox"])) for a in found["annotations"]}
    assert len(found["images"]) == len(wanted["images"])
    assert max(len(ours & theirs), len(exact & theirs)) > 0.95 * len(theirs)


VOC = (
    "<annotation><filename>a.png</filename><size><width>80</width><height>60</height><depth>3</depth></size>"
    "<object><name>ant</name><difficult>1</difficult><truncated>0</truncated><bndbox><xmin>11</xmin><ymin>6</ymin>"
    "<xmax>30</xmax><ymax>25</ymax></bndbox></object></annotation>"
)
CVAT = (
    '<?xml version="1.0"?><annotations><version>1.1</version><meta><task><labels><label><name>ant</name></label>'
    "</labels></task></meta>"
    '<image id="0" name="a.png" width="80" height="60"><box label="ant" xtl="10" ytl="5" xbr="30" ybr="25"/></image>'
    "</annotations>"
)
LABELME = {
    "imagePath": "a.png", "imageWidth": 80, "imageHeight": 60,
    "shapes": [{"label": "ant", "shape_type": "rectangle", "points": [[30, 25], [10, 5]]}],
}  # fmt: skip
YOLO = "0 0.25 0.25 0.25 0.333333333"


def make(form: str, folder: Path) -> Path:
    """A set of one image and one object, the box 10, 5, 20, 20; returns what to read."""
    if form == "yolo":
        write_image(folder / "images" / "a.png")
        (folder / "labels").mkdir()
        (folder / "labels" / "a.txt").write_text(YOLO)
        (folder / "data.yaml").write_text("train: images\nnames: [ant]\n")
        return folder / "data.yaml"
    write_image(folder / ("JPEGImages/a.png" if form == "voc" else "a.png"))
    if form == "voc":
        (folder / "Annotations").mkdir()
        (folder / "Annotations" / "a.xml").write_text(VOC)
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
        (folder / "labels.txt").write_text("ant\n")
        return folder / "ImageSets" / "Main" / "train.txt"
    if form == "cvat":
        (folder / "annotations.xml").write_text(CVAT)
        return folder / "annotations.xml"
    (folder / "a.json").write_text(json.dumps(LABELME))
    return folder


@pytest.mark.parametrize("form", ["yolo", "voc", "cvat", "labelme"])
def test_one_object_in_every_format(form: str, tmp_path: Path) -> None:
    path = make(form, tmp_path)
    assert recognize(path) == form and recognize(tmp_path) == form
    source = read(path)
    (found,) = source.document["annotations"]
    assert found["bbox"] == pytest.approx([10, 5, 20, 20], abs=1e-6)
    assert source.document["categories"] == [{"id": 1, "name": "ant"}]
    assert (Path(source.image_root) / source.document["images"][0]["file_name"]).is_file()
    if form == "voc":
        assert (found["difficult"], found["truncated"]) == (1, 0)


LABEL = {"yolo": "labels/a.txt", "voc": "Annotations/a.xml", "cvat": "annotations.xml", "labelme": "a.json"}
BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>'
BAD: list[tuple[str, object, object, str]] = [
    # format, what stands in the label file (a pair: replaced text), the file, what the message says
    *[("voc", change, None, said) for change, said in [
        (("<name>ant</name>", "<name>antt</name>"), "object 1: class 'antt' is not in the list"),
        (("<name>ant</name>", "<name></name>"), "object 1: has no class name"),
        (("<name>ant</name>", ""), "object 1: has no class name"),
        (("<xmin>11</xmin>", ""), "object 1.xmin: '' is no number"),
        (("<xmin>11", "<xmin>eleven"), "object 1.xmin: 'eleven' is no number"),
        (("<xmin>11", "<xmin>nan"), "object 1.xmin: 'nan' is no number"), (("<ymin>6", "<ymin>1e999"), "ymin"),
        (("<xmax>30", "<xmax>3"), "object 1.bndbox: 11 6 3 25 ends before it begins"),
        (("<ymax>25", "<ymax>-25"), "ends before it begins"), (("bndbox", "box"), "object 1: has no bndbox"),
        (("<width>80", "<width>wide"), "size.width: 'wide' is no size"),
        (("<height>60", "<height>-60"), "size.height: '-60' is no size"), (("<width>80", "<width>80.5"), "size.width"),
        (("<difficult>1", "<difficult>2"), "object 1.difficult: '2' is not 0 or 1"),
        (("<truncated>0", "<truncated>maybe"), "object 1.truncated"),
        (("</annotation>", ""), "not whole XML"), (("<annotation>", "<annotation>&"), "not whole XML"),
        (("annotation>", "annotations>"), "its root is <annotations>"),
        (("<annotation>", BOMB + "<annotation>"), "holds a DOCTYPE"),
        (("<annotation>", '<!DOCTYPE a SYSTEM "http://localhost/x"><annotation>'), "holds a DOCTYPE"),
        (("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>'), "not whole XML"),
        (b"", "not whole XML"), (b"\xff\xfe\x00", "not whole XML"), (b"\x89PNG", "not whole XML"),
        (None, "no such file"),
    ]],
    *[("voc", text, "ImageSets/Main/train.txt", said) for text, said in [
        ("", "lists no image"), ("b\n", "b.xml: no such file"), ("a 1\n", "line 1: 'a 1' has 2 columns"),
        ("a\na\n", "lists a more than once"), ("../a\n", "is a path"), (b"\xff\xfe", "not UTF-8"),
        (b"a\0", "zero bytes"), ("a\nc\nd", "no such file"), ("b" * 300, "no such file"),
        (None, "no such file or folder"),
    ]],
    *[("yolo", text, None, said) for text, said in [
        ("1 .5 .5 .1 .1", "line 1: class 1 is not in the list"), ("-1 .5 .5 .1 .1", "class -1"),
        ("0.5 .5 .5 .1 .1", "class 0.5"), ("nan .5 .5 .1 .1", "class nan"), ("inf .5 .5 .1 .1", "class inf"),
        ("ant .5 .5 .1 .1", "line 1: 'ant .5 .5 .1 .1' is not numbers"), ("0 .5,.5,.1,.1", "is not numbers"),
        ("0 nan .5 .1 .1", "holds NaN"), ("0 inf .5 .1 .1", "holds NaN or infinity"),
        ("0 40 30 20 20", "pixels?"), ("0 1.2 .5 .1 .1", "leaves the image"), ("0 -.5 .5 .1 .1", "leaves the image"),
        ("0 .5 .5 0 .1", "the box is 0 wide"), ("0 .5 .5 .1 0", "0 high"), ("0 .5 .5", "neither a box nor a polygon"),
        ("0", "neither a box nor a polygon"), ("0 .1 .1 .2 .2 .3", "neither a box nor a polygon"),
        ("0 .1 .1 .1 .1 .1 .1", "the box is 0 wide"), (b"\xff\xfe0", "not UTF-8"), (b"0 .5 .5 .1\0 .1", "zero bytes"),
        (YOLO + "\n0 2", "line 2"),
    ]],
    *[("yolo", text, "data.yaml", said) for text, said in [
        ("", "holds no keys"), ("[1, 2]", "holds no keys"), ("a: [", "not YAML"), (b"\xff\xff", "not YAML"),
        ("train: images\n", "names: is not a list"), ("train: images\nnames: []\n", "names: is not a list"),
        ("train: images\nnames: ant\n", "names: is not a list"), ("train: images\nnames: [[1]]\n", "names: is not"),
        ("train: images\nnames: [a, a]\n", "names: 'a' stands there twice"),
        ("train: images\nnames: {1: a}\n", "names: the numbers are not 0"),
        ("train: images\nnames: [a]\nnc: 2\n", "nc: is 2 and names has 1"),
        ("train: nowhere\nnames: [a]\n", "train: nowhere: no such folder"),
        (f"train: {'n' * 300}\nnames: [a]\n", "no such folder"),
        ("names: [a]\n", "train: no such split"), (f"path: {'n' * 300}\nnames: [a]\n", "no such split"),
        ("train: 7\nnames: [a]\n", "train: '7' is no folder"),
        ("train: images\nval: images\nnames: [a]\n", "has the splits train, val; choose one"),
        ("train: labels\nnames: [a]\n", "holds no images"), ("train: labels/a.txt\nnames: [a]\n", "names no image"),
        ("train: images\nnames: [a]\npath: [1]\n", "path: '[1]' is no folder"),
        ("!!python/object:os.system x", "only plain YAML"), ("names: [a]\nnames: [b]\n", "stands twice"),
        ("train: images\nnames: [a]\nkpt_shape: 17\n", "kpt_shape: '17' is not"), (None, "no such file"),
    ]],
    *[("cvat", change, None, said) for change, said in [
        (('label="ant"', 'label="bee"'), "image 0, shape 1 (box): class 'bee' is not in the list"),
        (('label="ant"', 'label=""'), "has no class name"), (('label="ant"', ""), "has no class name"),
        (('xtl="10"', ""), "holds NaN"), (('xtl="10"', 'xtl="ten"'), "holds NaN"), (('xbr="30"', 'xbr="3"'), "-7 wide"),
        (('ybr="25"', 'ybr="5"'), "0 high"), (('ybr="25"', 'ybr="inf"'), "infinity"),
        (('width="80"', 'width="x"'), "image 0.width: 'x' is no size"), (('height="60"', 'height="-1"'), "0.height"),
        (('name="a.png"', ""), "image 0.name: is missing"), (('name="a.png"', 'name=""'), "image 0.name"),
        (("<box", "<circle"), "is no shape of CVAT"), (("<image", "<track/><image"), "holds tracks"),
        (("</annotations>", '<image name="a.png"/></annotations>'), "stands there twice"),
        (("<box", '<polygon label="ant" points="1,2;3,4"/><box'), "are not three or more points"),
        (("<box", '<polygon label="ant" points=""/><box'), "are not three"),
        (("<box", '<polygon label="ant" points="1,2;3,x;5,6"/><box'), "are not three"),
        (("<box", '<polygon label="ant" points="1,2;3;5,6"/><box'), "are not three"),
        (("<annotations>", BOMB + "<annotations>"), "holds a DOCTYPE"), (("</annotations>", ""), "not whole XML"),
        (("annotations>", "annotation>"), "its root is <annotation>"), (b"", "not whole XML"),
        (b"\0\0", "not whole XML"),
        ("<annotations></annotations>", "holds no labeled image"), (None, "no such file"),
    ]],
    *[("labelme", change, None, said) for change, said in [
        (('"ant"', "7"), "shapes[0].label: '7' is no text"), (('"ant"', "null"), "shapes[0].label"),
        (('"ant"', '" "'), "has no class name"), (("[[30, 25], [10, 5]]", "[]"), "shapes[0].points: are no rectangle"),
        (("[[30, 25], [10, 5]]", "null"), "are no rectangle"), (("[10, 5]", "[10]"), "are no rectangle"),
        (("[10, 5]", '[10, "y"]'), "are no rectangle"), (("[10, 5]", "[NaN, 5]"), "are no rectangle"),
        (("[10, 5]", "[30, 5]"), "the box is 0 wide"), (("[10, 5]", "[1, 2], [3, 4]"), "are no rectangle"),
        (('"rectangle"', '"polygon"'), "are no polygon"), (("80", '"x"'), "imageWidth: 'x' is no size"),
        (("60", "-6"), "imageHeight: '-6' is no size"), (("60", "60.5"), "imageHeight"), (("80", "true"), "imageWidth"),
        (('"a.png"', "[1]"), "imagePath: '[1]' is no text"), (("}]}", "}"), "the file ends in the middle"),
        (b"\xff{", "not UTF-8 text"), ('{"shapes": 1}', "shapes: is not a list"), ("{}", "shapes: is not a list"),
        ("[]", "shapes: is not a list"), ('{"shapes": [1]}', "shapes[0]: is not an object"),
        (("[{", "[[], {"), "shapes[0]: is not an object"),
    ]],
]  # fmt: skip


@pytest.mark.parametrize(("form", "change", "file", "said"), BAD)
def test_every_mistake_is_one_line_with_the_file(form, change, file, said, tmp_path: Path) -> None:
    from resnext_det.annotations.formats import cvat, labelme, voc, yolo

    path = make(form, tmp_path)
    broken = tmp_path / (file or LABEL[form])
    if change is None:
        broken.unlink()
    elif isinstance(change, tuple):
        text = broken.read_text()
        assert change[0] in text
        broken.write_text(text.replace(*change))
    elif isinstance(change, bytes):
        broken.write_bytes(change)
    else:
        broken.write_text(change)
    with pytest.raises(UserError) as raised:
        if change is None and file:
            read(path)
        else:
            {"yolo": yolo, "voc": voc, "cvat": cvat, "labelme": labelme}[form].read(path)
    message = str(raised.value)
    assert said in message and "\n" not in message and str(tmp_path) in message


NUMBERS = {
    # format: the numbers of the sound label file, each with a sign (|) between it and what tells its place
    "voc": ("<xmin>|11", "<ymin>|6", "<xmax>|30", "<ymax>|25"),
    "yolo": ("0 |0.25", "0 0.25 |0.25", "0 0.25 0.25 |0.25", "0.25 0.25 0.25 |0.333333333"),
    "cvat": ('xtl="|10', 'ytl="|5', 'xbr="|30', 'ybr="|25', 'width="|80', 'height="|60'),
    "labelme": ("[[|30", "[[30, |25", "[|10", "[10, |5", '"imageWidth": |80', '"imageHeight": |60'),
}
ODD = {form: ("ten", "nan", "inf", "-1e999", "1e999") for form in ("voc", "yolo", "cvat")}
ODD["labelme"] = ('"x"', "NaN", "[1]", "true", "Infinity")  # null is a size that is not told


@pytest.mark.parametrize("form", ODD)
def test_odd_numbers_in_every_place_are_one_line(form: str, tmp_path: Path) -> None:
    """With those of BAD at least 50 bad inputs of each format."""
    from resnext_det.annotations.formats import cvat, labelme, voc, yolo

    path, file, tried = make(form, tmp_path), tmp_path / LABEL[form], 0
    text = file.read_text()
    for number in NUMBERS[form]:
        before, value = number.split("|")
        assert text.count(before + value) >= 1
        for instead in ODD[form]:
            file.write_text(text.replace(before + value, before + instead, 1))
            with pytest.raises(UserError) as raised:
                {"yolo": yolo, "voc": voc, "cvat": cvat, "labelme": labelme}[form].read(path)
            assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value), instead
            tried += 1
    assert tried + sum(bad[0] == form for bad in BAD) >= 50


def test_what_cannot_be_used_is_counted_and_named(tmp_path: Path) -> None:
    path = make("cvat", tmp_path)
    text = CVAT.replace("<box", '<points/><polyline/><box rotation="30"/><box')
    path.write_text(text)
    notes = read(path).notes
    assert notes == [f"1 {w}" for w in ("shapes of kind points left out", "shapes of kind polyline left out",
                                        "rotated boxes left out")]  # fmt: skip


def test_splits_share_the_classes_that_one_of_them_lacks(tmp_path: Path) -> None:
    make("voc", tmp_path)
    (tmp_path / "labels.txt").unlink()
    other = VOC.replace(">ant<", ">bee<").replace("a.png", "b.png")
    (tmp_path / "Annotations" / "b.xml").write_text(other)
    found = read(tmp_path / "ImageSets" / "Main" / "train.txt").document
    assert [c["name"] for c in found["categories"]] == ["ant", "bee"] and len(found["images"]) == 1


@pytest.mark.parametrize(("form", "ending"), [("labelme", ".json"), ("voc", ".xml")])
def test_hidden_files_are_left_out_and_counted(form: str, ending: str, tmp_path: Path) -> None:
    make(form, tmp_path)
    file = tmp_path / LABEL[form]
    file.with_name(f"._{file.name}").write_bytes(b"of macOS")
    assert any(f"1 hidden {ending} files left out" in note for note in read(tmp_path).notes)


def test_a_list_without_splits_is_refused_by_its_reader(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    with pytest.raises(UserError, match="train: no such split; it has none"):
        cli.call("convert-data", [str(tmp_path / "data.yaml"), str(tmp_path / "out"), "--to", "coco"])


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is none of COCO"):
        recognize(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        recognize(tmp_path)


@pytest.mark.parametrize("form", ["yolo", "voc", "cvat", "labelme"])
def test_the_check_reads_every_format(form: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = make(form, tmp_path)
    cli.call("check", ["--json", str(path), "--images", read(path).image_root])
    assert "annotations: 1 used of 1" in capsys.readouterr().out


def test_numbers_behind_a_box_are_keypoints_where_data_yaml_says_so(tmp_path: Path) -> None:
    """Without ``kpt_shape`` a polygon that lacks a number would pass for a box and a point, as another box."""
    path = make("yolo", tmp_path)
    labels, points = tmp_path / "labels" / "a.txt", " .5 .5 2 .6 .6 1"
    labels.write_text(YOLO + points.replace("2", "1"))
    assert "segmentation" in read(path).document["annotations"][0], "ten numbers are five corners"
    labels.write_text("0 .1 .1 .2 .1 .2 .2 .1")
    with pytest.raises(UserError, match="line 1: 8 numbers are neither a box nor a polygon; .* kpt_shape in data.yaml"):
        read(tmp_path / "." / "data.yaml", tmp_path)
    other = tmp_path / "pose.yaml"
    other.write_text("train: images\nnames: [ant]\nkpt_shape: [2, 3]\n")
    labels.write_text(YOLO + points)  # a visibility of 2 is no part of a side
    source = read(other)
    (found,) = source.document["annotations"]
    assert found["bbox"] == pytest.approx([10, 5, 20, 20], abs=1e-6) and "segmentation" not in found
    assert source.notes == ["1 objects' keypoints left out, their boxes kept"]
    other.write_text("train: images\nnames: [ant]\nkpt_shape: [3, 3]\n")
    with pytest.raises(UserError, match="11 numbers are not 14: class, box and keypoints"):
        read(other, tmp_path)


def test_a_pipe_among_labels_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.json")
    (tmp_path / "1.json").write_text('{"shapes": []}')
    assert recognize(tmp_path) == "labelme"
