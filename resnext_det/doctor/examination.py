"""What is installed on this machine, whether C4 training and evaluation can run, and what would fix the rest.

Every library is imported inside a check: a missing or broken one becomes a line of the report.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .. import __version__, compat

INSTALL_DETECTRON2 = (
    "python -m pip install setuptools wheel uv && python -m uv pip install --python {python} "
    "--no-build-isolation-package pb1-detectron2 "
    '--config-settings-package "pb1-detectron2:--global-option=build_py" '
    '--config-settings-package "pb1-detectron2:--build-option=--skip-build" pb1-detectron2==0.6'
)
"""pb1-detectron2 is detectron2's release 0.6 without the C++ sources; pip refuses its metadata, uv does not."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: of the library or feature.
        state: its version and what works, or what is wrong.
        ok: whether it works.
        required: whether C4 training and evaluation need it.
        fix: the one command that fixes it; empty where there is nothing to fix.
    """

    name: str
    state: str
    ok: bool = True
    required: bool = True
    fix: str = ""


def ready(findings: list[Finding]) -> bool:
    """Whether everything that C4 training and evaluation need works."""
    return all(finding.ok for finding in findings if finding.required)


def report(findings: list[Finding]) -> str:
    """The findings as a table, then one line for each thing to fix, then the verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{finding.name:<{width}}  {finding.state}" for finding in findings]
    for finding in findings:
        if finding.fix:
            lines.append(f"to fix {finding.name}: {finding.fix}")
    broken = [finding.name for finding in findings if finding.required and not finding.ok]
    verdict = f"cannot run here: fix {', '.join(broken)} first" if broken else "can run here"
    return "\n".join([*lines, f"C4 training and evaluation {verdict}."])


def examine() -> list[Finding]:
    """Look at every library in the order in which they build on each other."""
    libraries = [
        Finding("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        Finding("resnext_det", __version__),
        _check("numpy", _numpy, "numpy"),
        _check("torch", _torch, "torch torchvision"),
        _check("CUDA", _cuda, "torch torchvision", required=False),
        _check("torchvision", _torchvision, "torch torchvision"),
        _check("Pillow", _version_of("PIL", "Pillow"), "Pillow"),
        _check("OpenCV", _version_of("cv2"), "opencv-python-headless", required=False),
        _check("pycocotools", _version_of("pycocotools.mask", "pycocotools"), "pycocotools"),
        _check("hotcoco", _version_of("hotcoco"), "hotcoco"),
        _check("fvcore", _version_of("fvcore.nn", "fvcore"), "fvcore iopath yacs"),
    ]
    return libraries + _detectron2(libraries_work=ready(libraries))


def _check(name: str, look: Callable[[], str], packages: str, required: bool = True) -> Finding:
    """``look`` returns the state, or raises whatever a missing or broken library raises."""
    try:
        return Finding(name, look(), required=required)
    except ModuleNotFoundError as error:
        # Much stands on these two, and they have lines of their own.
        blameless = error.name in ("numpy", "torch") and error.name != name
        fix = "" if blameless else f"python -m pip install {packages}"
        return Finding(name, _cause(error), ok=False, required=required, fix=fix)
    except Exception as error:  # a broken library may raise anything
        fix = f"python -m pip install --upgrade --force-reinstall {packages}"
        return Finding(name, _cause(error), ok=False, required=required, fix=fix)


def _cause(error: BaseException) -> str:
    """The error on one line; a library that is simply not there is called missing."""
    if isinstance(error, ModuleNotFoundError):
        return f"missing: {error}"
    text = " ".join(str(error).split())
    return f"broken: {type(error).__name__}: {text[:200]}"


def _version_of(module: str, distribution: str | None = None) -> Callable[[], str]:
    def look() -> str:
        imported = importlib.import_module(module)
        return metadata.version(distribution) if distribution else imported.__version__

    return look


def _numpy() -> str:
    import numpy as np

    return np.__version__


def _torch() -> str:
    import torch

    torch.zeros(1).numpy()  # fails where torch was compiled for another numpy
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"built for {torch.version.cuda or 'the CPU only'}, no device: everything runs on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    torch.ones(1, device="cuda").add_(1).item()  # fails where the build does not know the device
    return f"{torch.version.cuda}, {len(names)} x {names[0]}"


def _torchvision() -> str:
    import torch
    import torchvision

    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    torchvision.ops.nms(box, torch.ones(1), 0.5)
    torchvision.ops.roi_align(torch.zeros(1, 1, 8, 8), [box], 2)
    return f"{torchvision.__version__}, nms and roi_align work"


def _detectron2(libraries_work: bool) -> list[Finding]:
    """The lines of detectron2 and its extension; it is blamed only where the libraries it stands on work."""
    folder = compat.detectron2_folder()
    install = INSTALL_DETECTRON2.format(python=sys.executable)
    if folder is None:
        return [Finding("detectron2", "missing", ok=False, fix=install)]
    try:
        compat.prepare()
        detectron2 = importlib.import_module("detectron2")
        importlib.import_module("detectron2.engine")
        importlib.import_module("resnext_det.detection")
    except Exception as error:  # a broken library may raise anything
        if not libraries_work:
            fix = ""
        elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("detectron2"):
            fix = f"python -m pip install {_package_of(error.name or '')}"
        else:
            fix = f"python -m pip uninstall -y detectron2 pb1-detectron2 && {install}"
        return [Finding("detectron2", f"{_cause(error)}, in {folder}", ok=False, fix=fix)]
    state = f"{detectron2.__version__} in {folder}, our backbone and head are registered"
    return [Finding("detectron2", state), _cpp_extension(folder)]


def _package_of(module: str) -> str:
    """What to install for a module that detectron2 misses."""
    top = module.partition(".")[0]
    # setuptools 81 and later hold no pkg_resources.
    return {"pkg_resources": '"setuptools<81"', "yaml": "PyYAML"}.get(top, top)


def _cpp_extension(folder: Path) -> Finding:
    if compat.has_cpp_extension():
        return Finding("detectron2._C", "yes", required=False)
    lost = "no rotated boxes nor deformable convolution; C4 needs neither"
    if any(folder.glob("_C*.so")) or any(folder.glob("_C*.pyd")):
        fix = "build detectron2 again from its sources: its C++ extension was built for another torch"
        return Finding("detectron2._C", f"does not load: {lost}", ok=False, required=False, fix=fix)
    return Finding("detectron2._C", f"not built: {lost}", required=False)
