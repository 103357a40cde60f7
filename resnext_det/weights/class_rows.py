"""The rows of a network's last layers belong to classes: they are moved by the classes' names, not by their places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import listed

# (layer, numbers of one class, rows behind the classes: background)
_LAYERS = (
    (r"roi_heads\.box_predictor\.(\d+\.)?cls_score", 1, 1),
    (r"roi_heads\.box_predictor\.(\d+\.)?bbox_pred", 4, 0),
    (r"roi_heads\.mask_head\.predictor", 1, 0),
    (r"head\.cls_score", 1, 0),  # RetinaNet: as often as there are anchors
    (r"fc", 1, 0),
)


@dataclass(frozen=True)
class MatchedRows:
    """What :func:`rows_by_name` found.

    Attributes:
        tensors: those of the file, the class layers with the model's classes in the model's order.
        kept, new, dropped: names of the classes in both, in the model alone, in the file alone.
        moved: a class stands at another place than in the file.
    """

    tensors: dict[str, Tensor]
    kept: list[str]
    new: list[str]
    dropped: list[str]
    moved: bool

    def __str__(self) -> str:
        """Such as ``classes by name: kept a, b; new c; left out d``."""
        parts = [("kept", self.kept), ("new", self.new), ("left out", self.dropped)]
        return "classes by name: " + "; ".join(f"{word} {listed(names)}" for word, names in parts if names)


def rows_by_name(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: Sequence[str], given_names: Sequence[str]
) -> MatchedRows | None:
    """Give every class of the model the rows that the class of the same name has in the file.

    A class that the file does not know keeps the model's initial rows; background keeps the file's. A layer that serves
    all classes alike is left as it is.

    Args:
        own: the model's tensors.
        given: the file's, by the same names.
        names, given_names: of the classes, in the order of either's rows.

    Returns:
        None where no layer has rows of ``given_names``, or where the names are not those of ``own``.
    """
    place = {name: i for i, name in enumerate(given_names)}
    pairs = [(i, place[name]) for i, name in enumerate(names) if name in place]
    tensors, found = dict(given), False
    for name in given.keys() & own.keys():
        views = _rows(name, own[name], len(names)), _rows(name, given[name], len(given_names))
        if views[0] is None or views[1] is None or views[0].shape[2:] != views[1].shape[2:]:
            continue
        mine, theirs = views[0].clone(), views[1].to(own[name])
        if len(mine) != len(theirs):
            continue
        found = True
        behind = mine.shape[1] - len(names)
        for i, j in [*pairs, *((len(names) + n, len(given_names) + n) for n in range(behind))]:
            mine[:, i] = theirs[:, j]
        tensors[name] = mine.reshape(own[name].shape)
    if not found:
        return None
    dropped = [name for name in given_names if name not in set(names)]
    new = [name for name in names if name not in place]
    return MatchedRows(tensors, [names[i] for i, _ in pairs], new, dropped, any(i != j for i, j in pairs))


def _rows(name: str, tensor: Tensor, classes: int) -> Tensor | None:
    """(repetitions, classes and background, numbers of one class, ...) of a class layer; None for another one."""
    for layer, numbers, behind in _LAYERS:
        if re.fullmatch(rf"{layer}\.(weight|bias)", name):
            rows = classes + behind
            repeats, rest = divmod(len(tensor), rows * numbers)
            if rest or not repeats or (repeats > 1 and not name.startswith("head.")):
                return None
            return tensor.reshape(repeats, rows, numbers, *tensor.shape[1:])
    return None
