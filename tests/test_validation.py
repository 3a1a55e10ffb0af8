"""What settings are checked with, and what is said about names that are near, unknown or different."""

import dataclasses
import math
import pathlib
from typing import ClassVar

import pytest

from ddpm_jax import validation
from ddpm_jax.validation import Rule, check_settings, differences, freeze, known_items, nearest, thaw


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (validation.FLAG, [True, False], [1, 0, None, "true"]),
        (validation.POSITIVE, [1, 1e-300, 2.5], [0, -1, math.inf, math.nan, True, "1"]),
        (validation.integer(), [1, 7], [0, -1, 1.0, True, None]),
        (validation.integer(0), [0, 1], [-1, 0.0, False]),
        (validation.number(0, 1), [0, 0.5, 0.999], [1, -0.1, math.nan, True]),
        (validation.number(2), [2, 1e300], [1.9, math.inf, "2"]),
        (validation.choice("a", 1), ["a", 1], ["b", 2, None]),
        (validation.optional(validation.integer()), [None, 1], [0, "None"]),
        (validation.several(validation.integer()), [(), (1, 2)], [[1], (0,), 1, (1, "a")]),
        (validation.several(validation.integer(), least=1), [(1,)], [()]),
    ],
)
def test_rules(rule, good, bad):
    assert all(rule.holds(value) for value in good)
    assert not any(rule.holds(value) for value in bad)


@pytest.mark.parametrize(
    "rule, words",
    [
        (validation.number(0, 1), "a number from 0 to below 1"),
        (validation.number(2), "a number from 2 up"),
        (validation.integer(0), "an integer from 0 up"),
        (validation.optional(validation.integer()), "an integer from 1 up or None"),
        (validation.several(validation.integer()), "a tuple, each an integer from 1 up"),
        (
            validation.several(validation.integer(), least=2),
            "a tuple, of at least 2, of which each is an integer from 1 up",
        ),
    ],
)
def test_the_words_of_rules(rule, words):
    assert rule.words == words


@dataclasses.dataclass(frozen=True)
class Settings:
    mode: str = "plain"
    depth: int = 1

    VALUES: ClassVar = {"mode": validation.choice("plain", "deep"), "depth": validation.integer()}
    ACTS: ClassVar = {"depth": validation.where("mode", "deep")}


def test_settings_are_in_range_and_act():
    for good in (Settings(), Settings("deep", 3), Settings("plain", 1)):
        check_settings(good)
    with pytest.raises(ValueError, match=r"`mode` must be one of \['plain', 'deep'\], not 'wide'"):
        check_settings(Settings("wide"))
    with pytest.raises(ValueError, match="`depth` belongs to `mode` deep; here 3 would do nothing: leave it out"):
        check_settings(Settings(depth=3))


def test_a_rule_across_groups():
    """What decides may lie outside the settings themselves."""
    rules = {"depth": Rule("a whole that is large", lambda whole: whole > 10)}
    validation.check_acts(Settings(depth=3), rules, 11)
    with pytest.raises(ValueError, match="`depth` belongs to a whole that is large"):
        validation.check_acts(Settings(depth=3), rules, 10)


def test_differences_are_named_in_order():
    there = {"b": 1, "a": [1, [2]], "path": "x/y", "gone": 3, "same": None}
    here = {"b": 2, "a": (1, (2,)), "path": pathlib.Path("x/y"), "new": "z"}
    assert differences(there, here) == ["b 1 there, 2 here", "gone 3 there, None here", "new None there, 'z' here"]
    assert differences({"n": 1}, {"n": 2}, place="of the data") == ["n 1 there, 2 of the data"]
    assert differences({"path": "x"}, {"path": pathlib.Path("z")}) == ["path 'x' there, 'z' here"]
    assert differences(there, there) == []


def test_nearest_names():
    assert nearest("drpout", ["dropout", "act_fn"]) == " Did you mean `dropout`?"
    assert nearest("drpout", ["dropout"], cutoff=0.99) == ""
    assert nearest("xyz", ["dropout"]) == ""


def test_what_asks_for_something_is_compared_with_absent_fields_less_strictly():
    """`num_channels` is like `in_channels` by 0.87: a misspelling only of a field that is not given."""
    known = ["in_channels"]
    with pytest.raises(ValueError, match="no field `in_chanels`. Did you mean `in_channels`"):
        known_items({"in_chanels": 0}, known, "A network")  # like it by more than 0.9: whatever it asks for
    with pytest.raises(ValueError, match="no field `num_channels`. Did you mean `in_channels`"):
        known_items({"num_channels": 3}, known, "A network")
    assert known_items({"num_channels": 0}, known, "A network") == {}
    with pytest.warns(UserWarning, match="A network has no field `num_channels`: ignored, as in diffusers"):
        assert known_items({"num_channels": 3, "in_channels": 3}, known, "A network") == {"in_channels": 3}


def test_some_of_many():
    assert validation.some(["a", "b", "c"], 3) == "a, b, c"
    assert validation.some(["a", "b", "c"], 1) == "a and 2 more"
    assert validation.some([], 3) == ""


def test_freezing_is_undone_for_json():
    items = [1, [2, "x"], {"b": [1], "a": None}]
    assert freeze(items) == (1, (2, "x"), (("a", None), ("b", (1,)))) and hash(freeze(items))
    assert thaw(freeze([1, [2, "x"]])) == [1, [2, "x"]]


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_integers_of_arguments(value):
    with pytest.raises(TypeError, match="`count` must be an integer"):
        validation.as_integer("count", value)


def test_positive_integers_of_arguments():
    import numpy as np

    assert validation.as_positive("count", np.int64(3)) == 3 and type(validation.as_integer("x", np.int8(2))) is int
    with pytest.raises(ValueError, match="`count` must be at least 1, not 0"):
        validation.as_positive("count", 0)
