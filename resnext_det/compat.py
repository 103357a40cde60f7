"""The one door to detectron2: finds it, and fixes the places where newer libraries have left release 0.6 behind.

``import resnext_det`` calls :func:`register`, which imports nothing: when detectron2 is imported, :func:`prepare` goes
before its submodules, and our registrations behind its own. Where detectron2 is whole and recent nothing is changed.
What is fixed:

* ``PIL.Image.LINEAR``, ``numpy.int``, ``numpy.float``, ``numpy.bool`` and ``numpy.str``: names that 0.6 uses and newer
  releases of Pillow and numpy removed. Restored only when the installed detectron2 still mentions them.
* ``pkg_resources`` (gone from setuptools) and ``caffe2`` (gone from PyTorch): stand-ins, seen by ``model_zoo`` and
  ``export`` alone while these import them. caffe2's names itself when something calls it.
* ``detectron2._C``, the C++ extension (rotated boxes, deformable convolution, a COCO evaluator). C4 needs none of it:
  RoIAlign and NMS are torchvision's. Where it was not built, a stand-in lets detectron2 import and names itself when
  something really calls into it; the COCO evaluator falls back to pycocotools.

Differences between detectron2's 0.6 and its main branch belong here and nowhere else.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

_ALIASES = {"int": int, "float": float, "bool": bool, "str": str}
_CAFFE2 = ("caffe2", "caffe2.proto", "caffe2.python", "caffe2.python.utils", "caffe2.python.onnx",
           "caffe2.python.onnx.backend")  # fmt: skip


def detectron2_folder() -> Path | None:
    """The folder detectron2 would be imported from, without importing it; None where it is not installed."""
    module = sys.modules.get("detectron2")
    if module is not None and getattr(module, "__file__", None):
        return Path(module.__file__).parent
    try:
        spec = importlib.util.find_spec("detectron2")
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def has_cpp_extension() -> bool:
    """Whether detectron2's compiled extension ``detectron2._C`` is there and loads."""
    folder = detectron2_folder()
    if folder is None or isinstance(sys.modules.get("detectron2._C"), _MissingExtension):
        return False
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return True


def prepare() -> bool:
    """Make detectron2 importable on this machine. Returns False where it is not installed. Safe to call again."""
    folder = detectron2_folder()
    if folder is None:
        return False
    _restore_names(folder)
    if not has_cpp_extension():
        _stand_in_for_cpp_extension()
    return True


_parts: Callable[[], object] = object
"""Imports what registers itself in detectron2; :func:`register` is given it."""


def register(parts: Callable[[], object]) -> bool:
    """Have :func:`prepare` called when detectron2 is imported, and our parts registered behind ``detectron2.modeling``.

    Args:
        parts: imports our parts, which register themselves.

    Returns:
        Whether detectron2 is installed.
    """
    global _parts
    _parts = parts
    _quiet_known_warnings()
    if detectron2_folder() is None:
        return False
    if {"detectron2", "detectron2.modeling"} & sys.modules.keys():
        prepare()
    if not any(isinstance(finder, _BesideDetectron2) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BesideDetectron2())
    if "detectron2.modeling" in sys.modules:
        _register_parts()
    return True


class _BesideDetectron2(importlib.abc.MetaPathFinder):
    """Lets Python's own finders find detectron2, and adds what comes before and behind its import."""

    def find_spec(self, fullname, path=None, target=None):
        behind = {"detectron2": prepare, "detectron2.modeling": _register_parts}.get(fullname)
        during = fullname.startswith(("detectron2.export.", "detectron2.model_zoo."))
        if behind is None and not during:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                with _gone_modules() if during else nullcontext():
                    load(module)
                if behind is not None:
                    behind()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec


class _Gone(types.ModuleType):
    """A package that no longer exists, and everything in it; says so when it is called."""

    def __getattr__(self, name: str) -> _Gone:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Gone(f"{self.__name__}.{name}")

    def __call__(self, *args, **kwargs):
        raise NotImplementedError(
            f"{self.__name__}: caffe2 is gone from PyTorch; export by torch.export or ONNX (resnext-det export)"
        )


