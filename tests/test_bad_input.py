"""docs/bad_input.md and SECURITY.md name a test for each case, and every one of them exists."""

import re

from common import ROOT

ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str, str]]:
    return ROW.findall((ROOT / "docs" / "bad_input.md").read_text(encoding="utf-8"))


def test_all_cases_are_there():
    assert [int(number) for number, *_ in rows()] == list(range(1, 80))


def attacks() -> list[tuple[str, str, str]]:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Proof")[2]
    return re.findall(r"^\| (.+?) \| (.+?) \| (`.+) \|$", text, re.MULTILINE)


def test_every_test_named_exists():
    assert len(attacks()) > 20
    for case, *_, cell in [*rows(), *attacks()]:
        named = re.findall(r"`([\w/.]+)::(\w+)`", cell)
        assert named and cell == "<br>".join(f"`{file}::{name}`" for file, name in named), f"{case}: {cell}"
        for file, name in named:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{case}: {file} has no {name}"
