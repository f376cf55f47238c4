"""golden: given its thoughts, our step equals the official implementation's, gradients included."""

from __future__ import annotations

import pytest
import torch
from recorded import CASES, Recorded, close, read, recorded, train

from qs.config import ThoughtConfig
from qs.quietstar import masks
from qs.quietstar.algorithm import PAUSE
from qs.quietstar.losses import advantages, reinforce, rewards
from qs.quietstar.masks import every_position
from qs.quietstar.terms import Step, Terms, count_terms, loss_terms, targets_of

# Under our own rule of who sees whom, and under the recorded one where they differ.
VIEWS = [(name, False) for name in CASES if name != "qs3_window"]
VIEWS += [("qs3_window", True), ("qs5_pad", True)]


@pytest.fixture(params=VIEWS, ids=lambda view: view[0] + "-official-view" * view[1])
def case(request, monkeypatch) -> Recorded:
    name, official_view = request.param
    case = recorded(name, official_view)
    if official_view:
        monkeypatch.setattr(masks, "sees", case.official_sees)
    return case


def comparable(case: Recorded) -> torch.Tensor:
    """(B, L) positions that saw the same: under our own rule, padding does not."""
    return torch.ones_like(case.real) if case.official_view else case.real


def counts_of(step: Step) -> Terms:
    return count_terms(step.base_valid, step.valid, *step.thoughts.shape[2:])


# Values


def test_published_settings_are_the_defaults(case: Recorded):
    default, facts = ThoughtConfig(), case.facts
    assert default.beta == facts["policy_loss_beta"]
    assert default.policy_temperature == facts["reinforce_temperature"]
    assert default.sample_temperature == facts["gumbel_temperature"]
    assert default.base_weight == facts["original_loss_weight"]
    assert default.embedding_scale == facts["embedding_scale"]


@pytest.mark.parametrize("attention", ["structured", "dense"])
def test_outputs_before_and_after_thoughts_agree(case: Recorded, attention: str):
    seen, quiet = comparable(case), case.quiet()
    quiet.attention = attention
    base, branch = quiet.score(*case.text, every_position(case.tokens), case.thoughts)
    close(base[seen], case.values["hidden_base"][:: case.K][seen])
    # past the row's end any token may be forced, and ours is another one
    ahead = torch.arange(1, case.n + case.m + 2) - (case.n + 2)
    inside = torch.arange(case.L)[:, None] + ahead < case.L
    inside = seen[:, :, None, None] & inside[:, None].expand(-1, case.K, -1)
    close(branch[inside], case.steps(case.values["hidden_steps"][1:])[inside])


def test_likelihoods_and_mixing_weights_agree(case: Recorded):
    step, values = case.step, case.values
    close(step.nll_base[:, :-1], values["nll_base"][:: case.K])
    for i in range(case.m):
        last = case.L - 1 - i
        close(step.nll_mix[:, :last, :, i], case.each(values[f"nll_talk_{i}"]))
        seen = comparable(case)[:, i:-1]
        close(step.weight[:, :last, :, i][seen], case.each(values["mix_w_talk"][i])[:, :last][seen])


def test_mixed_predictions_agree(case: Recorded):
    quiet, everywhere = case.quiet(), every_position(case.tokens)
    before, after, _ = quiet.predict(*case.text, everywhere, case.thoughts)
    official_before = case.each(case.values["logits_base"]).log_softmax(-1)
    for i in range(case.m):
        kept = case.L - i
        seen = comparable(case)[:, i:]
        official = case.each(case.values["logits_talk"][i]).log_softmax(-1)
        close(after[:, :kept, :, i][seen], official[:, :kept][seen])
        close(before[:, :kept, :, i][seen], official_before[:, i:][seen])


def test_log_probability_of_every_token_of_a_thought_agrees(case: Recorded):
    quiet, everywhere = case.quiet(), every_position(case.tokens)
    official = case.steps(case.values["action_ll"])  # (B, L - 1, K, n)
    targets = targets_of(*case.text, everywhere, case.m)
    base, branch = quiet.score(*case.text, everywhere, case.thoughts)
    mixed = quiet.mix(everywhere, base, quiet.after(branch, case.thoughts))
    seen = comparable(case)[:, :-1]
    for i in range(case.n):  # nobody chose a pause: only token i has a probability
        alone = torch.full_like(case.thoughts, PAUSE)
        alone[..., i] = case.thoughts[..., i]
        step = quiet.judge(targets, everywhere, alone, base, branch, mixed)
        close(step.log_p[:, :-1][seen], official[..., i][seen])
    close(case.step.log_p[:, :-1][seen], official.sum(-1)[seen])


# Rewards


