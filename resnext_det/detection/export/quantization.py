"""How much of a detector runs in 8 bits: all of it, or without the parts that cost more accuracy than allowed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...artifacts.building import PARTS
from ...errors import UserError

logger = logging.getLogger(__name__)

Build = Callable[[Sequence[str]], Any]
"""Parts to keep in float -> a model."""


def accuracy_of(results: Mapping[str, Any]) -> float:
    """AP of boxes, the mean over the sets where there are several.

    Raises:
        UserError: there is none.
    """
    by_set = [results] if "bbox" in results else list(results.values())
    values = [found.get("bbox", {}).get("AP") for found in by_set]
    if not values or any(value is None or value != value for value in values):
        raise UserError("--max-drop: DATASETS.TEST gives no AP of boxes; name a set with annotations")
    return sum(values) / len(values)


def within(
    build: Build, accuracy: Callable[[Any], Mapping[str, Any]], exact: float, most: float
) -> tuple[Any, list[str], Mapping[str, Any]]:
    """The model with the fewest parts in float whose AP is at most ``most`` below ``exact``.

    Each round keeps the one part more in float that brings back the most.

    Args:
        build: gives the model, in 8 bits but for the parts that it is told.
        accuracy: measures a model.

    Returns:
        The model, its parts in float, and its accuracy; all parts are in float where nothing else is within.
    """
    kept: list[str] = []
    model = build(kept)
    results = accuracy(model)
    while exact - accuracy_of(results) > most and len(kept) < len(PARTS):
        logger.warning(
            "int8%s: AP %.2f, %.2f below float; allowed are %.2f: looking for the part that costs it",
            f" but for {', '.join(kept)}" if kept else "", accuracy_of(results), exact - accuracy_of(results), most,
        )  # fmt: skip
        tried = {}
        for part in (part for part in PARTS if part not in kept):
            candidate = build([*kept, part])
            tried[part] = candidate, accuracy(candidate)
            logger.info("%s in float: AP %.2f", ", ".join([*kept, part]), accuracy_of(tried[part][1]))
        best = max(tried, key=lambda part: accuracy_of(tried[part][1]))
        kept.append(best)
        model, results = tried[best]
    if kept:
        logger.warning("kept in float: %s", ", ".join(kept))
    return model, kept, results
