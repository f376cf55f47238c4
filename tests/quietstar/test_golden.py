"""golden: given its thoughts, our step equals the official implementation's, gradients included."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qs.config import ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.losses import advantages, count_terms, loss_terms, rewards

FOLDER = Path(__file__).parents[1] / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("qs*.json"))

LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def official_name(name: str) -> str:
    """Our parameter's name in the official code."""
    if name in ("start", "end"):
        return f"{name}_embedding"
    if name.startswith("mixer."):
        return "talk_head.0." + name.removeprefix("mixer.")
    name = name.removeprefix("model.")
    if name == "output.weight":
        return "lm_head.weight"
    for ours, theirs in LAYER.items():
        name = name.replace(ours + ".", theirs + ".")
    return "model." + name.replace("tok_embeddings", "embed_tokens")


class Case:
    """One recorded case: our module with its weights, and its tensors batch first."""

    def __init__(self, name: str):
        self.facts = facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.values = values = load_file(FOLDER / f"{name}.safetensors")
        self.B, self.T = values["input_ids"].shape
        self.K, self.m = facts["n_passes"], facts["n_ahead_talk"]
        self.n = facts["n_ahead"] - 3
        shape = ModelConfig(
            vocab_size=facts["V"],
            dim=facts["h"],
            layers=facts["layers"],
            heads=facts["heads"],
            kv_heads=facts["kv"],
            head_dim=facts["h"] // facts["heads"],
            hidden_dim=facts["inter"],
            norm_eps=facts["rms_norm_eps"],
            rope_theta=facts["rope_theta"],
            bos_id=None,  # the official sampler forbids start and end only
            thought_ids=(facts["start_id"], facts["end_id"]),
        )
        self.config = ThoughtConfig(
            thoughts=self.n,
            ahead=self.m,
            samples=self.K,
            beta=facts["policy_loss_beta"],
            baseline="mean" if self.K > 1 else "none",
            embedding_scale=facts["embedding_scale"],
        )
        self.module = QuietStar(Mistral(shape), self.config)
        with torch.no_grad():
            for key, parameter in self.module.named_parameters():
                parameter.copy_(self.official("w", key))
        self.tokens = values["input_ids"]
        self.documents = values["attention_mask"].long() - 1
        self.real = values["attention_mask"].bool()
        self.counted = self.tokens != facts["pad"]  # the official code never predicts padding
        self.thoughts = self.rows(values["thought_tokens"])
        self.step = self.module(self.tokens, self.documents, self.counted, thoughts=self.thoughts)

    def official(self, kind: str, name: str) -> torch.Tensor:
        value = self.values[f"{kind}/{official_name(name)}"]
        return value[0] if name in ("start", "end") else value

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """(steps, B K, L, ...) -> (B, L, K, steps, ...)."""
        x = x.unflatten(1, (self.B, self.K))
        return x.permute(1, 3, 2, 0, *range(4, x.ndim))

    def each(self, x: torch.Tensor) -> torch.Tensor:
        """(B K, L) -> (B, L, K)."""
        return x.unflatten(0, (self.B, self.K)).transpose(1, 2)

    def official_policy(self) -> torch.Tensor:
        """Our policy loss over the official positions.

        The official code drops one more position than the m that lack a true target, and lets
        positions with some targets missing earn the rest: the two places where we differ on
        purpose. Everything else is ours.
        """
        kept = self.T - 1 - self.m
        step = self.step
        nll_later = torch.stack([step.nll_base[:, i : i + kept] for i in range(self.m)], -1)
        valid = torch.ones_like(nll_later, dtype=torch.bool)
        reward = rewards(nll_later, step.nll_mix[:, :kept], valid)
        advantage = advantages(reward, self.config.baseline)
        return -(advantage * step.log_p[:, :kept]).mean() / self.n

    def likelihood(self) -> torch.Tensor:
        step = self.step
        counts = count_terms(step.base_valid, step.valid, self.K, self.n)
        means = loss_terms(step, self.config).means(counts)
        return 0.5 * means.base + 0.5 * means.talk

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        names, parameters = zip(*self.module.named_parameters(), strict=True)
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return dict(zip(names, found, strict=True))


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return Case(request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """1e-4 relative to the recorded tensor's scale (and no worse than 1e-6 absolute)."""
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=max(1e-5 * scale, 1e-6))


def test_outputs_before_and_after_thoughts_agree(case: Case):
    base, branch = case.module.score(
        case.tokens, case.documents, torch.arange(case.T).expand(case.B, -1), case.thoughts
    )
    real = case.values["attention_mask"].bool()
    close(base[real], case.values["hidden_base"][:: case.K][real])
    official = case.rows(case.values["hidden_steps"][1:])
    depth = torch.arange(
        1, case.n + case.m + 2
    )  # true tokens past the row's end: ids are arbitrary
    there = torch.arange(case.T)[:, None] + depth - (case.n + 2) < case.T
    there = real[:, :, None, None] & there[:, None].expand(-1, case.K, -1)
    close(branch[there], official[there])


