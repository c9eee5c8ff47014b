"""Dataclasses as JSON and back: whole, and strict about every key and type."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from lorakit.config import load_config
from lorakit.errors import OutputError
from lorakit.experiments import Outcome, Trial
from lorakit.experiments.kinds import TrialKind, typed
from lorakit.experiments.rates import Round
from lorakit.experiments.records import RecordError, from_json, to_json
from lorakit.experiments.stamps import Sources, stamp_of
from lorakit.lora import LoraSpec


@dataclass(frozen=True)
class Inner:
    """A record within another."""

    name: str
    value: float | None


@dataclass(frozen=True)
class Outer:
    """A record of every kind of field."""

    inner: Inner
    several: tuple[Inner, ...]
    pair: tuple[int, str]
    by_rank: Mapping[int, float]
    flag: bool = False


VALUE = Outer(Inner("a", 0.5), (Inner("b", None), Inner("c", 2.0)), (3, "d"), {8: 1.0}, flag=True)


def test_there_and_back_through_text():
    plain = json.loads(json.dumps(to_json(VALUE)))
    assert from_json(Outer, plain) == VALUE
    lora = LoraSpec(rank=4, targets=("q_proj", "v_proj"), rank_pattern={"q_proj": 2})
    assert from_json(LoraSpec, json.loads(json.dumps(to_json(lora)))) == lora
    for given in ("a text", (5, 9)):  # of several types the one that takes it
        activated = LoraSpec(alora=given)
        assert from_json(LoraSpec, json.loads(json.dumps(to_json(activated)))) == activated
    with pytest.raises(RecordError, match="alora"):
        from_json(LoraSpec, {**to_json(lora), "alora": 0.5})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flga": True}, "unknown key 'flga'; did you mean 'flag'"),
        ({"inner": {"name": "a"}}, "inner: the key 'value' is missing"),
        ({"inner": {"name": 5, "value": 0.5}}, "inner.name: str is expected"),
        ({"several": [{"name": "b", "value": "much"}]}, r"several\[0\].value: float is expected"),
        ({"pair": [3]}, "pair: a list of 2 is expected"),
        ({"pair": [True, "d"]}, r"pair\[0\]: int is expected"),
        ({"inner": []}, "inner: an object is expected"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    with pytest.raises(RecordError, match=words):
        from_json(Outer, {**to_json(VALUE), **change}, "trial")
    with pytest.raises(RecordError, match="the key 'inner' is missing"):
        from_json(Outer, {}, "trial")


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"x": object()})


@typed(Round)
def double(request, sources, folder, report):
    """A worker of dataclasses."""
    return Round(2 * request.rates, request.steps)


def test_a_worker_takes_and_gives_plain_json(tmp_path):
    sources = to_json(Sources("base", ("rows.jsonl",), ()))
    assert double({"rates": 2, "steps": 5}, sources, tmp_path, print) == {"rates": 4, "steps": 5}
    with pytest.raises(OutputError, match="unknown key 'rate'; did you mean 'rates'"):
        double({"rate": 2, "steps": 5}, sources, tmp_path, print)


def test_the_result_of_another_version_is_refused_with_what_to_do(tmp_path):
    kind = TrialKind("package.module:function", Round, Round)
    trial = kind.trial(Round(1, 2), Sources("base", (), ()), "a trial")
    assert trial == Trial(
        "package.module:function", {"rates": 1, "steps": 2}, to_json(Sources("base", (), ())), "a trial"
    )  # fmt: skip
    outcome = Outcome(trial, {"rates": 1, "steps": 2}, tmp_path, True)
    assert kind.result_of(outcome) == Round(1, 2)
    with pytest.raises(OutputError, match=r"steps' is missing.*Another version.*--out"):
        kind.result_of(replace(outcome, result={"rates": 1}))


def test_a_stamp_names_the_files_and_leaves_out_what_a_protocol_decides(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    config = load_config(None, {"model": "a/hub-id", "data": (str(rows),), "seed": 3})
    stamp = stamp_of(config, Sources.of(config), without=("rank",))
    assert [(each.path, each.bytes) for each in stamp.files] == [("a/hub-id", 0), (str(rows), 3)]
    assert stamp.config["seed"] == 3
    for name in ("model", "data", "rank", "out", "samples", "keep"):
        assert name not in stamp.config
    known = stamp.of_contents("1" * 64, "2" * 64)
    assert (known.files, known.data_sha256, known.base_sha256) == ((), "1" * 64, "2" * 64)
    assert from_json(type(known), json.loads(json.dumps(to_json(known)))) == known
