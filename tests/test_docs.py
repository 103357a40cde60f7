"""What the pages show is true: commands parse with the real flags, keys exist, Python runs, YAML merges, links work."""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from common import ROOT
from detectron2.config import CfgNode, get_cfg
from markdown_it import MarkdownIt
from markdown_it.token import Token

from resnext_det import UserError, add_resnext_config, cli
from resnext_det.classification.config import get_config
from resnext_det.detection.prediction.command import split_settings
from resnext_det.detection.solver import resolve_schedule
from resnext_det.engine.config import load_config
from resnext_det.makers.synthetic import draw_detection_set

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "datasets" / "README.md"]
TOOLS = {
    f"tools/{path.name}": re.findall(r'^    main\("(.+)"\)$', path.read_text("utf-8"), re.M)[0]
    for path in (ROOT / "tools").glob("*.py")
}
PROGRAMS = (
    *("python", "resnext-det", "make", "pip", "torchrun", "srun", "pytest", "pre-commit", "cp", "find", "..."),
    *(".venv/bin/python", "/tmp/oldest/bin/python"),
)
SHELL = re.compile(r"(" + "|".join(map(re.escape, (*PROGRAMS, "export", "for", *TOOLS))) + r")( |$)|\w+=\S")
SYNOPSIS = re.compile(r"\[--|\w\|\w")  # `tool [--flag]`, `this|that`: not to be typed as it stands
SETTING = re.compile(r"(?:[A-Z][A-Z0-9_]+\.)+[A-Z0-9_]+(?= |$)")
REPOSITORY_FILE = re.compile(r"(?:tests|resnext_det|configs|docs|tools|examples|requirements|results)/[\w./-]+")


@dataclass(frozen=True)
class Block:
    """A piece of code on a page: its place, its language ("" where the page names none), its text."""

    place: str
    language: str
    text: str


def tokens(page: Path) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8")):
        yield token
        for child in token.children or ():
            child.map = token.map
            yield child


def blocks(*kinds: str) -> list[Block]:
    found = []
    for page in sorted(PAGES):
        for token in tokens(page):
            if token.type in kinds:
                line = token.map[0] + 1 if token.map else 0
                found.append(Block(f"{page.relative_to(ROOT)}:{line}", token.info.strip(), token.content))
    return found


CODE = blocks("fence", "code_block")
INLINE = blocks("code_inline")
COMMANDS = [b for b in CODE if b.language in ("bash", "sh") or (not b.language and SHELL.match(b.text))]
COMMANDS += [b for b in INLINE if SHELL.match(b.text) and " " in b.text]
COMMANDS = [b for b in COMMANDS if not SYNOPSIS.search(b.text)]
PYTHON = [b for b in CODE if b.language == "python"]
YAML = [b for b in CODE if b.language == "yaml" or re.fullmatch(r"(?:[A-Z_]+: \{.*\}\n?)+", b.text)]


def names(block: Block) -> str:
    return block.place


