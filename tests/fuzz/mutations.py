"""One or two fields of a valid input changed: by value, type, place, number, order, encoding, name or kind of file."""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

NAMES = [
    "$1_$",
    "你好",
    "a b",
    "../x",
    "/tmp/x",
    "a\nb",
    "\x1b[31m",
    "a\0b",
    "é" * 300,
    "-x",
    "CON",
    ".x",
    "<b>",
    "a/b",
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.5, 1e-9, 7.0, -3.5, 2**31, 2**53 + 1, 2**63, 2**64, 1e18, 1e308, 10**400,
    math.nan, math.inf, -math.inf, "", " ", "0", "12", "007", "1e5", "nan", "x", *NAMES, "\ud800", "y" * 5000,
    [], {}, [1], [[1, 2]], {"id": 1}, [None] * 3, [0] * 500,
]  # fmt: skip
"""Values that some field does not expect."""


def leaf(rng: random.Random, value: Any) -> Any:
    """Another value in place of ``value``: near it, of another type, or odd."""
    kind = rng.randrange(4)
    if kind == 0 and type(value) in (int, float):
        return rng.choice([-value, value * 1000, value / 80, value + 1, float(value), str(value), [value]])
    if kind == 1 and isinstance(value, str):
        return rng.choice([value.upper(), value + " ", value * 2, value[:1], [value], value.encode().hex()])
    if kind == 2:
        return [value] if rng.random() < 0.5 else {"value": value}
    return copy.deepcopy(rng.choice(ODD))


def tree(rng: random.Random, value: Any) -> tuple[Any, str]:
    """A copy of plain values with one place changed, and what was done there."""
    value = copy.deepcopy(value)
    inside: Any = value
    path = ""
    while isinstance(inside, dict | list) and inside:
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
        child = inside[key]
        path += f".{key}" if isinstance(inside, dict) else f"[{key}]"
        if isinstance(child, dict | list) and child and rng.random() < 0.85:
            inside = child
            continue
        break
    else:
        return leaf(rng, value), "whole: another value"
    what = rng.choice(["value", "value", "value", "value", "remove", "twice", "order", "swap", "add", "nest"])
    if what == "value":
        inside[key] = leaf(rng, inside[key])
    elif what == "remove":
        del inside[key]
    elif what == "twice" and isinstance(inside, list):
        inside.insert(rng.randrange(len(inside) + 1), copy.deepcopy(inside[key]))
    elif what == "order" and isinstance(inside, list):
        rng.shuffle(inside)
    elif what == "order":
        items = list(inside.items())
        rng.shuffle(items)
        inside.clear()
        inside.update(items)
    elif what == "swap":
        other = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
        inside[key], inside[other] = inside[other], inside[key]
    elif what == "nest" and isinstance(inside, dict):
        inside["parent"] = copy.deepcopy(inside)
    elif isinstance(inside, dict):
        inside[rng.choice(["extra", "ignore", "id", "bbox", *NAMES])] = copy.deepcopy(rng.choice(ODD))
    else:
        inside.append(copy.deepcopy(rng.choice(ODD)))
    return value, f"{what} at {re.sub(r'[0-9]+', 'N', path)}"


