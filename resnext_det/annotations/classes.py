"""Class names are part of a model: which of its classes is which class of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import UserError, listed, nearest


def match_classes(
    model_names: Sequence[str], set_names: Sequence[str], *, model: str = "the model", source: str = "the data set"
) -> list[int]:
    """Where each class of a model stands among the classes of a set: ``match_classes("ab", "ba")`` is ``[1, 0]``.

    Equal to ``list(range(len(model_names)))`` where both name their classes in the same order. Whoever gets another
    order has to say so, and to permute classes with it.

    Args:
        model_names: of the model's classes 0, 1, ..., as its checkpoint holds them.
        set_names: of the set's classes in its own order.
        model, source: what the two are called in messages, such as the paths of their files.

    Raises:
        UserError: a name that only one of them has, or one that stands twice.
    """
    if list(model_names) == list(set_names):
        return list(range(len(set_names)))
    for names, where in ((model_names, model), (set_names, source)):
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise UserError(f"{where}: several classes are called {listed(map(_quoted, twice), 5)}; rename them")
    place = {name: i for i, name in enumerate(set_names)}
    unknown = [name for name in model_names if name not in place]
    new = [name for name in set_names if name not in set(model_names)]
    if unknown or new:
        hint = nearest(new[0], unknown) if new and unknown else ""
        raise UserError(
            f"{source}: its classes are not those of {model}: it has {listed(map(_quoted, new), 5) or 'nothing new'} "
            f"and lacks {listed(map(_quoted, unknown), 5) or 'none'}{hint}; give both the same names, or train on "
            "this set"
        )
    return [place[name] for name in model_names]


def _quoted(name: object) -> str:
    return ascii(str(name)[:80])
