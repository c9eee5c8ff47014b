"""Merged models and their certificates."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from adapter_models import IDS, adapt, logits, tiny_llama
from lorakit.errors import AdapterError, CertificateError, ConfigError, OutputError, TargetError
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.merging import Certificate, LogitComparison, Tolerance, merged_model, write_merged
from lorakit.merging.certify import certify, compare

PROBES = [IDS[0].tolist(), [3, 3, 62], list(range(20))]


class Words:
    """Stands for a tokenizer: all that is asked of one here is to save itself."""

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


MODELS = {
    "linear": lambda: adapt(tiny_llama()),
    "rsLoRA and patterns": lambda: adapt(
        tiny_llama(), rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 1.0}
    ),
    "Conv1D": lambda: adapt(tiny_gpt2(), targets=("c_attn", "c_fc", "c_proj")),
    "embedding": lambda: adapt(tiny_llama(), targets=("embed_tokens", "q_proj")),
    "tied embedding": lambda: adapt(tiny_llama(tied=True), targets=("embed_tokens", "q_proj")),
    "tied head": lambda: adapt(tiny_llama(tied=True), targets=("lm_head",)),
    "tied, not adapted": lambda: adapt(tiny_llama(tied=True), targets=("q_proj",)),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


class TestMergedModel:
    def test_it_computes_what_the_adapter_does(self, model):
        before = state(model)
        merged = merged_model(model)
        assert not lora_layers(merged)
        assert type(merged) is type(model)
        assert (logits(merged) - logits(model)).abs().max() <= 1e-4
        assert unchanged(model, before)

    def test_it_shares_no_memory_with_the_model(self, model):
        before = state(model)
        merged = merged_model(model)
        for parameter in merged.parameters():
            parameter.data.zero_()
        assert unchanged(model, before)

    def test_the_weight_is_the_sum(self):
        model = adapt(tiny_llama(), targets=("q_proj",))
        (path, layer), *_ = lora_layers(model).items()
        merged = merged_model(model).get_submodule(path).weight
        exact = layer.weight.double() + 2.0 * layer.B.double() @ layer.A.double()
        assert (merged - exact).abs().max() <= 1e-6 * exact.abs().max()

    def test_a_narrow_base_is_rounded_once(self):
        model = adapt(tiny_llama().bfloat16(), targets=("q_proj",))
        (path, layer), *_ = lora_layers(model).items()
        merged = merged_model(model).get_submodule(path).weight
        exact = layer.weight.float() + 2.0 * layer.B @ layer.A
        assert merged.dtype == torch.bfloat16
        assert torch.equal(merged, exact.to(torch.bfloat16))

    @pytest.mark.parametrize("targets", ["embed_tokens", "lm_head"])
    def test_an_adapted_weight_is_untied(self, targets):
        model = adapt(tiny_llama(tied=True), targets=(targets,))
        merged = merged_model(model)
        embed, head = merged.model.embed_tokens.weight, merged.lm_head.weight
        assert not torch.equal(embed, head)
        assert not merged.config.tie_word_embeddings
        assert model.config.tie_word_embeddings

    def test_what_is_tied_and_not_adapted_stays_tied(self):
        merged = merged_model(adapt(tiny_llama(tied=True), targets=("q_proj",)))
        assert merged.model.embed_tokens.weight is merged.lm_head.weight
        assert merged.config.tie_word_embeddings

    def test_tied_by_the_code_itself_is_refused(self):
        model = tiny_llama()
        model.lm_head.weight = model.model.embed_tokens.weight
        with pytest.raises(
            TargetError, match=r"lm_head shares its weight with .*embed_tokens, but"
        ):
            merged_model(adapt(model, targets=("lm_head",)))

    def test_a_plain_module(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        x = torch.randn(2, 3, 4, 4)
        adapt(model, rank=2, targets=("0", "2"))
        merged = merged_model(model)
        assert [type(part) for part in merged] == [nn.Conv2d, nn.Flatten, nn.Linear]
        torch.testing.assert_close(merged(x), model(x), rtol=0, atol=1e-5)

    def test_a_grouped_convolution_is_refused(self):
        model = adapt(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), rank=2, targets=("0",))
        with pytest.raises(TargetError, match=r"0 cannot be merged: a convolution with groups=2"):
            merged_model(model)

    def test_nothing_to_merge(self):
        with pytest.raises(AdapterError, match="no adapter attached: there is nothing to merge"):
            merged_model(tiny_llama())


class TestNumbers:
    """The certificate's numbers against sums written out."""

    P = torch.tensor([[1.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    Q = torch.tensor([[0.0, 0.5, -1.0], [0.0, 2.0, 0.5]])

    def made(self, dtype=torch.float32, p=P, q=Q, **tolerance):
        limits = Tolerance(**tolerance)
        return compare(p, q, dtype=dtype, arithmetic="none", tolerance=limits)

    def test_against_loops(self):
        found = self.made()
        kl = 0.0
        for p, q in zip(self.P.tolist(), self.Q.tolist(), strict=True):
            sum_p, sum_q = sum(map(math.exp, p)), sum(map(math.exp, q))
            for z_p, z_q in zip(p, q, strict=True):
                share = math.exp(z_p) / sum_p
                kl += share * (math.log(share) - math.log(math.exp(z_q) / sum_q))
        assert found.mean_kl == pytest.approx(kl / 2, rel=1e-5)
        assert found.largest_logit_difference == 1.0
        assert found.largest_logit == 3.0
        assert found.argmax_agreement == 0.5
        assert found.tokens == 2

    def test_float32_is_held_to_its_logits(self):
        assert not self.made().passed
        assert not self.made(logits=0.97, logits_relative=0.0).passed
        assert self.made(logits=0.97, logits_relative=0.01).passed
        assert self.made(logits=1.0, kl=0.0, argmax=1.0).passed

    def test_measured_rounding_widens_the_limit_of_logits_and_no_further_than_a_share(self):
        assert Tolerance().logit_limit(10.0) == pytest.approx(2e-4)
        assert Tolerance().logit_limit(10.0, rounding=1e-5) == pytest.approx(2e-4)
        assert Tolerance().logit_limit(10.0, rounding=1e-3) == pytest.approx(4e-3)
        assert Tolerance().logit_limit(10.0, rounding=9.0) == pytest.approx(0.1)

    def test_narrow_formats_are_held_to_KL_and_argmax(self):
        assert self.made(torch.bfloat16, kl=1.0, argmax=0.5, logits=0.0).passed
        assert not self.made(torch.bfloat16, kl=0.01, argmax=0.5).passed
        assert not self.made(torch.bfloat16, kl=1.0, argmax=0.51).passed

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_nan_fails(self, dtype):
        assert self.made(dtype, q=self.P).passed
        q = self.P.clone()
        q[0, 0] = math.nan
        assert not self.made(dtype, q=q, logits=9e9, kl=9e9, argmax=0.0).passed

    def test_words(self):
        made = LogitComparison(
            "bfloat16", "float32 arithmetic", 1200, 30.0, 0.25, 1e-4, 0.995, True
        )
        expected = (
            "bfloat16 (float32 arithmetic): largest logit difference 0.25 (of 30), KL 0.0001 nats "
            "per token, argmax agreement 99.50% over 1,200 tokens"
        )
        assert Certificate((made,), Tolerance()).sentences() == [expected]


def test_certify(model):
    found = certify(model, merged_model(model), PROBES)
    assert found.passed
    (comparison,) = found.comparisons
    assert comparison.tokens == 7 + 3 + 20
    assert comparison.dtype == "float32"
    broken = merged_model(model)
    next(broken.parameters()).data[1].neg_()  # the embedding of token 1
    assert not certify(model, broken, PROBES).passed


def test_certify_runs_without_dropout_and_leaves_the_mode(model):
    merged = merged_model(model)
    for layer in lora_layers(model).values():
        layer.dropout = 0.5
    model.train()
    assert certify(model, merged, PROBES).passed
    assert model.training


def test_no_probes(model):
    for probes in ([], [[]]):
        with pytest.raises(ConfigError, match="a certificate needs probe texts"):
            certify(model, merged_model(model), probes)


class TestWriting:
    @pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
    def test_transformers_alone_loads_it(self, model, dtype, tmp_path):
        before = state(model)
        certificate = write_merged(
            model,
            Words(),
            tmp_path / "m",
            dtype=dtype,
            probes_ids=PROBES,
            tolerance=Tolerance(argmax=0.9),
        )
        assert unchanged(model, before)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").eval()
        assert loaded.dtype == (dtype or torch.float32)
        assert type(loaded) is type(model)
        if loaded.dtype == torch.float32:
            assert (logits(loaded) - logits(model)).abs().max() <= 1e-4
        rounded = (logits(loaded.float()) - logits(model)).abs().max().item()
        on_disk = certificate.comparisons[1]
        assert rounded <= on_disk.largest_logit_difference + 1e-4
        assert (tmp_path / "m" / "tokenizer.json").exists()

    def test_files_have_ordinary_permissions(self, model, tmp_path):
        write_merged(model, Words(), tmp_path / "m", probes_ids=PROBES)
        (tmp_path / "plain").write_text("")
        ordinary = (tmp_path / "plain").stat().st_mode
        assert {path.stat().st_mode for path in (tmp_path / "m").iterdir()} == {ordinary}

    def test_the_certificate(self, model, tmp_path):
        made = write_merged(
            model,
            Words(),
            tmp_path / "m",
            dtype=torch.bfloat16,
            probes_ids=PROBES,
            tolerance=Tolerance(argmax=0.9),
        )
        written = json.loads((tmp_path / "m" / "certificate.json").read_text())
        assert written == json.loads(json.dumps(made.to_dict()))
        assert written["passed"]
        exact, rounded = written["comparisons"]
        assert exact["dtype"] == "float32"
        assert exact["largest_logit_difference"] <= 1e-4
        assert rounded["dtype"] == "bfloat16"
        assert rounded["arithmetic"] == "read back, float32 arithmetic"
        assert 0 < rounded["largest_logit_difference"] < 0.5
        assert exact["tokens"] == rounded["tokens"] == 30
        limits = {"logits", "logits_relative", "roundings", "logits_most", "kl", "argmax"}
        assert written["tolerance"].keys() == limits

    def test_a_bfloat16_base_keeps_its_format(self, tmp_path):
        model = adapt(tiny_llama().bfloat16(), targets=("q_proj",))
        write_merged(
            model, Words(), tmp_path / "m", probes_ids=PROBES, tolerance=Tolerance(argmax=0.8)
        )
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
        assert loaded.dtype == torch.bfloat16
        merged = merged_model(model)
        assert unchanged(loaded, state(merged))

    def test_above_the_tolerance_nothing_is_written(self, model, tmp_path):
        with pytest.raises(CertificateError) as caught:
            write_merged(
                model,
                Words(),
                tmp_path / "m",
                dtype=torch.bfloat16,
                probes_ids=PROBES,
                tolerance=Tolerance(kl=1e-12),
            )
        assert "answers differently from its adapter in bfloat16 (read back" in str(caught.value)
        assert "(the tolerance is KL 1e-12 and argmax agreement 95%)" in str(caught.value)
        assert "nothing was written; write it in float32, which rounds less" in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_holds_something(self, model, tmp_path):
        (tmp_path / "mine.txt").write_text("keep")
        with pytest.raises(OutputError, match="is not empty: give the merged model another"):
            write_merged(model, Words(), tmp_path, probes_ids=PROBES)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_wrong_merge_is_caught(self, tmp_path):
        # What a wrong scale does to the weights, put where the merge would read it.
        model = adapt(tiny_llama(), targets=("q_proj",))
        wrong = copy.deepcopy(model)
        for layer in lora_layers(wrong).values():
            layer.scale *= 1.01
        assert not certify(model, merged_model(wrong), PROBES).passed

    def test_no_transformers_model(self, tmp_path):
        model = attach(nn.Sequential(nn.Linear(4, 4)), LoraSpec(rank=2, targets=("0",)))
        with pytest.raises(AdapterError, match="a Sequential is no transformers model: use merged"):
            write_merged(model, Words(), tmp_path / "m", probes_ids=PROBES)
