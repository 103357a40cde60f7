"""Files of weights: recognized by their first bytes, opened without running code, checked before they fill memory."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError
from ..files import open_regular, shown
from . import pickles
from .pickles import Refused, StoredTensor
from .trunks import holds_trunk

METADATA = "metadata"  # the entry of a .pth, and of a .safetensors header (there as JSON)

# Where programs put the weights inside their checkpoints. An exponential moving average comes first: if there is one,
# the published accuracy is its own.
WRAPPINGS = ("model_ema", "state_dict_ema", "model", "state_dict", "blobs")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DEEPEST = 5  # wrappings in each other; more have been made to go round in circles
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_NOT_WEIGHTS = {"n_averaged"}  # the counter that torch's AveragedModel keeps beside them
_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # what torch < 1.6 begins its files with

_UNSAFE = "runs code when it is opened"
_TRUST = "; if you trust whoever made it, add --trust-pickle"
_FOREIGN = {
    b"<": "is a web page or XML, not weights: the download failed",
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: run `git lfs pull`",
    b"\x1f\x8b": "is a gzip archive: unpack it first",
    b"BZh": "is a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "is an xz archive: unpack it first",
    b"\x89HDF": "is an HDF5 (Keras) file: only PyTorch, Caffe2 .pkl and .safetensors weights are read",
}


Load = Callable[[StoredTensor], Tensor | Refused]
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
    name = shown(path)
    with open_regular(path) as file, _one_line(name, "a file of weights", _TRUST):
        head = file.read(64)
        size = file.seek(0, os.SEEK_END)
        # A .safetensors file begins with the length of its header, whose bytes can look like any other file's first.
        if head[5:9] == b"\0\0\0{":
            return _read_safetensors(Path(path), head, size)
        if not head.startswith((b"PK", b"\x80")):
            raise UserError(f"{name}: {_what(head)}")
        if trust_pickle:
            return _tensors(_trusted(path, file, bare=_is_bare(head)), name, _no_load)
        content, load = (_bare(file, size), _no_load) if _is_bare(head) else _open_torch(file, name)
        return _tensors(content, name, load)


def _is_bare(head: bytes) -> bool:
    """Whether it is a pickle alone, not a file of ``torch.save``."""
    return head[:1] == b"\x80" and not head.startswith(_LEGACY_TORCH)


def _no_load(tensor: StoredTensor) -> Refused:
    return Refused("is a reference to another file; save a model's state_dict()")


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


def _check_zip(file: IO[bytes], name: str, size: int) -> None:
    """torch stores its records uncompressed: a file whose records are larger than itself was made to fill a memory."""
    try:
        records = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{name}: torn: its end is missing; copy or download it again") from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise UserError(
            f"{name}: is a TorchScript archive, which holds a program; open it with torch.jit.load and save its "
            "state_dict()"
        )
    unpacked = sum(record.file_size for record in records)
    if unpacked > size or any(record.compress_type for record in records):
        raise UserError(f"{name}: unpacks to {unpacked} bytes from {size}; torch never compresses, so it is refused")


def read_pickle(path: str | os.PathLike, trust_pickle: bool = False) -> Any:
    """What a pickle of numpy arrays and plain containers holds; anything that could run code is refused.

    Raises:
        UserError: missing parts, damage, or code.
    """
    with open_regular(path) as file:
        if trust_pickle:
            return _trusted(path, file, bare=True)
        return unpickle(file, shown(path), file.seek(0, os.SEEK_END))


def unpickle(file: IO[bytes], name: str, size: int, *, encoding: str = "latin1") -> Any:
    """As :func:`read_pickle`, of an open file called ``name`` with ``size`` bytes."""
    with _one_line(name, "a pickle"):
        return _bare(file, size, encoding)


def _bare(file: IO[bytes], size: int, encoding: str = "latin1") -> Any:
    file.seek(0)
    return pickles.read(file, size, encoding=encoding)


def read_torch(path: str | os.PathLike, *, tensors: bool = True) -> Any:
    """All that ``torch.save`` wrote to a file, on the CPU: plain values and tensors. Nothing in it is run.

    Args:
        tensors: read them; without, a :class:`.pickles.StoredTensor` stands for each.

    Raises:
        UserError: missing, torn, foreign or absurd file, or code.
    """
    with open_regular(path) as file, _one_line(shown(path), "a PyTorch file"):
        content, load = _open_torch(file, shown(path))
        return pickles.loaded(content, load) if tensors else content


def _open_torch(file: IO[bytes], name: str) -> tuple[Any, Callable[[StoredTensor], Tensor | Refused]]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) == b"PK":
        _check_zip(file, name, size)
        return pickles.read_torch_zip(file)
    file.seek(0)
    return pickles.read_torch_legacy(file, size)


@contextmanager
def _one_line(name: str, kind: str, advice: str = "") -> Iterator[None]:
    try:
        yield
    except pickles.CodeInPickle as error:
        raise UserError(f"{name}: uses {shown(error)}: it {_UNSAFE}{advice}") from None
    except (pickles.TooMuch, MemoryError, OverflowError) as error:
        reason = f" ({error})" if str(error) else ""
        raise UserError(f"{name}: asks for more than a real file does{reason}; it is damaged or was made so") from None
    except UserError:
        raise
    except (pickles.Torn, zipfile.BadZipFile, LookupError, RuntimeError, EOFError, ValueError, struct.error) as error:
        reason = shown(error) if isinstance(error, pickles.Torn) else type(error).__name__
        raise UserError(f"{name}: torn or not {kind} ({reason}); copy or download it again") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from None


def _trusted(path: str | os.PathLike, file: IO[bytes], *, bare: bool) -> Any:
    """A file whose maker the user trusts. It may run anything and fail with anything."""
    file.seek(0)
    try:
        if bare:
            return pickle.load(file, encoding="latin1")
        return torch.load(file, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise UserError(f"{shown(path)}: needs the Python module {error.name} to be opened") from error
    except MemoryError as error:
        raise UserError(f"{shown(path)}: asks for more memory than there is") from error
    except Exception as error:
        raise UserError(
            f"{shown(path)}: torn or not a pickle ({type(error).__name__}); copy or download it again"
        ) from error


def _read_safetensors(path: Path, head: bytes, size: int) -> Content:
    (header_bytes,) = struct.unpack("<Q", head[:8])
    if 8 + header_bytes > size:
        raise UserError(f"{path}: torn: its header is cut off; copy or download it again")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            written = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: torn or damaged .safetensors ({error}); copy or download it again") from error
    try:
        metadata = json.loads(written) if written else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the metadata in its header is not JSON; convert the file again") from error
    return _named_tensors(tensors, str(path), _no_load), _plain(metadata, str(path)), ""


def _tensors(content: Any, path: str, load: Load) -> Content:
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
            if not holds_trunk(content):
                content = _nested(content) or content
            return _named_tensors(content, path, load), _plain(metadata, path), entry
        content, entry = content[name], name
    raise UserError(f"{path}: {entry} within {entry}, again and again; save a model's state_dict()")


def _nested(content: Mapping[str, Any], depth: int = _DEEPEST) -> dict[str, Any]:
    """Every mapping within ``content`` that holds a trunk. Its names begin with its place."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        value = value.state_dict() if isinstance(value, nn.Module) else value
        if isinstance(value, Mapping) and isinstance(key, str):
            inner = value if holds_trunk(value) else _nested(value, depth - 1) if depth else {}
            found |= {f"{key}.{name}": item for name, item in inner.items() if isinstance(name, str)}
    return found


def _plain(metadata: Any, path: str) -> dict[str, Any]:
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata is a {type(metadata).__name__}, not a mapping; convert the file again")
    return dict(metadata)


def _named_tensors(content: Mapping[str, Any], path: str, load: Load) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, StoredTensor):
            value = load(value)
        if isinstance(value, Refused) and isinstance(name, str):
            raise UserError(f"{path}: {shown(name)} {value.reason}")
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


def _from_numpy(name: Any, value: np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} is an array of {value.dtype}, not of numbers") from error


def _checked(name: str, value: Tensor, path: str) -> Tensor:
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