def test_every_targets_share_of_the_reward_agrees(case: Recorded):
    step = case.step
    for i in range(case.m):
        last = case.L - 1 - i
        later = step.nll_base[:, i : i + last, None]
        valid = step.valid[:, :last, i : i + 1]
        ours = rewards(later, step.nll_mix[:, :last, :, i : i + 1], valid)
        close(ours, case.each(case.values[f"reward_talk_{i}"]))


def test_rewards_agree_before_and_after_the_baseline(case: Recorded):
    whole = case.whole
    ours = case.step.reward[:, : case.rewarded]
    assert not ours[~whole].any(), "some targets are missing: such thoughts earn nothing here"
    assert whole.all() == (case.name != "qs5_pad")
    close(ours[whole], case.each(case.values["policy_reward"])[whole])
    before = advantages(ours, case.config.baseline, keep_negative=True)
    close(before[whole], case.each(case.values["policy_reward_baselined"])[whole])
    after = advantages(ours, case.config.baseline)
    close(after[whole], case.each(case.values["policy_reward_clamped"])[whole])


def test_we_reward_exactly_one_position_more_than_the_official_code(case: Recorded):
    last, full = case.rewarded, case.real.all(1)
    assert case.step.valid[full, last].all()
    assert not case.step.valid[:, last + 1 :].all(-1).any()
    theirs = loss_terms(case.official_step, case.config).policy
    more = loss_terms(case.step, case.config).policy - theirs
    alone = (case.step.log_p[:, last], case.step.reward[:, last], case.config.baseline)
    close(more, reinforce(*alone))
    if case.name != "qs7_init":  # it earns nothing anywhere
        assert more.abs() > 1e-3


def test_step_zero_of_the_official_code_has_no_reward_and_mixes_nothing():
    case = recorded("qs7_init")
    assert not case.step.weight.any()
    assert not case.step.reward.any()
    assert not case.values["policy_reward"].any()


# Losses


def test_reinforce_of_the_recorded_rewards_is_the_recorded_loss(case: Recorded):
    log_p = case.each(case.values["action_ll"].sum(0))[:, : case.rewarded]
    reward = case.each(case.values["policy_reward"])
    close(reinforce(log_p, reward, case.config.baseline), case.values["actor_loss"].sum())


def test_likelihood_terms_and_what_they_are_divided_by_agree(case: Recorded):
    step, values = case.step, case.values
    sums, counts = loss_terms(step, case.config), counts_of(step)
    close(sums.base / counts.base, values["loss_base_mean"])
    close(sums.talk / counts.talk, values["loss_talk_means"])
    assert counts.base * case.K == values["nll_base"].count_nonzero()
    talk = [values[f"nll_talk_{i}"].count_nonzero() for i in range(case.m)]
    assert counts.talk.tolist() == talk


def test_policy_term_and_what_it_is_divided_by_agree(case: Recorded):
    """Thoughts with missing targets, officially rewarded in part, are taken out of both sums."""
    sums, counts = loss_terms(case.official_step, case.config), counts_of(case.official_step)
    actor = case.steps(case.values["actor_loss"])  # (B, A, K, n)
    close(sums.policy, actor[case.whole].sum())
    assert counts.policy == actor[case.whole].numel()
    official_sum = case.values["policy_loss_unscaled"] * actor.numel()
    close(official_sum - actor[~case.whole].sum(), sums.policy)
    if case.whole.all():
        close(sums.means(counts).policy, case.values["policy_loss_unscaled"])


def test_weighted_terms_make_the_recorded_loss(case: Recorded):
    quiet, values = case.quiet(), case.values
    means = Terms(
        values["loss_base_mean"], values["loss_talk_means"].mean(), values["policy_loss_unscaled"]
    )
    close(quiet.loss(means), values["loss_total"])
    close(quiet.loss(means._replace(policy=torch.zeros(()))), values["loss_lm"])
    likelihood = case.step._replace(reward=torch.zeros_like(case.step.reward))
    close(quiet.loss(quiet.means(likelihood, counts_of(case.step))), values["loss_lm"])


# What training takes


def same_gradients(case: Recorded, ours: dict[str, torch.Tensor], kind: str) -> None:
    for name, gradient in ours.items():
        close(gradient, case.official(kind, name))


