"""`python -m resnext_det` speaks whatever is missing or broken, and names what fixes it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import call

from resnext_det.doctor import examination as doctor
from resnext_det.doctor.examination import Finding

ROOT = Path(__file__).resolve().parents[2]
needs_detectron2 = pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is missing")

# Runs `python -m resnext_det` where the modules named as arguments cannot be found, or raise when they are imported.
RUN_WITHOUT = """
import runpy, sys

missing, broken = (set(filter(None, argument.split(","))) for argument in sys.argv[1:])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in broken:
            raise RuntimeError(f"{name} was built for\\nanother release")

sys.meta_path.insert(0, Blocker())
sys.argv = ["resnext_det"]
runpy.run_module("resnext_det", run_name="__main__", alter_sys=True)
"""


def run_without(missing: str = "", broken: str = "") -> tuple[int, str]:
    """Exit code and report of ``python -m resnext_det`` without those modules (comma-separated)."""
    command = [sys.executable, "-c", RUN_WITHOUT, missing, broken]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def fixing(report: str, name: str) -> str:
    """The report's one line that fixes ``name``."""
    (line,) = [line for line in report.splitlines() if line.startswith(f"to fix {name}: ")]
    return line.partition(": ")[2]


@needs_detectron2
def test_whole_installation_is_ready() -> None:
    done = call("doctor")
    report = done.stdout
    assert done.returncode == 0, report
    assert report.endswith("C4 training and evaluation can run here.\n")
    for name in ("Python", "torch", "CUDA", "torchvision", "detectron2", "detectron2._C", "numpy", "Pillow", "OpenCV"):
        assert f"\n{name} " in "\n" + report
    assert "nms and roi_align work" in report
    assert "backbone and head are registered" in report


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ("torch", ["torch"]),
        ("torchvision", ["torchvision"]),
        (
            "numpy,PIL,pycocotools,hotcoco,fvcore",
            ["numpy", "Pillow", "pycocotools", "hotcoco", "fvcore"],
        ),
    ],
)
def test_missing_libraries(modules: str, names: list[str]) -> None:
    code, report = run_without(missing=modules)
    assert code == 2
    verdict = report.splitlines()[-1]
    assert verdict.startswith("C4 training and evaluation cannot run here: fix ")
    for name in names:
        assert re.search(rf"^{name} +missing: No module named", report, re.M)
        assert name in fixing(report, name) and name in verdict
    if "torch" in names:
        assert sum(line.startswith("to fix ") for line in report.splitlines()) == 1, report


def test_broken_torch() -> None:
    code, report = run_without(broken="torch")
    assert code == 2
    assert "broken: RuntimeError: torch was built for another release" in report
    assert "--force-reinstall torch" in fixing(report, "torch")
    assert "to fix detectron2" not in report  # it only stands on what is broken


def test_missing_detectron2() -> None:
    code, report = run_without(missing="detectron2")
    assert code == 2
    assert "pb1-detectron2==0.6" in fixing(report, "detectron2")


@needs_detectron2
def test_broken_detectron2() -> None:
    code, report = run_without(broken="detectron2.engine")
    assert code == 2
    assert "detectron2.engine was built for another release" in report
    assert "pb1-detectron2==0.6" in fixing(report, "detectron2")


@needs_detectron2
@pytest.mark.parametrize(("module", "package"), [("pkg_resources", "setuptools<81"), ("yacs", "yacs")])
def test_library_that_detectron2_misses(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    (finding,) = doctor._detectron2(libraries_work=True)
    assert not finding.ok and package in finding.fix


@needs_detectron2
def test_opencv_is_optional() -> None:
    code, report = run_without(missing="cv2")
    assert code == 0
    assert fixing(report, "OpenCV") == "python -m pip install opencv-python-headless"


def test_extension_built_for_another_torch_is_distinguished_from_one_that_was_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.compat, "has_cpp_extension", lambda: False)
    assert doctor._cpp_extension(tmp_path).ok
    (tmp_path / "_C.cpython-312-x86_64-linux-gnu.so").touch()
    finding = doctor._cpp_extension(tmp_path)
    assert not finding.ok and not finding.required
    assert "another torch" in finding.fix


def test_only_required_findings_decide() -> None:
    fine, optional = Finding("a", "1.0"), Finding("b", "missing", ok=False, required=False, fix="get b")
    assert doctor.ready([fine, optional])
    assert "to fix b: get b" in doctor.report([fine, optional])
    assert not doctor.ready([fine, Finding("c", "missing", ok=False)])


def test_models_work_without_detectron2() -> None:
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import warnings; warnings.simplefilter('error')\n"
        "import resnext_det; print(resnext_det.create_model('resnet50').fc.out_features)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1000", done.stderr


@needs_detectron2
def test_broken_detectron2_is_a_warning_with_its_cause() -> None:
    code = (
        "import sys; sys.modules['detectron2.modeling'] = None\n"
        "import resnext_det; print(resnext_det.create_model('resnet50').fc.out_features)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1000"
    assert "resnext_det is incomplete" in done.stderr and "detectron2.modeling" in done.stderr


@needs_detectron2
@pytest.mark.slow
def test_self_test_trains_evaluates_saves_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In commands of their own, as a user's; what a few iterations learn decides nothing here."""
    from resnext_det.commands.doctor import main
    from resnext_det.doctor import self_test
    from resnext_det.errors import RunFailed

    monkeypatch.setattr(self_test, "ITERATIONS", 4)
    monkeypatch.setattr(self_test, "INTERRUPTED", 2)
    monkeypatch.setattr(self_test, "LEARNED", -1.0)
    with pytest.raises(SystemExit) as left:
        main(["--self-test"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert re.search(r"self-test passed in \d+ s", out) and out.count("... ok") == 3
    monkeypatch.setattr(self_test, "LEARNED", 101.0)
    monkeypatch.setattr(self_test, "_call", call)
    with pytest.raises(RunFailed, match="AP50"):
        self_test.self_test()
    assert capsys.readouterr().out.count("... ok") == 1
