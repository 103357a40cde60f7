"""Packaging: one version, one place for ranges, pins without addresses, and a wheel that holds everything."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import resnext_det
from resnext_det.config_files import list_configs
from resnext_det.doctor.examination import INSTALL_DETECTRON2

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "linux-x86_64.txt"
PINNED = re.compile(r"(?P<name>[a-z0-9-]+)==[\w.]+( ; (?P<marker>[\w.'\s()=<>!*]+))? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of the sources, so that no old build folder lends it files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "resnext_det", source / "resnext_det", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", source / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, stdin=subprocess.DEVNULL)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> str:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return wheel.read(name).decode()


def test_wheel_holds_every_module_and_config(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "resnext_det").rglob("*.py")}
    files |= {f"resnext_det/configs/{name}" for name in list_configs()}
    packed = {name for name in wheel.namelist() if name.endswith((".py", ".yaml"))}
    assert packed == files
    assert "resnext_det/configs/detection/Base-RCNN-C4.yaml" in packed
    assert "resnext_det/py.typed" in wheel.namelist()
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())
    (entries,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "resnext-det = resnext_det.cli:main" in wheel.read(entries).decode()


def test_wheel_works_without_the_clone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked somewhere else: a config is found by its name and merged with its base."""
    wheel.extractall(tmp_path / "site")
    code = (
        "import resnext_det; from resnext_det.detection.config import setup\n"
        "cfg = setup('detection/coco/X_50_32x4d_C4_1x.yaml', ['MODEL.DEVICE', 'cpu'])\n"
        "print(resnext_det.config_path('configs/cifar/resnext29_8x64d_cifar.yaml'), cfg.MODEL.RESNETS.NUM_GROUPS)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = tmp_path / "site/resnext_det/configs/cifar/resnext29_8x64d_cifar.yaml"
    assert done.stdout.split() == [str(expected), "32"] and expected.is_file()


def test_sdist_builds_the_same_wheel(tmp_path: Path, wheel: zipfile.ZipFile) -> None:
    """What is published as sources holds all that its own build needs, and the tests."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "output"))
    quiet = {"cwd": source, "check": True, "stdin": subprocess.DEVNULL, "capture_output": True}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], **quiet)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    wanted = {name.replace("resnext_det/configs/", "configs/") for name in wheel.namelist() if "dist-info" not in name}
    assert wanted <= names
    assert {"LICENSE", "MANIFEST.in", "setup.py", "pyproject.toml", "tests/conftest.py", "tools/train_net.py"} <= names


def test_version_stands_in_one_place(wheel: zipfile.ZipFile) -> None:
    assert f"\nVersion: {resnext_det.__version__}\n" in metadata(wheel)
    stated = [
        path.name
        for path in [ROOT / "setup.py", ROOT / "pyproject.toml", *(ROOT / "resnext_det").rglob("*.py")]
        if re.search(rf'version[_ ]*= *"{re.escape(resnext_det.__version__)}"', path.read_text("utf-8"))
        or f'__version__ = "{resnext_det.__version__}"' in path.read_text("utf-8")
    ]
    assert stated == ["__init__.py"]


def test_requirements_of_the_wheel(wheel: zipfile.ZipFile) -> None:
    required = re.findall(r"^Requires-Dist: (\S+)", metadata(wheel), re.M)
    assert not any("detectron2" in name for name in required)  # pip must not replace the user's own
    for line in re.findall(r"^Requires-Dist: ([^;\n]+)", metadata(wheel), re.M):
        assert "<" in line and ">=" in line, f"{line}: not bounded on both sides"
    assert "\nRequires-Python: >=3.10\n" in metadata(wheel)


def test_pinned_file_is_names_versions_and_hashes_only() -> None:
    lines = [line for line in LOCK.read_text("utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        assert PINNED.fullmatch(line) or HASH.fullmatch(line), line


def test_every_requirement_is_pinned(wheel: zipfile.ZipFile) -> None:
    pinned = {match["name"] for line in LOCK.read_text("utf-8").splitlines() if (match := PINNED.fullmatch(line))}
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*(.*)", metadata(wheel), re.M)
    wanted = {name.lower() for name, extra in required if not extra or '"dev"' in extra}
    for path in (ROOT / "requirements").glob("*.in"):
        wanted |= set(re.findall(r"^([\w-]+)[=<>]", path.read_text("utf-8"), re.M))
    assert {"torch", "uv", "pb1-detectron2", "pytest"} <= wanted
    assert wanted <= pinned, f"run `make lock`: {sorted(wanted - pinned)} not pinned"


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", ".github/workflows/ci.yml", "setup.py", "pyproject.toml"])
def test_set_up_names_no_host(name: str) -> None:
    assert "://" not in (ROOT / name).read_text("utf-8")


def test_makefile_and_doctor_install_detectron2_alike() -> None:
    options = re.compile(r"--(?:no-build-isolation-package \S+|config-settings-package \"[^\"]+\")")
    in_doctor = options.findall(INSTALL_DETECTRON2)
    assert len(in_doctor) == 3
    assert options.findall((ROOT / "Makefile").read_text("utf-8"))[:3] == in_doctor
    assert (ROOT / "requirements/detectron2.in").read_text("utf-8").splitlines()[-1] == INSTALL_DETECTRON2.split()[-1]


def test_pins_satisfy_the_ranges(wheel: zipfile.ZipFile) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pins = re.findall(r"^([a-z0-9-]+)==([\w.]+)", LOCK.read_text("utf-8"), re.M)
    for line in re.findall(r"^Requires-Dist: ([^;\n]+)", metadata(wheel), re.M):
        requirement = requirements.Requirement(line.strip())
        for name, version in pins:
            if name == requirement.name.lower():
                assert requirement.specifier.contains(version, prereleases=True), f"{line}: {version} pinned"


def modules() -> set[str]:
    files = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "resnext_det").rglob("*.py")}
    return {name.replace("/", ".").removesuffix(".__init__") for name in files if not name.endswith("__main__")}


def test_each_module_says_what_it_is() -> None:
    assert len(modules()) > 100
    assert not [name for name in modules() if not importlib.import_module(name).__doc__]


@pytest.mark.slow
def test_the_site_has_every_page_and_module(tmp_path: Path) -> None:
    """``make docs``' two commands; a broken link or reference is a warning, and a warning fails."""
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason="the extra `docs` is not installed")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "output"))
    recipe = re.search(r"^docs: setup\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.M)[1]
    commands = [line.strip() for line in recipe.splitlines() if line.startswith("\t$(BIN)/python")]
    assert len(commands) == 2
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(source), os.environ.get("PYTHONPATH", "")))}
    for command in commands:
        words = [sys.executable, *command.split()[1:]]
        done = subprocess.run(words, cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    site = source / "build/docs"
    pages = {page.relative_to(source).with_suffix(".html") for page in source.rglob("*.md")}
    assert len(pages) > 12 and all((site / page).is_file() for page in pages)
    reference = "".join(page.read_text("utf-8") for page in (site / "build/api").glob("*.html"))
    assert not [name for name in modules() if f'id="module-{name}"' not in reference]


CONFIG_EDGE = """
auto/timing.py classification/config.py classification/initial_weights.py classification/replay.py
classification/solver.py classification/train.py detection/backbone.py detection/c4_head.py detection/channels.py
detection/class_count.py detection/config.py detection/config_check.py detection/data/augmentation.py
detection/data/checked_sets.py detection/data/inspection.py detection/data/loaders.py detection/data/mapper.py
detection/dump_proposals.py detection/evaluate.py detection/export/artifact.py detection/initial_weights.py
detection/prediction/command.py detection/prediction/detector.py detection/replay.py detection/solver.py
detection/stock_keys.py detection/train.py detection/tuning.py engine/config.py engine/launch.py
"""
"""The files where a parameter may be ``cfg``; :mod:`resnext_det.commands` too. The list may only shrink."""


def test_a_config_is_a_parameter_at_the_edge_alone() -> None:
    found = []
    for path in (ROOT / "resnext_det").rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.arguments)]
        taken = [a for n in nodes for a in (*n.posonlyargs, *n.args, *n.kwonlyargs)]
        found += [path.relative_to(ROOT / "resnext_det").as_posix() for a in taken if a.arg == "cfg"]
    found = [file for file in found if not file.startswith("commands/")]
    assert set(found) == set(CONFIG_EDGE.split())
    assert len(found) <= 120, "more functions take a config than before: give them the values that they read"
