"""Makers of folders, on made archives of the published formats."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_det import UserError
from resnext_det.classification.data import ImageFolder
from resnext_det.commands import make_cifar, make_imagenet5k, make_imagenet_val
from resnext_det.makers import cifar, imagenet_val

WORDS = ["n00000003", "n00000001", "n00000002"]  # by ILSVRC2012_ID, which is not their order
TRUTH = [2, 3, 1, 1, 2]


def validation(root: Path, count: int = len(TRUTH)) -> Path:
    (root / "flat").mkdir()
    for number in range(1, count + 1):
        Image.new("L", (2, 2), number).save(root / "flat" / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root / "flat"


def devkit(root: Path) -> Path:
    from scipy.io import savemat

    synsets = np.zeros(3, dtype=[("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")])
    for i, name in enumerate(WORDS):
        synsets[i] = (i + 1, name, "a, b")
    (root / "devkit" / "data").mkdir(parents=True)
    savemat(root / "devkit" / imagenet_val.DEVKIT_CLASSES, {"synsets": synsets})
    (root / "devkit" / imagenet_val.DEVKIT_TRUTH).write_text("\n".join(map(str, TRUTH)) + "\n")
    return root / "devkit"


def lines(root: Path) -> Path:
    (root / "labels.txt").write_text("\n".join(WORDS[i - 1] for i in TRUTH))
    return root / "labels.txt"


def kaggle(root: Path) -> Path:
    rows = [f"ILSVRC2012_val_{n:08d},{WORDS[i - 1]} 1 2 3 4 n00000009 1 2 3 4" for n, i in enumerate(TRUTH, 1)]
    (root / "val.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    return root / "val.csv"


@pytest.mark.parametrize("kind", [devkit, lines, kaggle])
def test_validation_images_find_their_classes(tmp_path: Path, kind) -> None:
    if kind is devkit:
        pytest.importorskip("scipy")
    make_imagenet_val.main([str(validation(tmp_path)), str(kind(tmp_path)), "--out", str(tmp_path / "val")])
    image_set = ImageFolder(tmp_path / "val")
    assert image_set.classes == ("n00000001", "n00000002", "n00000003")
    found = {sample.image.getpixel((0, 0)): image_set.classes[sample.label] for sample in image_set}
    assert found == {number: WORDS[i - 1] for number, i in enumerate(TRUTH, 1)}


def test_validation_mistakes(tmp_path: Path) -> None:
    flat = validation(tmp_path, 4)
    os.mkfifo(flat / "ILSVRC2012_val_00000005.JPEG")
    with pytest.raises(UserError, match="4 images and 5 labels; image number 5 is missing"):
        make_imagenet_val.main([str(flat), str(lines(tmp_path)), "--out", str(tmp_path / "val")])
    assert not (tmp_path / "val").exists()
    (tmp_path / "labels.txt").write_text("n00000001\n7\n")
    with pytest.raises(UserError, match="entry 2 is '7'"):
        imagenet_val.read_labels(tmp_path / "labels.txt")
    with pytest.raises(UserError, match="ILSVRC2012_devkit_t12"):
        imagenet_val.read_labels(flat)


@pytest.mark.parametrize("change", [("_00000002", ""), ("_00000002", "_00000003"), ("_00000002", "_00000009")])
def test_a_row_that_names_no_image_or_one_twice_shifts_no_labels(tmp_path: Path, change) -> None:
    file = kaggle(tmp_path)
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match="ImageId of line [45] is .*; the numbers must be 1 to 5, each once"):
        imagenet_val.read_labels(file)


def test_5k_takes_the_largest_classes(tmp_path: Path) -> None:
    for folder, name, count in [
        ("1k", "b", 1), ("1k", "d", 2), ("full", "a", 3), ("full", "b", 9), ("full", "c", 5), ("full", "e", 3),
        ("full", "f", 1),
    ]:  # fmt: skip
        (tmp_path / folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (2, 2)).save(tmp_path / folder / name / f"{i}.png")
    command = [str(tmp_path / "full"), str(tmp_path / "1k"), "--out", str(tmp_path / "5k"), "--extra", "2"]
    make_imagenet5k.main(command)
    image_set = ImageFolder(tmp_path / "5k")
    assert image_set.classes == ("a", "b", "c", "d") and len(image_set) == 3 + 1 + 5 + 2
    assert (tmp_path / "5k.txt").read_text().split() == ["a", "b", "c", "d"]
    (tmp_path / "list.txt").write_text("f\nd\n")
    make_imagenet5k.main([*command[:3], str(tmp_path / "two"), "--classes", str(tmp_path / "list.txt")])
    assert ImageFolder(tmp_path / "two").classes == ("d", "f")
    with pytest.raises(UserError, match="4 classes beside the 2 known ones, not 5"):
        make_imagenet5k.main([*command[:3], str(tmp_path / "new"), "--extra", "5"])


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 2, 0]
NAMES = [b"ant", b"bee", b"cow"]


def published(version: str, classes: int) -> dict[str, bytes]:
    """Four training and two test images, as the authors pack them."""
    rows = PIXELS.reshape(6, -1)
    if version == "python":
        fine, meta = (b"labels", b"label_names") if classes == 10 else (b"fine_labels", b"fine_label_names")
        coarse = {} if classes == 10 else {b"coarse_labels": [0] * 6}
        files = {
            name: pickle.dumps({b"data": rows[part], fine: LABELS[part], **coarse}, protocol=2)
            for name, part in CUTS[classes].items()
        }
        return {**files, "batches.meta" if classes == 10 else "meta": pickle.dumps({meta: NAMES}, protocol=2)}
    before = np.array(LABELS, np.uint8)[:, None] if classes == 10 else np.array([[9, i] for i in LABELS], np.uint8)
    table = np.hstack([before, rows])
    files = {f"{name}.bin": table[part].tobytes() for name, part in CUTS[classes].items()}
    return {**files, "batches.meta.txt" if classes == 10 else "fine_label_names.txt": b"\n".join(NAMES) + b"\n"}


CUTS = {
    10: {"data_batch_1": slice(0, 2), "data_batch_2": slice(2, 4), "test_batch": slice(4, 6)},
    100: {"train": slice(0, 4), "test": slice(4, 6)},
}


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar_as_published(tmp_path: Path, version: str, classes: int) -> None:
    files = {f"cifar-{classes}-{version}/{name}": data for name, data in published(version, classes).items()}
    make_cifar.main([str(archive(tmp_path / "c.tar.gz", files)), str(tmp_path / "out")])
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        image_set = ImageFolder(tmp_path / "out" / split, ["ant", "bee", "cow"])
        found = {(sample.label, np.asarray(sample.image).transpose(2, 0, 1).tobytes()) for sample in image_set}
        assert found == {(i, p.tobytes()) for i, p in zip(LABELS[part], PIXELS[part], strict=True)}


def test_cifar_runs_no_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    files = {**published("python", 10), "data_batch_1": pickle.dumps(Harmful(), protocol=2)}
    with pytest.raises(UserError, match="it runs code"):
        cifar.unpack(archive(tmp_path / "c.tar.gz", files), tmp_path / "out")
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()


def test_cifar_as_images(tmp_path: Path) -> None:
    names = ["./x/train/ant/1.jpg", "x/train/bee/1.jpg", "x/test/ant/2.jpg", "x/readme.txt", "../../train/cow/3.png"]
    counts = cifar.unpack(archive(tmp_path / "c.tgz", dict.fromkeys(names, b"j")), tmp_path / "out")
    assert counts == {"train": 3, "test": 1} and (tmp_path / "out/train/cow/3.png").read_bytes() == b"j"
    with pytest.raises(UserError, match="no training or no test images"):
        cifar.unpack(archive(tmp_path / "d.tgz", {"a.txt": b""}), tmp_path / "other")
    (tmp_path / "torn").write_bytes(b"no tar")
    with pytest.raises(UserError, match="torn, or not an archive"):
        cifar.unpack(tmp_path / "torn", tmp_path / "other")


@pytest.mark.parametrize("name", [b"../../x", b"/tmp/x", b".x", b"a\nb", b"a\0b", b"x" * 300])
def test_a_class_name_never_leads_out_of_the_folder(tmp_path: Path, name: bytes) -> None:
    names = pickle.dumps({b"label_names": [name] + [b"c%d" % i for i in range(1, 10)]}, protocol=2)
    files = {**published("python", 10), "batches.meta": names}
    with pytest.raises(UserError, match="class name .* cannot name a file"):
        cifar.unpack(archive(tmp_path / "c.tar.gz", files), tmp_path / "in" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["c.tar.gz"], ["c.tar.gz", "in"])


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_byte_that_changed_on_the_way_is_seen(tmp_path: Path, kind: str) -> None:
    """Where the tar file itself still reads well: only the checksum of the compression tells."""
    plain, packed = io.BytesIO(), tmp_path / "c.tar"
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name in ("train/ant/0.png", "test/ant/1.png"):
            info = tarfile.TarInfo(name)
            info.size = 4000
            tar.addfile(info, io.BytesIO(os.urandom(4000)))
    data = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(plain.getvalue())
    for place in (len(data) // 3, len(data) // 2, len(data) - 6):
        packed.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match="torn"):
            cifar.unpack(packed, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    packed.write_bytes(data)
    assert cifar.unpack(packed, tmp_path / "out") == {"train": 1, "test": 1}
