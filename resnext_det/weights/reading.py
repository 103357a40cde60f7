"""Files of weights: told apart by their first bytes, opened without running code, checked before they fill memory."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import hashlib
import json
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError

METADATA = "metadata"  # the entry of a .pth, and of a .safetensors header (there as JSON)

# Where programs put the weights inside their checkpoints. An exponential moving average comes first: where there is
# one, it is the network whose accuracy was published.
WRAPPINGS = ("model_ema", "state_dict_ema", "model", "state_dict", "blobs")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DEEPEST = 5  # wrappings in each other; more have been made to go round in circles
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_NOT_WEIGHTS = {"n_averaged"}  # the counter that torch's AveragedModel keeps beside them
_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # what torch < 1.6 begins its files with

_UNSAFE = "runs code when it is opened; if you trust whoever made it, add --trust-pickle"
_FOREIGN = {
    b"<": "is a web page or XML, not weights: the download failed",
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: run `git lfs pull`",
    b"\x1f\x8b": "is a gzip archive: unpack it first",
    b"BZh": "is a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "is an xz archive: unpack it first",
    b"\x89HDF": "is an HDF5 (Keras) file: only PyTorch, Caffe2 .pkl and .safetensors weights are read",
}


Content = tuple[dict[str, Tensor], dict[str, Any], str]
"""Tensors as a file names them, its metadata, and the entry (of :data:`WRAPPINGS`) that held the tensors or ""."""


def read_file(path: str | os.PathLike, *, trust_pickle: bool = False) -> Content:
    """Read the tensors and the metadata of a ``.pth``, ``.pkl`` or ``.safetensors`` file.

    Wrappings (:data:`WRAPPINGS`) and the prefixes ``module.`` and ``_orig_mod.`` are taken off.

    Args:
        trust_pickle: also open pickles that may run code.

    Raises:
        UserError: missing, torn, foreign, unsafe or absurd file; one line that names it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        # A .safetensors file begins with the length of its header, whose bytes can look like any other file's first.
        if head[5:9] == b"\0\0\0{":
            return _read_safetensors(path, head)
        if head[:2] == b"PK":
            _check_zip(path)
            content = _torch_load(path, trust_pickle)
        elif head.startswith(_LEGACY_TORCH):
            content = _torch_load(path, trust_pickle)
        elif head[:1] == b"\x80":
            content = read_pickle(path, trust_pickle)
        else:
            raise UserError(f"{path}: {_what(head)}")
    except (MemoryError, OverflowError) as error:
        raise UserError(f"{path}: asks for more memory than there is; it is damaged or was made to do that") from error
    return _tensors(content, path)


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _what(head: bytes) -> str:
    if not head:
        return "is empty: copy or download it again"
    for start, what in _FOREIGN.items():
        if head.lstrip().startswith(start):
            return what
    return "is not a file of weights: .pth, .pkl and .safetensors are read"


def _check_zip(path: Path) -> None:
    """torch stores its records uncompressed: a file whose records are larger than itself was made to fill a memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{path}: torn: its end is missing; copy or download it again") from error
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path}: unpacks to {unpacked} bytes from {path.stat().st_size}; torch never compresses, so it is refused"
        )


def _scalar_of(module: str) -> Callable[..., Any]:
    """numpy's function ``scalar``, which would make room for a dtype of any size before it looks at the data."""

    def scalar(dtype: np.dtype, data: bytes | str = b"") -> Any:
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, dtype, 1)[0].item()

    scalar.__module__, scalar.__qualname__ = module, "scalar"  # torch finds it by its name
    return scalar


# Values without code that trainers save beside the weights: their arguments, and numbers that numpy computed.
_PLAIN_TYPES = [
    argparse.Namespace,
    codecs.encode,  # how numpy's bytes are written; newer torch allows it by itself
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    _scalar_of("numpy.core.multiarray"),
    _scalar_of("numpy._core.multiarray"),  # numpy 2
]


