"""The one opener, the one writer, safe names and shown text."""

import os
import stat

import pytest

from resnext_det import files
from resnext_det.errors import UserError
from resnext_det.files import (
    COUNT,
    METRICS,
    atomic_path,
    atomic_write,
    expanded,
    misfit,
    open_regular,
    read_regular,
    read_state,
    safe_component,
    shown,
)


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
    process = f"{os.getpid()}_{files._machine()}"
    for part in (f".a.txt.{process}.part", f".a.txt.{process}.part.txt"):
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


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    with atomic_path(tmp_path / "out") as part:
        part.mkdir()
        os.mkfifo(part / "pipe")
    assert (tmp_path / "out" / "pipe").is_fifo()


def test_the_longest_name_can_be_written(tmp_path):
    name = "é" * 125 + ".json"
    with atomic_write(tmp_path / name) as file:
        file.write("x")
    assert os.listdir(tmp_path) == [name]


SCHEMA = {"n": COUNT, "x?": (float, None), "list?": [str], "box?": [float] * 4, "deep?": [{"a": bool}], str: object}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"n": 0, "x": 1, "list": ["a"], "box": [1, 2.5, 3, 4], "deep": [{"a": True}], "other": {}}, ""),
        ({"n": 3, "x": None}, ""),
        ({}, "it has no n"),
        ([], "it is [], not keys and values"),
        ({"n": True}, "n is True, not a whole number in its range"),
        ({"n": -1}, "n is -1, not a whole number in its range"),
        ({"n": 1 << 60}, f"n is {1 << 60}, not a whole number in its range"),
        ({"n": 1, "x": 10**400}, "x is 1000"),
        ({"n": 1, "x": float("nan")}, "x is nan, not"),
        ({"n": 1, "list": ["a", 2]}, "list[1] is 2, not a text"),
        ({"n": 1, "box": [1, 2, 3]}, "box has 3 values, not 4"),
        ({"n": 1, "deep": [{"a": 1}]}, "deep[0].a is 1, not true or false"),
        ({"n": "\x1b[2J" * 100}, "n is '\\x1b[2J"),
    ],
)
def test_a_value_that_does_not_fit_its_schema_is_named(value, reason):
    found = misfit(value, SCHEMA)
    assert found.startswith(reason) and bool(found) == bool(reason) and found.isprintable() and len(found) < 200


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, '{"AP": 1e999}', '{"AP": "x"}', "\x00", "3"])
def test_a_state_file_that_is_none_is_one_line_with_the_fix(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results.json: .*; remove it$"):
        read_state(tmp_path / "results.json", METRICS, "remove it")
    (tmp_path / "results.json").write_bytes(b'{"AP": 1, "bbox": {"a": {"AP": null}}}')
    assert read_state(tmp_path / "results.json", METRICS, "remove it")["AP"] == 1


def test_what_killed_writers_have_left_is_removed_once_and_a_folder_between_its_names_goes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    here, alive = f"99999999_{files._machine()}", f".b.json.{os.getppid()}_{files._machine()}.part"
    stay = [alive, ".c.json.99999999_other.part", ".a.part", ".x"]
    for name in (f".a.json.{here}.part", f".v.mp4.{here}.part.mp4", *stay):
        (tmp_path / name).write_text("half")
    (tmp_path / f".out.{here}.part").mkdir()
    (tmp_path / f".out.{here}.part.before").mkdir()
    (tmp_path / f".out.{here}.part.before" / "file").write_text("earlier")
    with atomic_write(tmp_path / "a.json") as file:
        file.write("{}")
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "a.json", "out"])
    assert (tmp_path / "out" / "file").read_text() == "earlier"
