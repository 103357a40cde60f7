"""Classes are matched by name: the same, in another order, or refused."""

from __future__ import annotations

import pytest

from resnext_det import UserError
from resnext_det.annotations.classes import match_classes


def test_the_same_and_another_order():
    assert match_classes(["a", "b", "c"], ("a", "b", "c")) == [0, 1, 2]
    model, data = ["red", "green", "blue"], ["blue", "red", "green"]
    order = match_classes(model, data)
    assert [data[i] for i in order] == model


@pytest.mark.parametrize(
    "model, data, message",
    [
        (["cat", "dog"], ["cat", "dogs"], "has 'dogs' and lacks 'dog'; did you mean dog"),
        (["cat"], ["cat", "dog"], "has 'dog' and lacks none"),
        (["cat", "dog"], ["cat"], "has nothing new and lacks 'dog'"),
        (["cat", "cat"], ["cat", "dog"], "model.pth: several classes are called 'cat'"),
        (["cat", "dog"], ["dog", "dog"], "val.json: several classes are called 'dog'"),
        (["cat"], ["\x1b[31mcat"], r"'\\x1b\[31mcat'"),
    ],
)
def test_what_only_one_has_is_refused_by_name(model, data, message):
    with pytest.raises(UserError, match=message) as error:
        match_classes(model, data, model="model.pth", source="val.json")
    assert "\n" not in str(error.value) and str(error.value).isprintable()
