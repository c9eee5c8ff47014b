import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.evaluation.structured import (
    field_accuracy,
    json_match,
    json_validity,
    leaves,
    parse_object,
)

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=3), values, max_size=4)

REFERENCE = '{"kind": "refund", "order": 17, "items": ["lamp", "desk"]}'  # four leaves


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        (REFERENCE, 1.0),
        (' {"items": ["lamp", "desk"], "order": 17.0, "kind": "refund"}\n', 1.0),
        ('{"kind": "refund", "order": 17, "items": ["lamp", "sofa"]}', 3 / 4),  # one wrong
        ('{"kind": "refund", "order": 17, "items": ["lamp"]}', 3 / 4),  # one missing
        ('{"kind": "refund", "order": 17, "items": ["lamp", "desk"], "x": 1}', 4 / 5),  # invented
        ('{"kind": "refund", "order": "17", "items": []}', 1 / 5),  # items itself is the fifth
        ("{}", 0.0),
        ('["refund"]', 0.0),
        ('{"kind": "refund"', 0.0),
        ("Sure! " + REFERENCE, 0.0),
    ],
)
def test_field_accuracy_by_hand(prediction: str, wanted: float) -> None:
    assert field_accuracy(prediction, [REFERENCE]) == pytest.approx(wanted)


def test_types_are_json_types() -> None:
    assert field_accuracy('{"a": true}', ['{"a": 1}']) == 0.0
    assert field_accuracy('{"a": null}', ['{"a": false}']) == 0.0
    assert field_accuracy('{"a": {"0": 1}}', ['{"a": [1]}']) == 0.0
    assert field_accuracy("{}", ["{}"]) == 1.0


def test_best_reference_counts() -> None:
    assert json_match('{"a": 2}', ['{"a": 1}', '{"a": 2}']) == 1.0
    assert json_match('{"a": 2, "b": 0}', ['{"a": 1}', '{"a": 2}']) == 0.0


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("{}", True),
        ('{"a": NaN}', False),
        ('{"a": -Infinity}', False),
        ("[]", False),
        ("3", False),
        ("", False),
        ("{'a': 1}", False),
        ('{"a": ' * 50_000, False),
        ('{"a": ' + "9" * 6_000 + "}", False),  # longer than Python reads; no model means it
    ],
)
def test_validity(text: str, valid: bool) -> None:
    assert json_validity(text, ["{}"]) == float(valid)


def test_deep_nesting_is_no_error() -> None:
    text = '{"a": ' * 400 + "1" + "}" * 400
    assert parse_object(text) is not None
    assert field_accuracy(text, [text]) == 1.0


@given(objects)
def test_leaves_rebuild_the_object(value: dict[str, object]) -> None:
    """Independent way back: put each leaf at its path again."""
    rebuilt: dict[str | int, object] = {}
    for path, leaf in leaves(value).items():
        where = rebuilt
        for key in path[:-1]:
            where = where.setdefault(key, {})  # type: ignore[assignment]
        if path:
            where[path[-1]] = leaf

    def dicts(part: object) -> object:  # lists as dicts of their indices, like `rebuilt`
        if isinstance(part, dict) and part:
            return {k: dicts(v) for k, v in part.items()}
        if isinstance(part, list) and part:
            return {i: dicts(v) for i, v in enumerate(part)}
        return part

    assert rebuilt == dicts(value)


@given(objects, objects)
def test_field_accuracy_is_symmetric_and_bounded(a: object, b: object) -> None:
    left, right = json.dumps(a), json.dumps(b)
    assert field_accuracy(left, [right]) == field_accuracy(right, [left])
    assert 0.0 <= field_accuracy(left, [right]) <= 1.0
    assert field_accuracy(left, [left]) == 1.0