@pytest.mark.parametrize("split", [False, True])
def test_training_takes_the_official_gradients(case: Recorded, split: bool):
    """All positions think for the likelihood, and those officially rewarded for the policy.

    Split: a row at a time, and one term at a time. Officially thoughts earn in part where targets
    are missing, and the mean is over padding too: so positions think together that have equally
    many targets, are judged on those, and weigh in the sum as many as they are.
    """
    values, beta = case.values, case.config.beta
    rows = int(split and not case.official_view)  # the recorded view is of all rows at once
    how = {"micro_batch": rows, "measure_terms": split}
    record, likelihood = train(case.quiet(beta=0.0), *case.text, case.thoughts, **how)
    close(record["loss"], values["loss_lm"])
    close(record["nll_base"], values["loss_base_mean"])
    close(record["nll_talk"], values["loss_talk_means"].mean())
    same_gradients(case, likelihood, "g_lm")

    logged, in_loss, policy = 0.0, 0.0, dict.fromkeys(likelihood, 0.0)
    for ahead in case.targets.unique().tolist():
        if ahead == 0:  # officially 0, in the mean alone
            continue
        share = float((case.targets == ahead).double().mean())
        anchors = case.anchors_with(ahead)
        some = {"thoughts": case.thoughts_at(anchors), "anchors": anchors, **how}
        record, full = train(case.quiet(ahead=ahead), *case.text, **some)
        _, rest = train(case.quiet(ahead=ahead, beta=0.0), *case.text, **some)
        alone = {name: full[name] - rest[name] for name in rest}
        logged += share * record["policy"]
        in_loss += share * (record["loss"] - (record["nll_base"] + record["nll_talk"]) / 2) / beta
        policy = {name: policy[name] + share * alone[name] / beta for name in alone}
        if split and record["policy"]:
            squares = sum(gradient.square().sum() for gradient in alone.values())
            close(record["grad_norm_policy"], squares.sqrt())
    close(logged, values["policy_loss_unscaled"])
    close(in_loss, values["policy_loss_unscaled"])
    same_gradients(case, policy, "g_policy")
    total = {name: likelihood[name] + beta * policy[name] for name in policy}
    same_gradients(case, total, "g_total")


@pytest.mark.parametrize("marked", ["documents", "counted"])
def test_padding_is_no_target_however_it_is_marked(marked: str):
    case = recorded("qs5_pad")
    documents, counted = case.documents, None
    if marked == "counted":  # what follows a token cannot be seen by it
        documents, counted = torch.zeros_like(case.documents), case.real
    record, gradients = train(
        case.quiet(beta=0.0), case.tokens, documents, case.thoughts, counted=counted
    )
    close(record["loss"], case.values["loss_lm"])
    same_gradients(case, gradients, "g_lm")


@pytest.mark.parametrize("name", ["qs4_onepass", "qs5_pad"])
def test_recorded_rows_as_documents_of_one_row_give_the_recorded_step(name: str):
    case = recorded(name)
    real, tokens = case.real, case.tokens[case.real][None]
    documents = torch.arange(case.B)[:, None].expand_as(real)[real][None]
    thoughts = case.thoughts[real][None]
    step = case.quiet()(tokens, documents, thoughts=thoughts)
    close(step.nll_base[0], case.step.nll_base[real])
    close(step.nll_mix[0], case.step.nll_mix[real])
    close(step.reward[0], case.step.reward[real])
    inner = real & (torch.arange(case.L) < case.L - 1)
    official = case.each(case.values["action_ll"].sum(0))[inner[:, :-1]]
    close(step.log_p[0][inner[real]], official)
    record, gradients = train(case.quiet(beta=0.0), tokens, documents, thoughts)
    close(record["loss"], case.values["loss_lm"])
    same_gradients(case, gradients, "g_lm")


# Evaluation mode of the official code: one thought, one token ahead


@pytest.mark.parametrize("labels", ["labels", "nolabels"])
def test_evaluation_mode_of_the_official_code_agrees(case: Recorded, labels: str):
    values = read(f"{case.name}.eval_{labels}")
    thoughts = values["thought_tokens"].permute(1, 2, 0)[:, :, None]  # (B, L, 1, n)
    quiet = case.quiet(ahead=1, samples=1, baseline="none")
    everywhere, seen = every_position(case.tokens), comparable(case)
    before, after, weight = quiet.predict(*case.text, everywhere, thoughts)
    close(before[seen].flatten(1), values["logits_base"][seen].log_softmax(-1))
    close(after[seen].flatten(1), values["logits"][seen].log_softmax(-1))
    close(weight[seen].flatten(), values["mix_w"][seen])
    if labels == "nolabels":
        return
    step = quiet(*case.text, thoughts=thoughts)
    close(step.nll_mix[:, :-1, 0, 0], values["nll_talk_0"])
    record, _ = train(case.quiet(ahead=1, samples=1, baseline="none"), *case.text, thoughts)
    likelihood = (record["nll_base"] + record["nll_talk"]) / 2
    close(likelihood, values["loss_lm"])
    # with one token ahead the official code rewards all but the last two positions
    rewarded = case.L - 2
    thoughts, anchors = thoughts[:, :rewarded], everywhere[:, :rewarded]
    step = quiet(*case.text, anchors=anchors, thoughts=thoughts)
    means = quiet.means(step, counts_of(step)._replace(policy=torch.tensor(thoughts.numel())))
    close(means.policy, values["policy_loss_unscaled"])
    close(likelihood + case.config.beta * means.policy.detach(), values["loss_total"])