def test_likelihoods_and_mixing_weights_agree(case: Case):
    step, values = case.step, case.values
    close(step.nll_base[:, :-1], values["nll_base"][:: case.K])
    for i in range(case.m):
        last = case.T - 1 - i
        close(step.nll_mix[:, :last, :, i], case.each(values[f"nll_talk_{i}"]))
        counted = case.counted[:, 1 + i :, None].expand(-1, -1, case.K)
        official = case.each(values["mix_w_talk"][i])[:, :last]
        close(step.weight[:, :last, :, i][counted], official[counted])


def test_mixed_logits_agree(case: Case):
    base, branch = case.module.score(
        case.tokens, case.documents, torch.arange(case.T).expand(case.B, -1), case.thoughts
    )
    close(
        case.module.model.logits(base)[case.real], case.values["logits_base"][:: case.K][case.real]
    )
    for i in range(case.m):
        kept = case.T - i
        weight = case.step.weight[:, :kept, :, i, None]
        mixed = (1 - weight) * base[:, i:, None] + weight * branch[:, :kept, :, case.n + 1 + i]
        official = case.values["logits_talk"][i].unflatten(0, (case.B, case.K))
        real = case.real[:, :kept] & case.real[:, i:]
        close(case.module.model.logits(mixed)[real], official.transpose(1, 2)[:, :kept][real])


def test_rewards_agree_wherever_all_targets_are_there(case: Case):
    kept = case.T - 1 - case.m
    whole = case.step.valid.all(-1)[:, :kept]
    ours, official = case.step.reward[:, :kept], case.each(case.values["policy_reward"])
    close(ours[whole], official[whole])
    assert not ours[~whole].any()
    after = case.each(case.values["policy_reward_clamped"])
    close(advantages(ours, case.config.baseline)[whole], after[whole])


def test_we_reward_exactly_one_position_more_than_the_official_code(case: Case):
    last = case.T - 1 - case.m
    assert not case.step.valid[:, last + 1 :].all(-1).any()
    ended = case.counted.all(1)
    assert case.step.valid[ended, last].all()


def test_log_probabilities_of_thoughts_agree(case: Case):
    official = case.each(case.values["action_ll"].sum(0))
    real = case.real[:, :-1]  # padding sees itself here, and not there
    close(case.step.log_p[:, :-1][real], official[real])


def test_every_loss_term_agrees(case: Case):
    step, values = case.step, case.values
    sums = loss_terms(step, case.config)
    counts = count_terms(step.base_valid, step.valid, case.K, case.n)
    close(sums.base / counts.base, values["loss_base_mean"])
    close(sums.talk / counts.talk, values["loss_talk_means"])
    close(case.likelihood(), values["loss_lm"])
    close(case.official_policy(), values["policy_loss_unscaled"])
    total = case.likelihood() + case.config.beta * case.official_policy()
    close(total, values["loss_total"])


@pytest.mark.parametrize("part", ["lm", "policy", "total"])
def test_every_gradient_agrees(case: Case, part: str):
    policy = case.official_policy()
    loss = {
        "lm": case.likelihood(),
        "policy": policy,
        "total": case.likelihood() + case.config.beta * policy,
    }[part]
    for name, ours in case.gradients(loss).items():
        key = f"g_{part}/{official_name(name)}"
        if key not in case.values:
            assert official_name(name) in case.facts[f"grad_none_{part}"]
            assert not ours.any(), name
            continue
        close(ours, case.official(f"g_{part}", name))


@pytest.mark.parametrize("labels", ["labels", "nolabels"])
def test_evaluation_mode_of_the_official_code_agrees(case: Case, labels: str):
    values = load_file(FOLDER / f"{case.facts['case']}.eval_{labels}.safetensors")
    thoughts = values["thought_tokens"].permute(1, 2, 0)[:, :, None]  # (B, L, 1, n)
    case.module.config = dataclasses.replace(case.config, ahead=1, samples=1, baseline="none")
    anchors = torch.arange(case.T).expand(case.B, -1)
    base, branch = case.module.score(case.tokens, case.documents, anchors, thoughts)
    step = case.module(case.tokens, case.documents, case.counted, thoughts=thoughts)
    case.module.config = case.config
    real = values.get("attention_mask", case.values["attention_mask"]).bool()
    weight = step.weight[:, :, 0]
    mixed = (1 - weight) * base + weight * branch[:, :, 0, case.n + 1]
    close(case.module.model.logits(base)[real], values["logits_base"][real])
    close(weight[real].squeeze(-1), values["mix_w"][real].squeeze(-1))
    close(case.module.model.logits(mixed)[real], values["logits"][real])


def test_step_zero_of_the_official_code_has_no_reward_and_mixes_nothing():
    case = Case("qs7_init")
    assert not case.step.weight.any()
    assert not case.step.reward.any()
    assert not case.values["policy_reward"].any()