@contextlib.contextmanager
def _plain_types_allowed() -> Iterator[None]:
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals(_PLAIN_TYPES):
            yield
        return
    before = list(torch.serialization.get_safe_globals())  # torch 2.4
    torch.serialization.add_safe_globals(_PLAIN_TYPES)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _torch_load(path: Path, trust_pickle: bool) -> Any:
    try:
        with _plain_types_allowed():
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if code := re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([\w.]+\.\w+)", str(error)):
            raise UserError(f"{path}: uses {code[1]}: it {_UNSAFE}") from error
        raise UserError(f"{path}: torn or not a PyTorch file; copy or download it again") from error
    except (MemoryError, OverflowError):
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: needs the Python module {error.name} to be opened") from error
    except Exception as error:  # what a damaged record raises depends on which byte is wrong
        raise UserError(
            f"{path}: torn or not a PyTorch file ({type(error).__name__}); copy or download it again"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """Opens numpy arrays and plain containers, and nothing that could run code or allocate by itself."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_core = ("numpy.core.multiarray", "numpy._core.multiarray")
        if module in numpy_core and name == "_reconstruct":
            return _empty_array
        if module in numpy_core and name == "scalar":
            return _scalar_of(module)
        if (module, name) == ("numpy", "ndarray"):
            return None  # only ever handed to _reconstruct; called by itself it would allocate
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):  # how Python 2's byte strings are written by Python 3
            return _latin1
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to another file")


def _empty_array(cls: Any, shape: Any, typecode: Any) -> np.ndarray:
    """What numpy calls before it fills an array; the shape given here would be allocated, and never counts."""
    return np.ndarray((0,), np.int8)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def read_pickle(path: Path, trust_pickle: bool = False) -> Any:
    """What a pickle of numpy arrays and plain containers holds; anything that could run code is refused.

    Raises:
        UserError: missing parts, damage, or code.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            if trust_pickle:
                return pickle.load(file, encoding="latin1")
            # The C unpickler makes room for any memo number a file names, so the numbers are looked at first.
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > size:
                    raise MemoryError
            file.seek(0)
            return _PlainUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        if "." in str(error) and " " not in str(error):
            raise UserError(f"{path}: uses {error}: it {_UNSAFE}") from error
        raise UserError(f"{path}: torn: the pickle ends too early; copy or download it again") from error
    except (MemoryError, OverflowError):
        raise
    except Exception as error:  # what a damaged pickle raises depends on which byte is wrong
        raise UserError(f"{path}: torn or not a pickle ({type(error).__name__}); copy or download it again") from error


def _read_safetensors(path: Path, head: bytes) -> Content:
    (header_bytes,) = struct.unpack("<Q", head[:8])
    if 8 + header_bytes > path.stat().st_size:
        raise UserError(f"{path}: torn: its header is cut off; copy or download it again")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            written = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: torn or damaged .safetensors ({error}); copy or download it again") from error
    try:
        metadata = json.loads(written) if written else {}
    except ValueError as error:
        raise UserError(f"{path}: the metadata in its header is not JSON; convert the file again") from error
    return _named_tensors(tensors, path), _plain(metadata, path), ""


def _tensors(content: Any, path: Path) -> Content:
    """Unwrap what a file holds down to {name: tensor}, and find the metadata on the way."""
    metadata: Any = {}
    entry = ""
    for _ in range(_DEEPEST):
        if isinstance(content, nn.Module):  # possible only with --trust-pickle
            content = content.state_dict()
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: holds a {type(content).__name__}, not named tensors; save a model's state_dict()")
        metadata = content.get(METADATA, metadata)
        name = next((name for name in WRAPPINGS if isinstance(content.get(name), Mapping | nn.Module)), None)
        if name is None:
            return _named_tensors(content, path), _plain(metadata, path), entry
        content, entry = content[name], name
    raise UserError(f"{path}: {entry} within {entry}, again and again; save a model's state_dict()")


def _plain(metadata: Any, path: Path) -> dict[str, Any]:
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata is a {type(metadata).__name__}, not a mapping; convert the file again")
    return dict(metadata)


def _named_tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = _from_numpy(name, value, path)
        if not isinstance(value, Tensor) or not isinstance(name, str):
            # Counters and names that some programs keep among the weights are no weights.
            continue
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if name in _NOT_WEIGHTS:
            continue
        if name in tensors:
            raise UserError(f"{path}: {name} is there twice, with and without a prefix; keep one of them")
        tensors[name] = _checked(name, value, path)
    if not tensors:
        raise UserError(f"{path}: holds no tensors; give a file that a model's state_dict() was saved to")
    return tensors


def _from_numpy(name: Any, value: np.ndarray, path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} is an array of {value.dtype}, not of numbers") from error


def _checked(name: str, value: Tensor, path: Path) -> Tensor:
    value = value.detach()
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise UserError(f"{path}: {name} is not a plain dense tensor; save the float model's state_dict()")
    # A tensor of stride 0 can claim any shape over a few bytes; copied into a model it would fill the memory.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(f"{path}: {name} claims shape {tuple(value.shape)} over fewer numbers; the file is refused")
    if value.dtype in FLOATS and not torch.isfinite(value).all():
        raise UserError(f"{path}: {name} holds NaN or infinity; take an earlier checkpoint")
    if name.endswith(("running_var", "_riv")) and (value < 0).any():
        raise UserError(f"{path}: {name} holds a negative variance; take an earlier checkpoint")
    return value
