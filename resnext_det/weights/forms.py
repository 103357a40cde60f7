"""Weights of the block's three forms (Fig. 3) into one another: the same numbers, cut along the paths or joined.

With C paths of width d, path i of form (a) or (b) owns rows [i d, (i + 1) d) of form (c)'s first 1x1, group i of its
grouped 3x3, and, in form (a), columns [i d, (i + 1) d) of its last 1x1. Norms are cut alike; the last one is
``conv3.norm`` in (b) and (c), and ``norm``, behind the sum, in (a).
"""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import Tensor

from ..errors import UserError
from ..resnext import FORMS

_PATH_KEY = re.compile(r"(?P<block>.*\.)paths\.(?P<path>\d+)\.(?P<rest>conv[123]\..*)")
_CUT_KEY = re.compile(r"(?P<block>(?:.*\.)?res\d+\.\d+\.)(?P<rest>conv[123]\..*)")


def convert_form(state_dict: dict[str, Tensor], cardinality: int, to: str) -> dict[str, Tensor]:
    """Weights of a network in any form as those of the same network in form ``to``.

    Args:
        state_dict: of a trunk or classifier; not changed. Keys outside its blocks are passed on.
        cardinality: C, the number of paths.
        to: "a", "b" or "c".

    Raises:
        UserError: ``to`` is no form, or the channels do not divide into C paths.

    Example:
        >>> paths = create_model("resnext50_32x4d", form="a")
        >>> paths.load_state_dict(convert_form(grouped.state_dict(), 32, to="a"))
    """
    if to not in FORMS:
        raise UserError(f"form {to!r}: choose from {', '.join(FORMS)} (paper Fig. 3)")
    grouped = _join(state_dict)
    return grouped if to == "c" else _cut(grouped, cardinality, sum_paths=to == "a")


def _join(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Any form -> form (c)."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    blocks = {match["block"] for key in state if (match := _PATH_KEY.fullmatch(key))}
    for key, value in state.items():
        match = _PATH_KEY.fullmatch(key)
        block, _, last = key.rpartition("norm.")
        if match:
            parts[match["block"] + match["rest"]][int(match["path"])] = value
        elif block in blocks:  # form (a)'s norm behind the sum
            joined[f"{block}conv3.norm.{last}"] = value
        else:
            joined[key] = value
    for key, paths in parts.items():
        values = [paths[i] for i in range(len(paths))]
        if values[0].dim() == 0:  # num_batches_tracked, the same in every path
            joined[key] = values[0]
        else:
            joined[key] = torch.cat(values, dim=1 if key.endswith("conv3.weight") else 0)
    return joined


def _cut(state: dict[str, Tensor], cardinality: int, *, sum_paths: bool) -> dict[str, Tensor]:
    """Form (c) -> form (a) with ``sum_paths``, else form (b)."""
    cut: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _CUT_KEY.fullmatch(key)
        last = match is not None and match["rest"].startswith("conv3.")
        if match is None or (last and not sum_paths):
            cut[key] = value
        elif match["rest"].startswith("conv3.norm."):
            cut[match["block"] + match["rest"].removeprefix("conv3.")] = value
        else:
            axis = 1 if last else 0
            if value.dim() and value.shape[axis] % cardinality:
                raise UserError(f"{key}: {value.shape[axis]} channels do not divide into {cardinality} paths")
            pieces = value.chunk(cardinality, axis) if value.dim() else [value] * cardinality
            for path, piece in enumerate(pieces):
                cut[f"{match['block']}paths.{path}.{match['rest']}"] = piece.clone()
    return cut