def called(shell: str, folder: Path) -> list[list[str]]:
    """The program calls of a piece of shell, each as its words: bash runs it, and every program only records them."""
    record = folder / "calls"
    # One write of the whole call, since both ends of a pipe write at once.
    stub = f'#!/bin/bash\nprintf "%s\\0" "${{0#{folder}/}}" "$@" $\'\\1\' >> "{record}"\n'
    for name in (*PROGRAMS, *TOOLS):
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stub)
        path.chmod(0o755)
    shell = re.sub(r"^/tmp/oldest", "tmp/oldest", shell, flags=re.M)
    environment = {**os.environ, "PATH": str(folder)}
    done = subprocess.run(
        ["/bin/bash", "-eu", "-c", shell], cwd=folder, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    text = record.read_text() if record.exists() else ""
    return [call.split("\0")[:-1] for call in text.split("\1\0") if call]


class Parsed(Exception):
    """The flags were read; nothing runs."""


def parse(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The command's flags from ``words``, read by its own parser. Wrong ones fail the test."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(real(self, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Parsed) as parsed:
            import_module(f"resnext_det.commands.{command.replace('-', '_')}").main(words)
    return parsed.value.args[0]


def config_of(command: str) -> CfgNode:
    if command == "pretrain":
        return get_config()
    cfg = get_cfg()
    add_resnext_config(cfg)
    return cfg


def check_settings(command: str, file: str | None, pairs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``KEY VALUE`` pairs are of the command's configuration, and its file exists where the page names one."""
    pairs = [word for word in pairs if word != "..."]
    cfg = config_of(command)
    monkeypatch.chdir(ROOT)
    if file and file.endswith(".yaml") and file != "mine.yaml" and "$" not in file:
        load_config(cfg, file, [*pairs, "MODEL.DEVICE", "cpu"])
    else:
        cfg.merge_from_list(pairs)


def check_call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *words = words
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        assert all("=" in word or word in targets for word in words), words
    elif program == "pip":
        assert not [w for w in words if w.startswith("resnext-det")], "nothing is published: from a clone or a wheel"
        extras = re.findall(r'^    "(\w+)":|^EXTRAS\["(\w+)"\]', (ROOT / "setup.py").read_text("utf-8"), re.M)
        for word in words:
            for extra in re.findall(r"\[(.+)\]", word):
                assert set(extra.split(",")) <= {name for pair in extras for name in pair}, word
    elif program == "...":
        assert len(words) % 2 == 0, words
        for key, value in zip(words[::2], words[1::2], strict=True):
            check_settings("pretrain" if key in known_keys(get_config()) else "train", None, [key, value], monkeypatch)
    else:
        check_program(program, words, monkeypatch)


def check_program(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if program in TOOLS:
        command = TOOLS[program]
    elif program == "resnext-det":
        if words == ["--help"]:
            return
        command, *words = words
    elif words[:2] == ["-m", "resnext_det"]:
        command, words = "doctor", words[2:]
    elif program == "pytest" or words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words if word.startswith("tests")), words
        return
    elif tool := next((word for word in words if word in TOOLS), None):  # python, torchrun and srun have flags before
        command, words = TOOLS[tool], words[words.index(tool) + 1 :]
    elif script := next((word for word in words if word.endswith(".py")), None):
        text = (ROOT / script).read_text("utf-8")
        assert all(f'"{word}"' in text for word in words if word.startswith("--")), words
        return
    else:
        assert program in ("cp", "find", "pre-commit", "srun"), program
        return
    assert command in cli.COMMANDS, command
    if words in ([], ["..."]):  # a command named in a sentence
        return
    flags = parse(command, words, monkeypatch)
    pairs = list(getattr(flags, "opts", None) or ())
    if command == "predict":
        pairs = split_settings(flags.input, pairs)[1]
    if hasattr(flags, "opts"):
        check_settings(command, getattr(flags, "config_file", None), pairs, monkeypatch)


def known_keys(node: dict, prefix: str = "") -> set[str]:
    keys = set()
    for key, value in node.items():
        keys.add(prefix + key)
        if isinstance(value, dict):
            keys |= known_keys(value, f"{prefix}{key}.")
    return keys


def test_pages_have_blocks_of_every_kind() -> None:
    assert len(PAGES) > 12 and len(COMMANDS) > 60 and len(PYTHON) >= 4 and len(YAML) >= 4


@pytest.mark.parametrize("block", COMMANDS, ids=names)
def test_commands_parse_with_the_real_flags(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(block.text, tmp_path)
    for words in calls:
        check_call(words, monkeypatch)


def test_a_wrong_flag_or_key_on_a_page_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("resnext-det train --config-fiel x.yaml", "resnext-det trian", "make everything"):
        with pytest.raises((AssertionError, SystemExit)):
            check_call(called(line, tmp_path / line.replace(" ", "_"))[0], monkeypatch)
    with pytest.raises(UserError, match="SOLVER.MAX_ITERS"):
        line = "python tools/train_net.py --config-file configs/detection/quickstart.yaml SOLVER.MAX_ITERS 3"
        check_call(called(line, tmp_path / "key")[0], monkeypatch)


def test_keys_on_the_pages_exist() -> None:
    known = known_keys(get_config()) | known_keys(config_of("train"))
    used = [(b.place, key) for b in INLINE if (key := SETTING.match(b.text))]
    assert len(used) > 40
    assert not [(place, key[0]) for place, key in used if key[0] not in known]


@pytest.mark.parametrize("block", YAML, ids=names)
def test_yaml_merges_into_a_configuration(block: Block, tmp_path: Path) -> None:
    values = yaml.safe_load(block.text)
    if "_BASE_" in values:
        values["_BASE_"] = str(ROOT / values["_BASE_"])
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(values), "utf-8")
    cfg = load_config(config_of("train"), str(tmp_path / "page.yaml"), ["MODEL.DEVICE", "cpu"])
    if "SOLVER" in values:  # the README's, for data of one's own
        schedule = resolve_schedule(cfg, 100)
        assert (schedule.SOLVER.MAX_ITER, schedule.SOLVER.STEPS, schedule.SOLVER.WARMUP_ITERS) == (600, (400, 550), 96)
        assert schedule.SOLVER.BASE_LR == pytest.approx(0.02 * 2 / 16)


@pytest.mark.parametrize("block", PYTHON, ids=names)
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text, block.place)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnext_det"):
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "resnext_det":
            assert hasattr(sys.modules["resnext_det"], node.attr), ast.unparse(node)


def python_of(page: str, holding: str) -> str:
    (text,) = [b.text for b in PYTHON if b.place.startswith(page) and holding in b.text]
    return text


def test_the_readmes_network_has_the_parameters_it_prints(capsys: pytest.CaptureFixture) -> None:
    text = python_of("README", "create_model")
    exec(compile(text, "README.md", "exec"), {})
    (promised,) = re.findall(r"\)  # (\d+)$", text, re.M)
    assert capsys.readouterr().out.strip() == promised


def test_the_report_of_the_evaluation_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_detection_set(tmp_path, 2)
    (tmp_path / "instances.json").rename(tmp_path / "instances_val.json")
    (tmp_path / "coco_instances_results.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of("docs/evaluation", "write_report"), "evaluation.md", "exec"), {})
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for token in tokens(page):
        target = token.attrGet("href") if token.type == "link_open" else token.attrGet("src")
        if not target or "://" in str(target):
            continue
        name, _, anchor = str(target).partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in slugs(file), target


def test_files_of_the_repository_that_pages_name_exist() -> None:
    named = [(b.place, path[0].split("::")[0]) for b in INLINE if (path := REPOSITORY_FILE.fullmatch(b.text))]
    assert len(named) > 30
    elsewhere = {"tools/lazyconfig_train_net.py", "tools/plain_train_net.py"}  # detectron2's
    assert not [(place, path) for place, path in named if not (ROOT / path).exists() and path not in elsewhere]


def test_nothing_in_the_citation_contradicts_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == sys.modules["resnext_det"].__version__ and cited["license"] == "Apache-2.0"
    title = cited["preferred-citation"]["title"]
    assert title in (ROOT / "README.md").read_text("utf-8")