def _resource_filename(package: str, name: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, package
    return str(Path(spec.origin).parent / name)


@contextmanager
def _gone_modules() -> Iterator[None]:
    """``pkg_resources`` and ``caffe2`` can be imported in this block where they are not installed."""
    stand_ins: dict[str, types.ModuleType] = {}
    if not _is_importable("pkg_resources"):
        stand_ins["pkg_resources"] = resources = types.ModuleType("pkg_resources")
        resources.resource_filename = _resource_filename  # type: ignore[attr-defined]
    if not _is_importable("caffe2.python"):
        stand_ins |= {name: _Gone(name) for name in _CAFFE2}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _is_importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _register_parts() -> None:
    """A library that is broken is named instead of raised: detectron2 may well work without us."""
    try:
        _parts()
    except Exception as error:
        warnings.warn(
            f"resnext_det is incomplete ({type(error).__name__}: {error}): `python -m resnext_det` says what fixes it",
            stacklevel=2,
        )


def _quiet_known_warnings() -> None:
    """detectron2 and fvcore use calls that PyTorch has deprecated; our users can do nothing about them."""
    for message in (r"`torch.jit.script(_method)?` is deprecated", r"torch.meshgrid: in an upcoming release"):
        warnings.filterwarnings("ignore", message=message)


def _mentions(file: Path, text: str) -> bool:
    return file.is_file() and text in file.read_text(encoding="utf-8")


def _restore_names(folder: Path) -> None:
    if _mentions(folder / "data" / "transforms" / "transform.py", "Image.LINEAR"):
        from PIL import Image

        if not hasattr(Image, "LINEAR"):
            Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    if _mentions(folder / "data" / "build.py", "np.int)"):
        import numpy as np

        for name, builtin in _ALIASES.items():
            if name not in np.__dict__:  # hasattr would print numpy's deprecation warning
                setattr(np, name, builtin)


class _MissingExtension(types.ModuleType):
    """Stands where ``detectron2._C`` would be; says what is missing when it is called."""

    has_cuda = staticmethod(lambda: False)
    # `collect_env_info` prints these two.
    get_compiler_version = staticmethod(lambda: "detectron2._C is not built")
    get_cuda_version = staticmethod(lambda: "detectron2._C is not built")

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f"detectron2._C.{name} is not built: this detectron2 was installed without its C++ extension. "
                "Rotated boxes and deformable convolution need it: build detectron2 from its sources."
            )

        return missing


def _stand_in_for_cpp_extension() -> None:
    import detectron2

    if isinstance(sys.modules.get("detectron2._C"), _MissingExtension):
        return
    extension = _MissingExtension("detectron2._C")
    sys.modules["detectron2._C"] = detectron2._C = extension
    # detectron2's own fast evaluator is written over the extension; pycocotools gives the same numbers.
    fast = types.ModuleType("detectron2.evaluation.fast_eval_api")
    fast.__getattr__ = _pycocotools_evaluator
    sys.modules["detectron2.evaluation.fast_eval_api"] = fast


def _pycocotools_evaluator(name: str):
    if name != "COCOeval_opt":
        raise AttributeError(name)
    from pycocotools.cocoeval import COCOeval

    return COCOeval


def create_local_process_group(processes_per_machine: int) -> None:
    """Tell detectron2 which processes share this machine; every process of the run has to call it."""
    import torch.distributed as dist
    from detectron2.utils import comm

    if hasattr(comm, "create_local_process_group"):  # main branch
        comm.create_local_process_group(processes_per_machine)
        return
    for first in range(0, dist.get_world_size(), processes_per_machine):
        ranks = list(range(first, first + processes_per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def forget_local_process_group() -> None:
    """Undo :func:`create_local_process_group`, so that the same process can launch again."""
    from detectron2.utils import comm

    comm._LOCAL_PROCESS_GROUP = None


def fix_resampling() -> None:
    """Let the 0.6 loader replace an image that the mapper skips: it samples from a set, which Python 3.11 refuses."""
    from detectron2.data.common import MapDataset

    class Sampler(random.Random):
        def sample(self, population, k):
            return super().sample(sorted(population), k)

    plain = MapDataset.__init__
    if getattr(plain, "resamples_sets", False):
        return

    def __init__(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self._rng = Sampler(42)  # detectron2's own seed

    __init__.resamples_sets = True  # type: ignore[attr-defined]
    MapDataset.__init__ = __init__
