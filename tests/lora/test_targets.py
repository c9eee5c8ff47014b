"""The grammar of targets, and what a plan says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorakit.errors import ConfigError, TargetError
from lorakit.lora import LoraSpec, plan
from lorakit.lora.targets import block_of, first_hit, layer_range, matches

BLOCK = ("q_proj", "up_proj", "down_proj")
BLOCKS = {f"layers.{n}.{name}" for n in (0, 1) for name in BLOCK}


def paths(model, **spec):
    return {target.path for target in plan(model, LoraSpec(**{"rank": 2} | spec)).targets}


class TestWhatIsAdapted:
    def test_all_linear_is_the_blocks_without_the_head(self, stack):
        assert paths(stack) == BLOCKS

    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            (("q_proj",), {"layers.0.q_proj", "layers.1.q_proj"}),
            (("layers.1.q_proj",), {"layers.1.q_proj"}),
            (("1.q_proj", "head"), {"layers.1.q_proj", "head"}),
            (("*.0.*",), {f"layers.0.{name}" for name in BLOCK}),
            (("layers.?.*_proj",), BLOCKS),
            (("layers.[1]*",), {f"layers.1.{name}" for name in BLOCK}),
            ((r"re:.*\.(up|down)_proj",), {p for p in BLOCKS if not p.endswith("q_proj")}),
            (("embed",), {"embed"}),
            (("all-linear", "embed", "head"), BLOCKS | {"embed", "head"}),
        ],
    )
    def test_patterns(self, stack, targets, expected):
        assert paths(stack, targets=targets) == expected

    def test_exclude(self, stack):
        assert paths(stack, exclude=("q_proj",)) == {p for p in BLOCKS if "q_proj" not in p}
        assert paths(stack, exclude=("re:.*0.*", "up_proj")) == {
            "layers.1.q_proj",
            "layers.1.down_proj",
        }

    def test_layers(self, stack):
        assert paths(stack, layers="1") == {f"layers.1.{name}" for name in BLOCK}
        assert paths(stack, layers="0-1") == BLOCKS
        assert paths(stack, layers="1", targets=("q_proj", "head")) == {"layers.1.q_proj"}

    def test_a_plain_stack_is_one_block_less_its_last_layer(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
        assert paths(model) == {"0", "2"}
        assert paths(nn.Sequential(nn.Linear(4, 4))) == {"0"}

    def test_in_the_order_of_the_model(self, stack):
        made = plan(stack, LoraSpec(rank=2, targets=("head", "embed", "all-linear")))
        order = [path for path, _ in stack.named_modules() if path in BLOCKS | {"embed", "head"}]
        assert [target.path for target in made.targets] == order

    def test_what_is_left_out_is_listed_with_the_reason(self, stack):
        made = plan(stack, LoraSpec(rank=2, exclude=("up_proj",), layers="0"))
        why = {skipped.path: skipped.reason for skipped in made.skipped}
        assert why["head"] == "outside the blocks (output head)"
        assert why["embed"] == "no target names it"
        assert why["layers.0.up_proj"] == "excluded by 'up_proj'"
        assert why["layers.1.q_proj"] == "outside layers 0"

    def test_bare_matrices_are_listed(self, stack):
        stack.layers[0].register_parameter("experts", nn.Parameter(torch.zeros(2, 3, 4)))
        why = {s.path: s.reason for s in plan(stack, LoraSpec(rank=2)).skipped}
        assert why["layers.0"] == "keeps a bare 3-D parameter 'experts'"

    def test_planning_changes_nothing(self, stack):
        before = {name: id(module) for name, module in stack.named_modules()}
        plan(stack, LoraSpec(rank=2))
        assert {name: id(module) for name, module in stack.named_modules()} == before
        assert all(p.requires_grad for p in stack.parameters())


class TestPatternsOfRankAndAlpha:
    def test_first_hit(self, stack):
        spec = LoraSpec(
            rank=4,
            alpha=8.0,
            rank_pattern={"layers.0.q_proj": 1, "q_proj": 2, "up_.*": 3},
            alpha_pattern={r"^layers\.1\..*": 16.0, "down_proj": 1.0},
        )
        got = {t.path: (t.rank, t.alpha, t.scale) for t in plan(stack, spec).targets}
        assert got == {
            "layers.0.q_proj": (1, 8.0, 8.0),
            "layers.0.up_proj": (3, 8.0, 8 / 3),
            "layers.0.down_proj": (4, 1.0, 0.25),
            "layers.1.q_proj": (2, 16.0, 8.0),
            "layers.1.up_proj": (3, 16.0, 16 / 3),
            "layers.1.down_proj": (4, 16.0, 4.0),
        }

    def test_the_order_of_keys_decides(self):
        assert first_hit({"q": 1, "a.q": 2}, "a.q", 0) == 1
        assert first_hit({"a.q": 2, "q": 1}, "a.q", 0) == 2
        assert first_hit({"b": 3}, "a.q", 0) == 0

    def test_a_key_means_whole_components(self):
        assert first_hit({"proj": 1}, "a.q_proj", 0) == 0
        assert first_hit({"q_proj": 1}, "a.q_proj.inner", 0) == 0

    def test_rslora_divides_by_the_root(self, stack):
        spec = LoraSpec(rank=4, alpha=8.0, rslora=True, rank_pattern={"up_proj": 2})
        got = {t.path: t.scale for t in plan(stack, spec).targets}
        assert got["layers.0.q_proj"] == 4.0
        assert got["layers.0.up_proj"] == pytest.approx(8 / 2**0.5)


class TestMessages:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"targets": ("q_prj",)}, "targets 'q_prj' matches no module; did you mean 'q_proj'"),
            ({"targets": ("*.9.*",)}, "targets '*.9.*' matches no module; known: 'down_proj'"),
            ({"exclude": ("gate",)}, "exclude 'gate' matches no module; known: "),
            (
                {"targets": ("norm",)},
                "targets 'norm' matches only LayerNorm (such as norm), which cannot be adapted; "
                "name linear layers, embeddings or convolutions inside it",
            ),
            (
                {"targets": ("q_proj",), "exclude": ("q_proj",)},
                "nothing is left to adapt with targets ['q_proj']: excluded by 'q_proj'",
            ),
            ({"layers": "7"}, "layers '7' names no block of this model; it has 0 to 1"),
            ({"layers": "0-3"}, "names block 2, which is no block of this model; it has 0 to 1"),
            (
                {"rank": 9},
                "rank 9 is above 8, the smaller side of layers.0.q_proj (8 x 8): lower rank, or "
                "set rank_pattern: {q_proj: 8}",
            ),
        ],
    )
    def test_target_errors(self, stack, spec, message):
        with pytest.raises(TargetError) as caught:
            paths(stack, **spec)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({"targets": ("re:(",)}, "'(' is not a regular expression: "),
            ({"layers": "3-1"}, "layers is '3-1'; write block numbers and ranges, such as 0-5,8"),
            ({"layers": "a"}, "layers is 'a'; write block numbers"),
            (
                {"rank_pattern": {"v_proj": 4}},
                "rank_pattern 'v_proj' means none of the targets; did you mean 'q_proj'",
            ),
            ({"alpha_pattern": {"head": 4.0}}, "alpha_pattern 'head' means none of the targets"),
            ({"rank": 0}, "rank must be a whole number of at least 1; it is 0"),
            ({"rank": True}, "rank must be a whole number of at least 1; it is True"),
            ({"rank": 2.0}, "rank must be a whole number of at least 1; it is 2.0"),
            ({"rank_pattern": {"q": -1}}, "rank_pattern['q'] must be a whole number"),
            ({"alpha": 0.0}, "alpha must be above 0 and finite; alpha is 0.0"),
            ({"alpha": float("nan")}, "alpha must be above 0 and finite; alpha is nan"),
            ({"alpha": float("inf")}, "alpha must be above 0 and finite; alpha is inf"),
            ({"alpha_pattern": {"q": -1.0}}, "alpha must be above 0 and finite; q is -1.0"),
            ({"dropout": 1.0}, "dropout must lie in [0, 1); it is 1.0"),
            ({"targets": ()}, "targets is empty: name what to adapt, for example 'all-linear'"),
            ({"init": "zeros"}, "init must be one of kaiming, gaussian, orthogonal, pissa,"),
        ],
    )
    def test_config_errors(self, stack, spec, message):
        with pytest.raises(ConfigError) as caught:
            paths(stack, **spec)
        assert message in str(caught.value)

    def test_a_model_without_blocks_has_no_layer_numbers(self):
        with pytest.raises(TargetError, match="it has none"):
            paths(nn.ModuleDict({"a": nn.Linear(4, 4)}), layers="0", targets=("a",))

    def test_a_module_at_two_paths(self):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(4, 4)})
        with pytest.raises(TargetError, match="one module stands at a and b; a pair would count"):
            paths(model, targets=("a",))
        assert paths(model, targets=("c",)) == {"c"}

    def test_a_scaled_embedding(self):
        class Scaled(nn.Embedding):
            def forward(self, ids):
                return 2 * super().forward(ids)

        with pytest.raises(TargetError, match=r"e is a Scaled, an embedding that changes what it"):
            paths(nn.ModuleDict({"e": Scaled(4, 4)}), targets=("e",))

    def test_padding_other_than_zeros(self):
        model = nn.ModuleDict({"c": nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")})
        with pytest.raises(TargetError, match=r"c pads with 'reflect'; only zero padding can be"):
            paths(model, targets=("c",))

    def test_a_rank_that_groups_do_not_divide(self):
        model = nn.ModuleDict({"c": nn.Conv2d(4, 4, 3, groups=2)})
        with pytest.raises(TargetError, match=r"rank 3 of c is not a multiple of its 2 groups"):
            paths(model, targets=("c",), rank=3)


def test_tied_weights_are_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

    made = plan(Tied(), LoraSpec(rank=2, targets=("embed", "head")))
    assert {t.path: t.tied_to for t in made.targets} == {"embed": ("head",), "head": ("embed",)}
    assert made.total_parameters == 36


component = st.text("abcdefgh_0123456789", min_size=1, max_size=6)


@given(st.lists(component, min_size=1, max_size=5), st.data())
def test_a_name_matches_the_whole_components_at_the_end(parts, data):
    path = ".".join(parts)
    take = data.draw(st.integers(1, len(parts)))
    assert matches(".".join(parts[-take:]), path)
    assert not matches("x" + parts[-1], path)
    assert not matches(parts[-1] + "x", path)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_layer_range_of_single_numbers(numbers):
    assert layer_range(",".join(map(str, numbers))) == numbers


@given(st.integers(0, 50), st.integers(0, 50))
def test_layer_range_ends_count(start, length):
    assert layer_range(f" {start} - {start + length}") == set(range(start, start + length + 1))


def test_the_block_of_an_expert_is_its_layer():
    assert block_of("model.layers.7.mlp.experts.2.up_proj") == 7
    assert block_of("lm_head") is None