def encoded(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """The bytes of a file in another form."""
    text, place = data.decode("utf-8", "replace"), rng.randrange(max(1, len(data)))
    forms = {
        "byte order mark": b"\xef\xbb\xbf" + data,
        "UTF-16": text.encode("utf-16", "replace"),
        "UTF-32": text.encode("utf-32", "replace"),
        "gzip": gzip.compress(data),
        "latin-1": text.replace("a", "ä").encode("latin-1", "replace"),
        "CRLF": data.replace(b"\n", b"\r\n"),
        "space around": b" \n\t" + data + b"\n \n",
        "behind the end": data + rng.choice([b"}", b"\n{}", b"\0", b"x", data]),
        "cut": data[: rng.randrange(max(1, len(data)))],
        "empty": b"",
        "blank": b" \n ",
        "zero bytes": bytes(64),
        "a byte": data[:place] + bytes([data[place] ^ 5]) + data[place + 1 :] if data else b"",
    }  # fmt: skip
    name = rng.choice(list(forms))
    return forms[name], name


@dataclass
class File:
    """One input of a command: what it holds, of which kind."""

    value: Any
    kind: str = "json"

    def data(self) -> bytes:
        """The bytes of the file."""
        if self.kind == "json":
            return json.dumps(self.value).encode()
        if self.kind == "lines":
            return "".join(json.dumps(line) + "\n" for line in self.value).encode()
        if self.kind == "yaml":
            return yaml.safe_dump(self.value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
        return self.value.encode("utf-8", "surrogatepass") if isinstance(self.value, str) else self.value

    def mutated(self, rng: random.Random) -> tuple[File, str]:
        """The file with one place changed."""
        if self.kind in ("json", "yaml", "lines") and rng.random() < 0.8:
            value, what = tree(rng, self.value)
            if self.kind == "lines" and not isinstance(value, list):
                value = [value]
            try:
                return File(File(value, self.kind).data(), "bytes"), what
            except (ValueError, RecursionError, yaml.YAMLError):  # YAML does not hold it
                return File(b"", "bytes"), "empty"
        if self.kind == "json" and rng.random() < 0.3:
            keys = re.findall(r'"\w+": ', self.data().decode())
            if keys:
                key = rng.choice(keys)
                return File(self.data().replace(key.encode(), f"{key}1, {key}".encode(), 1), "bytes"), "a key twice"
        if self.kind == "text" and rng.random() < 0.75:
            return self._text(rng)
        if self.kind == "image" and rng.random() < 0.8:
            return self._image(rng)
        data, what = encoded(rng, self.data())
        return File(data, "bytes"), what

    def _text(self, rng: random.Random) -> tuple[File, str]:
        """XML and lists: a word, a line or an element changed."""
        text = self.value
        words = list(re.finditer(r'[^\s<>"=,;]+', text))
        what = rng.choice(["word", "word", "word", "remove", "line twice", "line removed", "lines shuffled"])
        lines = text.splitlines(keepends=True) if "<" not in text else re.findall(r"<[^<]+", text)
        if what in ("word", "remove") and words:
            word = rng.choice(words)
            new = "" if what == "remove" else str(leaf(rng, word.group()))
            return File(text[: word.start()] + new + text[word.end() :], "text"), f"{what} for another"
        if lines and what == "line twice":
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        elif lines and what == "line removed":
            del lines[rng.randrange(len(lines))]
        else:
            rng.shuffle(lines)
        return File("".join(lines), "text"), what

    def _image(self, rng: random.Random) -> tuple[File, str]:
        with Image.open(io.BytesIO(self.data())) as image:
            image.load()
        buffer = io.BytesIO()
        what = rng.choice(["L", "LA", "RGBA", "P", "CMYK", "I;16", "F", "1", "turned", "another size", "thin", "cut",
                           "GIF", "TIFF", "BMP", "WEBP", "large"])  # fmt: skip
        if what == "turned":
            exif = Image.Exif()
            exif[0x0112] = rng.randrange(10)
            image.save(buffer, "PNG", exif=exif)
        elif what in ("another size", "thin", "large"):
            sizes = {"another size": (image.height, image.width + 1), "thin": (300, 1), "large": (1100, 1000)}
            image.resize(sizes[what]).save(buffer, "PNG")
        elif what == "cut":
            data = self.data()
            return File(data[: rng.randrange(len(data))], "bytes"), what
        elif what in ("GIF", "TIFF", "BMP", "WEBP"):
            image.save(buffer, what)
        else:
            image = image.convert("L").convert(what) if what in ("I;16", "F") else image.convert(what)
            image.save(buffer, "TIFF" if what in ("CMYK", "F") else "PNG")
        return File(buffer.getvalue(), "bytes"), what


@dataclass
class Inputs:
    """The files of one call below ``folder``, and its arguments, where ``{in}`` and ``{out}`` stand for the folders."""

    files: dict[str, File] = field(default_factory=dict)
    line: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    pipes: set[str] = field(default_factory=set)
    fixed: int = 1  # words of the line that are not changed: the command
    writes_in: bool = False  # the command writes beside its inputs
    codes: tuple[int, ...] = (2,)  # exit codes beside 0
    notes: list[str] = field(default_factory=list)  # what the maker itself has changed

    def mutate(self, rng: random.Random) -> str:
        """Change one thing; returns what."""
        words = list(range(self.fixed, len(self.line)))
        kind = rng.random()
        if words and kind < (0.15 if self.files else 1.0):
            place = rng.choice(words)
            word = self.line[place]
            if word.startswith("--") or rng.random() < 0.2:
                if rng.random() < 0.5:
                    del self.line[place]
                    return f"without {word}"
                self.line.insert(place, word)
                return f"{word} twice"
            flag = next((w for w in reversed(self.line[:place]) if w.startswith("--")), "")
            self.line[place] = rng.choice(
                ["", "-1", "0", "1", "nan", "inf", "1e400", "{in}", "{in}/none", "x", "~", "$HOME", "9" * 40, "你",
                 word + "x", "{out}"]
            )  # fmt: skip
            return f"{flag} {self.line[place]!r}"
        name = rng.choice(list(self.files))
        ending = os.path.splitext(name)[1]
        if kind < 0.25:
            how = rng.choice(["removed", "a folder", "a pipe", "a link", "swapped", "renamed"])
            if how == "removed":
                self.removed.add(name)
            elif how == "a folder":
                self.folders.add(name)
            elif how == "a pipe":
                self.pipes.add(name)
            elif how == "a link":
                self.links[name] = f"elsewhere{ending}"
            elif how == "swapped":
                other = rng.choice(list(self.files))
                self.files[name], self.files[other] = self.files[other], self.files[name]
            else:
                new = os.path.join(
                    os.path.dirname(name), rng.choice(["$1_$", "你好", "a b", "-x", "é" * 60, ".x"]) + ending
                )
                self.files[new] = self.files.pop(name)
                self.line = [word.replace(f"{{in}}/{name}", f"{{in}}/{new}") for word in self.line]
            return f"{ending} {how}"
        self.files[name], what = self.files[name].mutated(rng)
        return f"{ending}: {what}"

    def write(self, folder: Path) -> None:
        """Make the files."""
        for name, file in self.files.items():
            path = folder / name
            if name in self.removed:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in self.folders:
                path.mkdir()
            elif name in self.pipes:
                os.mkfifo(path)
            elif name in self.links:
                target = folder.parent / self.links[name]
                target.write_bytes(file.data())
                path.symlink_to(target)
            else:
                path.write_bytes(file.data())
