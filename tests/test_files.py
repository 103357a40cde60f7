"""The one opener, the one writer, safe names and shown text."""

import os
import stat

import pytest

from resnext_det.errors import UserError
from resnext_det.files import atomic_path, atomic_write, expanded, open_regular, read_regular, safe_component, shown


def test_only_regular_files_are_opened(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with open_regular(file, 3) as opened:
        assert opened.read() == b"abc"
    for path, reason in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path / "link", "is a pipe"),
        ("/dev/zero", "is a device"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "no such file"),
        (file / "x", "no such file"),
        ("a\0b", "cannot be opened"),
        ("a\x1b[31m\n" + "x" * 300, r"a\\x1b\[31m\\nxxx"),
    ):
        with pytest.raises(UserError, match=reason):
            open_regular(path)
    with pytest.raises(UserError, match="has 3 bytes, more than the limit of 2"):
        read_regular(file, 2)


@pytest.mark.parametrize("name", ["cat", "größe", "北京 1", "a.b", "x" * 200, "-c", "c++"])
def test_safe_names_stay(name):
    assert safe_component(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "..", "../x", "/x", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "\ud800", "x" * 201, "é" * 101]
    + ["NUL", "com1.txt", "a.", "a ", "C:x", "a\u202eb", 3, b"x", None],
)
def test_unsafe_names_are_refused(name):
    with pytest.raises(UserError, match="class name .* cannot name a file") as caught:
        safe_component(name, "class name")
    assert str(caught.value).isprintable()


def test_shown_is_one_plain_line():
    assert shown("größe 北京 क्‍ष\u3000x") == "größe 北京 क्‍ष\u3000x"
    assert shown("a\x1b[2J\r\nb\ud800\u202e\x9b") == r"a\x1b[2J\r\nb\ud800\u202e\x9b"
    assert shown(b"\xff\n") == r"\udcff\n" and shown(3) == "3"
    assert len(shown("x" * 10**6)) == len(shown("\n" * 10**6)) == 200
    shown("\ud800").encode()


def test_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("DATA", "/d")
    assert [expanded(p) for p in ("~/a", "$DATA/b", "${DATA}", "$NONE/c", "a~b")] == [
        "/h/a",
        "/d/b",
        "/d",
        "$NONE/c",
        "a~b",
    ]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_written_file_has_the_rights_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("writer", [atomic_write, atomic_path])
def test_nothing_is_written_through_a_link(tmp_path, writer):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a.txt").symlink_to(victim)
    for part in (f".a.txt.{os.getpid()}.part", f".a.txt.{os.getpid()}.part.txt"):
        (tmp_path / part).symlink_to(victim)
    with writer(tmp_path / "a.txt") as file:
        if writer is atomic_path:
            assert file.suffix == ".txt"
            file.write_text("new")
        else:
            file.write("new")
    assert victim.read_text() == "mine" and (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    for writer in (atomic_write, atomic_path):
        with pytest.raises(RuntimeError), writer(tmp_path / "a") as file:
            (file.write if writer is atomic_write else file.write_text)("new")
            raise RuntimeError
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    for text in ("first", "second"):
        with atomic_path(tmp_path / "out") as part:
            (part / "deep").mkdir(parents=True)
            (part / "deep" / "file").write_text(text)
        assert (tmp_path / "out" / "deep" / "file").read_text() == text
    assert os.listdir(tmp_path) == ["out"]


def test_the_longest_name_can_be_written(tmp_path):
    name = "é" * 125 + ".json"
    with atomic_write(tmp_path / name) as file:
        file.write("x")
    assert os.listdir(tmp_path) == [name]
