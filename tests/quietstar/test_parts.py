"""parts: the oracle computes the same by a reward, baseline, head and visibility of one's own."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import oracle
import pytest
import torch
from cases import Case, cases, close, examples, gradients, same, same_gradients, seeds
from cases import thought_configs as configs
from hypothesis import given
from oracle import judge
from safetensors import safe_open
from tiny import Tiny, batch, make, module, same_bits
from torch import Tensor, nn

import train
from qs import files
from qs.config import Config, ThoughtConfig
from qs.model import __main__ as model_commands
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.checks import result_of
from qs.quietstar.ends import ENDED, PAUSE
from qs.quietstar.load import open_model
from qs.quietstar.masks import Place
from qs.quietstar.mixer import MixingHead
from qs.quietstar.parts import Parts, parts_of
from qs.training.trainer import Trainer

K = ThoughtConfig(thoughts=2, ahead=2, samples=3, beta=2.0, policy_temperature=1.0)


def clipped(nll_base: Tensor, nll_mix: Tensor, valid: Tensor) -> Tensor:
    gain = (nll_base[:, :, None] - nll_mix).clamp(-0.1, 0.1).sum(-1)
    return gain * valid.all(-1)[:, :, None]


def others(reward: Tensor) -> Tensor:
    return (reward.sum(-1, keepdim=True) - reward) / (reward.shape[-1] - 1)


class Agreement(nn.Module):
    """A head of other tensors: how alike both outputs are in directions that are learned."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, base: Tensor, after: Tensor) -> Tensor:
        return (base * after) @ self.scale


class Bounded(MixingHead):
    """A head of the published one's tensors."""

    def forward(self, base: Tensor, after: Tensor) -> Tensor:
        return super().forward(base, after).tanh()


class Mean:
    """A baseline that is an object."""

    def __call__(self, reward: Tensor) -> Tensor:
        return reward.mean(-1, keepdim=True)


def near(query: Place, key: Place) -> Tensor:
    return query.position - key.position < 4


def answer_of(case: Case, parameters: dict[str, Tensor]) -> oracle.Answer:
    batch = (case.tokens, case.documents, case.counted, case.anchors, case.thoughts)
    return judge(parameters, case.shape, case.config, *batch)


# Equals naive code; visibility: test_algorithm.py, test_sampler.py, test_generate.py


@examples(0.4)
@given(case=cases(config=configs(**dataclasses.asdict(K))))
def test_reward_and_baseline_of_ones_own_are_those_of_the_loss(case: Case):
    quiet = case.module()
    quiet.reward, quiet.baseline = clipped, others
    answer, policy = answer_of(case, dict(quiet.named_parameters())), []
    rewards = {}
    for b, a, k in answer.reward:
        t = int(case.anchors[b, a])
        pairs = [(answer.nll_base[b, t + i], answer.nll_mix[b, a, k, i]) for i in range(K.ahead)]
        gains = [(plain - mixed).item() for plain, mixed in pairs]
        rewards[b, a, k] = sum(min(max(gain, -0.1), 0.1) for gain in gains)
    for (b, a, k), reward in rewards.items():
        beside = [rewards[b, a, other] for other in range(K.samples) if other != k]
        advantage = reward - sum(beside) / len(beside)
        if advantage > 0 or case.config.keep_negative:
            policy.append(-advantage * answer.log_p[b, a, k])
    base, talk, _ = answer.terms
    expected = oracle.mean(policy, len(rewards) * K.thoughts)
    step = case.step(quiet)
    means = quiet.means(step)
    close(means.policy, expected)
    whole = case.config.base_weight * base + (1 - case.config.base_weight) * talk
    whole = whole + case.config.beta * expected
    close(quiet.loss(means), whole)
    same_gradients(gradients(quiet.loss(means), quiet), gradients(whole, quiet))


@examples(0.4)
@given(case=cases())
def test_a_head_of_ones_own_mixes_every_prediction(case: Case):
    quiet = case.module()
    quiet.mixer = Agreement(case.shape.dim).double()

    def slow(parameters: dict[str, Tensor], base: Tensor, thought: Tensor) -> Tensor:
        return sum(
            x * y * s for x, y, s in zip(base, thought, parameters["mixer.scale"], strict=True)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "mixer", slow)
        answer = answer_of(case, dict(quiet.named_parameters()))
    loss = quiet.loss(quiet.means(case.step(quiet)))
    close(loss, answer.loss)
    same_gradients(gradients(loss, quiet), gradients(answer.loss, quiet))


@examples(0.2)
@given(case=cases(), seed=seeds)
def test_a_visibility_shows_nothing_that_the_rule_hides(case: Case, seed: int):
    everything, nothing = case.module(), case.module()
    everything.visibility = lambda query, key: query.anchor >= -1
    for x, y in zip(case.step(everything), case.step(nothing), strict=True):
        same(x, y)
    nothing.visibility = lambda query, key: query.anchor < -1  # each slot still sees itself
    alone = case.step(nothing)
    assert torch.isfinite(alone.nll_mix).all()
    moved = case.tokens.clone()
    moved[:, 0] = (moved[:, 0] + 1) % case.shape.vocab_size
    after = case.step(nothing, tokens=moved)
    same(after.nll_base[:, 1:], alone.nll_base[:, 1:])


@examples(0.4)
@given(case=cases(config=configs(**dataclasses.asdict(K) | {"keep_negative": True})))
def test_what_does_not_count_is_neither_told_to_parts_of_ones_own_nor_trained(case: Case):
    told = []

    def reward(nll_base: Tensor, nll_mix: Tensor, valid: Tensor) -> Tensor:
        told.append((nll_base, nll_mix, valid))
        return 1 + (nll_base[:, :, None] - nll_mix).sum(-1)

    quiet = case.module()
    quiet.reward, quiet.baseline = reward, lambda reward: torch.full_like(reward[..., :1], 0.3)
    step = case.step(quiet)
    [(nll_base, nll_mix, valid)] = told
    assert not nll_base[~valid].any()
    assert not nll_mix.mT[~valid].any()
    earns = step.valid.all(-1)  # the others earn nothing, whatever a reward says of them
    assert not step.reward[~earns].any()
    policy = -((step.reward - 0.3) * step.log_p)[earns].sum() / step.counts.policy.clamp(min=1)
    close(quiet.means(step).policy, policy)
    same_gradients(gradients(quiet.means(step).policy, quiet), gradients(policy, quiet))


def test_a_thought_that_could_not_be_drawn_does_no_harm_where_it_earns_nothing():
    quiet, tokens = module(K), torch.tensor([[2, 3, 4]])
    quiet.model.config = dataclasses.replace(quiet.model.config, bos_id=1)
    thoughts = torch.full((1, 3, 3, 2), 5)
    thoughts[:, 1:] = 1  # of probability 0, after positions without two tokens ahead
    step = quiet(tokens, thoughts=thoughts)
    assert step.log_p[:, 1:].isneginf().all()
    loss = quiet.loss(quiet.means(step))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradients(loss, quiet).values())


# In a run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


def trained(
    tiny: Tiny, out: Path, parts: Parts, steps: int = 2, more: int = 0, **settings: object
) -> Trainer:
    """A run of one's own loop, as in examples/reward.py, that is saved with `more` steps to go."""
    thought = ThoughtConfig(thoughts=2, ahead=2, samples=2)
    rows = {"seq": 16, "batch": 2, "steps": steps + more, "eval_rows": 0, "device": "cpu"}
    places = {"data": str(tiny.data), "weights": str(tiny.weights)}
    rates = {"lr": 1e-2, "mixer_lr": 1e-2, "warmup": 0}
    config = Config(thought).changed(**rows | places | rates | settings)
    trainer = Trainer(config, tiny.weights, out, parts)
    trainer.begin()
    for _ in range(steps):
        trainer.step()
    trainer.save()
    return trainer


def extras_of(quiet) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in quiet.named_parameters() if not n.startswith("model.")}


@pytest.mark.parametrize("head", [Agreement, Bounded])
def test_a_head_of_ones_own_is_trained_saved_and_loaded(tiny, tmp_path, head):
    parts = Parts(mixer=head)
    trainer = trained(tiny, tmp_path / "run", parts)
    assert not torch.equal(*(next(m.parameters()) for m in (trainer.quiet.mixer, head(16))))
    quiet = open_model(str(tmp_path / "run"), parts=parts, device="cpu").quiet
    assert type(quiet.mixer) is head
    same_bits(extras_of(quiet), extras_of(trainer.quiet))
    with pytest.raises(ValueError, match=rf"trained with a mixer of its own, {head.__name__}"):
        open_model(str(tmp_path / "run"), device="cpu")
    again = Trainer(trainer.config, files.newest_step(trainer.folder), trainer.folder, parts)
    again.resume()
    assert again.finished
    for layout in ("quietstar", "hf"):
        command = ["export", str(tmp_path / "run"), f"--layout={layout}"]
        assert model_commands.main([*command, f"--out={tmp_path / layout}"]) == 0
    quiet = open_model(str(tmp_path / "quietstar"), parts=parts, device="cpu", seq=16).quiet
    same_bits(extras_of(quiet), extras_of(trainer.quiet))
    plain = open_model(str(tmp_path / "hf"), device="cpu", seq=16).quiet.model
    same_bits(dict(plain.named_parameters()), dict(trainer.quiet.model.named_parameters()))


def test_the_tensors_of_a_head_of_ones_own_bear_their_own_names(tiny, tmp_path):
    trained(tiny, tmp_path / "run", Parts(mixer=Agreement), steps=1)
    with safe_open(files.newest_step(tmp_path / "run") / "model.safetensors", "pt") as stored:
        names = stored.keys()
    extras = {name for name in names if "layers" not in name}
    assert {"start_embedding", "end_embedding", "mixer.scale"} <= extras
    assert not [name for name in extras if name.startswith("talk_head")]


def test_a_run_with_a_visibility_of_its_own_asks_for_it(tiny, tmp_path):
    trained(tiny, tmp_path / "run", Parts(visibility=near, reward=clipped), steps=1)
    with pytest.raises(ValueError, match=r"of its own, near, .*Parts\(visibility=..\)"):
        open_model(str(tmp_path / "run"), device="cpu")
    quiet = open_model(str(tmp_path / "run"), parts=Parts(visibility=near), device="cpu").quiet
    assert quiet.visibility is near


def test_a_run_goes_on_with_the_parts_that_it_was_begun_with(tiny, tmp_path, capsys):
    parts = Parts(reward=clipped, baseline=others, visibility=near)
    before, run = trained(tiny, tmp_path / "run", parts, 1, more=1), tmp_path / "run"
    told = files.made_by(run)["parts"]
    assert told == {name: f"{__name__}.{told[name].split('.')[-1]}" for name in told}
    assert [name.split(".")[-1] for name in told.values()] == ["clipped", "others", "near"]
    for other in (
        Parts(visibility=near),
        Parts(lambda base, mix, valid: mix.sum(-1), others, visibility=near),
    ):
        with pytest.raises(ValueError, match=r"expected the parts .*clipped.*, found .*; go on fr"):
            Trainer(before.config, None, run, other).resume()
    again = Trainer(before.config, None, run, parts)
    again.resume()
    assert again.step()["step"] == 2
    plain = trained(tiny, tmp_path / "plain", Parts(), 1, more=1)
    with pytest.raises(ValueError, match=r"begun with, none, found reward=.*clipped; go on"):
        Trainer(plain.config, None, plain.folder, Parts(reward=clipped)).resume()
    made = files.made_by(run)
    del made["parts"]
    files.write_json(run / "run.json", made)  # as older runs wrote it
    Trainer(before.config, None, run, Parts(visibility=near)).resume()


def test_train_goes_on_with_a_run_of_ones_own_loop_if_its_parts_are_the_default(
    tiny, tmp_path, capsys
):
    run = trained(tiny, tmp_path / "own", Parts(reward=clipped), 1, more=1).folder
    assert train.main(["--resume", str(run)]) == 2
    assert "begun with, reward=" in capsys.readouterr().err
    run = trained(tiny, tmp_path / "plain", Parts(), 1, more=1, eval_rows=2).folder
    assert train.main(["--resume", str(run)]) == 0
    assert "before.json: no such file" in capsys.readouterr().err
    assert files.read_results(run)["before"] is None


def test_a_part_of_the_script_that_runs_is_called_as_another_script_imports_it(monkeypatch):
    quiet = module(K)
    assert parts_of(quiet) == {}
    quiet.reward, quiet.baseline = types.FunctionType(clipped.__code__, {}), Mean()
    main = types.SimpleNamespace(__spec__=None, __file__="somewhere/gains.py")
    quiet.reward.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert parts_of(quiet) == {"reward": "gains.clipped", "baseline": f"{__name__}.Mean"}


# Refusals


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("documents", (2, 4), r"documents: expected \(2, 5\), as tokens are, got \(2, 4\)"),
        ("documents", (5,), r"documents: expected \(2, 5\), as tokens are, got \(5,\)"),
        ("counted", (2, 6), r"counted: expected \(2, 5\)"),
        ("tokens", (5,), r"tokens: expected \(B, T\), rows of ids, got \(5,\)"),
        ("tokens", (2, 0), r"tokens: expected \(B, T\), rows of ids, got \(2, 0\)"),
        ("anchors", (3, 1), r"anchors: expected \(2, A\) positions, got \(3, 1\)"),
        ("anchors", (2,), r"anchors: expected \(2, A\) positions, got \(2,\)"),
        ("thoughts", (2, 5, 2), r"thoughts \(2, 5, 2\) do not fit \(2, 5\) anchors"),
        ("thoughts", (2, 4, 2, 2), r"thoughts \(2, 4, 2, 2\) do not fit \(2, 5\) anchors"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(name, wrong, said):
    quiet = module(ThoughtConfig(thoughts=2, ahead=1))
    batch = {"tokens": torch.zeros((2, 5), dtype=torch.int64)}
    dtype = torch.bool if name == "counted" else torch.int64
    with pytest.raises(ValueError, match=said):
        quiet(**batch | {name: torch.zeros(wrong, dtype=dtype)})


def test_ids_are_whole_numbers():
    quiet, tokens = module(ThoughtConfig(thoughts=2, ahead=1)), torch.zeros((2, 5))
    with pytest.raises(ValueError, match=r"tokens: expected whole numbers .*, found float32 of"):
        quiet(tokens)
    with pytest.raises(
        ValueError, match=r"tokens: expected whole numbers .*, found list \[\[1\]\]"
    ):
        quiet([[1]])
    with pytest.raises(ValueError, match=r"documents: expected whole numbers"):
        quiet.think(tokens.long(), tokens)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tokens": [[0, 99, 3]]}, "tokens: expected numbers from 0 to 10, found 0 to 99"),
        ({"tokens": [[0, -1, 3]]}, "tokens: expected numbers from 0 to 10, found -1 to 3"),
        ({"anchors": [[0, 3]]}, "anchors: expected numbers from 0 to 2, found 0 to 3"),
        ({"anchors": [[-1]]}, "anchors: expected numbers from 0 to 2, found -1 to -1"),
    ],
)
def test_numbers_are_ids_and_positions(wrong, said):
    quiet = module(ThoughtConfig(thoughts=2, ahead=1))
    batch = {"tokens": torch.zeros((1, 3), dtype=torch.int64)}
    batch |= {name: torch.tensor(value) for name, value in wrong.items()}
    with pytest.raises(ValueError, match=said):
        quiet(**batch)


@pytest.mark.parametrize(
    ("end", "thought", "said"),
    [
        ("fixed", [3, 11], r"from 0 to 10, -1 \(PAUSE\), .* found -1 to 11 with end='fixed'"),
        ("drawn", [3, 11], r"from 0 to 10, .* found -1 to 11 with end='drawn'"),
        ("fixed", [3, -7], r"-7 to 3 with end='fixed'"),
        ("drawn", [3, -7], r"end='drawn' -2 \(ENDED\), found -7 to 3 with end='drawn'"),
        ("fixed", [3, ENDED], r"end='drawn' -2 \(ENDED\), found -2 to 3 with end='fixed'"),
        ("drawn", [ENDED, 3], r"-2 \(ENDED\) in every place after .*, found 1 where something"),
        ("drawn", [ENDED, PAUSE], r"-2 \(ENDED\) in every place after .*, found 1 where someth"),
    ],
)
def test_given_thoughts_are_ones_that_a_model_could_have_had(end, thought, said):
    quiet, tokens = module(ThoughtConfig(thoughts=2, ahead=1, end=end)), torch.arange(3)[None]
    thoughts, documents = torch.full((1, 3, 2, 2), PAUSE), torch.zeros_like(tokens)
    quiet(tokens, thoughts=thoughts)
    thoughts[0, 1, 1] = torch.tensor(thought)
    with pytest.raises(ValueError, match=f"^thoughts: expected .*{said}"):
        quiet(tokens, thoughts=thoughts)
    with pytest.raises(ValueError, match=f"^thoughts: expected .*{said}"):
        quiet.predict(tokens, documents, tokens, thoughts)


class Text:
    """What a person may hand over by mistake."""


class Undimensioned(nn.Module):
    """A head that is not told D."""


def linear(dim: int) -> nn.Module:
    return nn.Linear(2 * dim, 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reward": 1.0}, "Parts.reward: expected a function or None, found 1.0"),
        ({"reward": lambda base, mix: mix}, r"Parts.reward: .* 3 argument.*found \(base, mix\)"),
        ({"baseline": lambda: 0}, r"Parts.baseline: expected to call it with 1 argument"),
        ({"visibility": near(*[Place(*torch.zeros(2, 1))] * 2)}, "Parts.visibility: expected a f"),
        ({"visibility": lambda query: query}, r"Parts.visibility: expected to call it with 2 arg"),
        ({"mixer": nn.Linear(32, 1)}, "Parts.mixer: .*a module, found a Linear itself"),
        ({"mixer": lambda dim: None}, "Parts.mixer: .*a module, found one that makes None"),
        ({"mixer": Undimensioned}, r"Parts.mixer: .*Undimensioned.* fails .*D = 8 \(.*takes"),
        ({"mixer": linear}, r"Parts.mixer: expected to call it with 2 argument"),
    ],
)
def test_a_part_that_cannot_be_one_is_refused_before_it_is_called(wrong, said):
    quiet = module(ThoughtConfig(thoughts=2, ahead=1))
    with pytest.raises(ValueError, match=said):
        QuietStar(quiet.model, quiet.config, parts=Parts(**wrong))


class Wide(MixingHead):
    """A head whose scores have one dimension too many."""

    def forward(self, base: Tensor, after: Tensor) -> Tensor:
        return super().forward(base, after)[..., None]


NAN = torch.tensor(torch.nan)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reward": lambda base, mix, valid: None}, r"floats of shape \(2, 5, 3\), found None"),
        ({"reward": lambda base, mix, valid: 1.0}, "found float 1.0"),
        ({"reward": lambda base, mix, valid: Text()}, "found Text <"),
        ({"reward": lambda base, mix, valid: mix.sum()}, r"found float64 of shape \(\)"),
        ({"reward": lambda base, mix, valid: mix}, r"found float64 of shape \(2, 5, 3, 2\)"),
        ({"reward": lambda *x: x[1].sum(-1) > 0}, r"found bool of shape \(2, 5, 3\)"),
        ({"reward": lambda base, mix, valid: mix.sum(-1) * NAN}, r"found 30 of 30 .*is 0\)$"),
        ({"baseline": lambda reward: None}, r"\(2, 5, 1\) or \(2, 5, 3\), found None"),
        ({"baseline": lambda reward: reward.mean()}, r"found float64 of shape \(\)"),
        ({"baseline": lambda reward: reward / 0}, "numbers, found 30 of 30 .*infinite$"),
        ({"mixer": Wide}, r"floats of shape \(2, 5, 3, 2\), found float64 of .* 3, 2, 1\)"),
        ({"visibility": lambda query, key: True}, r"booleans of shape \(.*\), found bool True"),
        ({"visibility": lambda query, key: query.anchor}, "found int64 of shape"),
        ({"visibility": lambda query, key: torch.ones(2, dtype=bool)}, r"found bool of .*\(2,\)"),
    ],
)
def test_what_a_part_gives_is_refused_by_its_name_and_shape(wrong, said):
    config = ThoughtConfig(thoughts=2, ahead=2, samples=3, beta=1.0)
    plain = module(config)
    quiet = QuietStar(plain.model, config, parts=Parts(**wrong)).double()
    quiet.load_state_dict(plain.state_dict(), strict=False)
    tokens = torch.arange(10).view(2, 5) % 7
    with pytest.raises(ValueError, match=rf"Parts.{next(iter(wrong))}: expected .*{said}"):
        quiet.means(quiet(tokens, generator=torch.Generator().manual_seed(0)))


def test_numbers_of_a_part_are_looked_at_once_and_never_while_compiling():
    def reward(nll_base: Tensor, nll_mix: Tensor, valid: Tensor) -> Tensor:
        return nll_mix.sum(-1)

    given = torch.zeros(1, 2), torch.zeros(1, 2, 3, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    seen: set[str] = set()
    result_of("reward", reward, *given, seen=seen)
    assert seen == {"reward"}
    looked = torch.full_like(given[1], torch.nan)
    assert result_of("reward", lambda *x: reward(*x) + torch.nan, *given, seen=seen).isnan().all()
    result_of("reward", reward, given[0], looked, given[2], seen=set())  # none of its own making

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(nll_mix: Tensor) -> Tensor:
        return result_of("reward", reward, given[0], nll_mix, given[2], seen=set())

    assert compiled(looked).isnan().all()


def test_a_part_is_looked_at_until_it_gave_numbers_that_are_finite():
    quiet = module(K)
    tokens, documents = batch(0)
    quiet.reward = lambda nll_base, nll_mix, valid: nll_mix.sum(-1) * NAN
    quiet(tokens, documents, anchors=tokens[:, :0], thoughts=tokens.new_zeros(4, 0, 3, 2))
    assert not quiet.seen  # of nobody who thinks, as when the base term's gradient is measured
    given = torch.zeros(1, 2), torch.full((1, 2, 3, 2), torch.nan), torch.ones(1, 2, 2).bool()
    result_of("reward", lambda *x: x[1].sum(-1), *given, seen=quiet.seen)
    assert not quiet.seen  # nor is it known of one that was given NaN
    with pytest.raises(ValueError, match="Parts.reward: expected finite numbers"):
        quiet(tokens, documents, generator=torch.Generator().manual_seed(0))


def test_parts_that_write_into_what_they_get_change_nothing_else():
    def reward(nll_base: Tensor, nll_mix: Tensor, valid: Tensor) -> Tensor:
        counted = nll_mix.neg_().mul_(valid[:, :, None]).sum(-1)
        nll_base.zero_()
        valid.zero_()
        return counted

    given = torch.rand(1, 2, 2), torch.rand(1, 2, 3, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    before = [x.clone() for x in given]
    result_of("reward", reward, *given, seen=set())
    result_of("baseline", lambda reward: reward.zero_(), given[1], seen=set())
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))

    config = ThoughtConfig(thoughts=2, ahead=2, samples=3, beta=1.0)
    tokens, plain = torch.arange(10).view(2, 5) % 7, module(config)
    losses = []
    for plain.reward, plain.baseline in (
        (reward, lambda reward: reward.zero_()),
        (lambda _, mix, valid: -(mix * valid[:, :, None]).sum(-1), lambda reward: reward * 0),
    ):
        step = plain(tokens, generator=torch.Generator().manual_seed(0))
        losses.append(plain.loss(plain.means(step)))
    losses[0].backward()
    assert torch.equal(*losses)


def test_a_run_is_begun_before_it_is_saved_and_ends_with_its_last_step(tiny, tmp_path):
    trainer = trained(tiny, tmp_path / "run", Parts(), steps=1)
    with pytest.raises(ValueError, match=r"this run is finished \(step 1 of 1\)"):
        trainer.step()
    new = Trainer(trainer.config, tiny.weights, tmp_path / "new", Parts())
    with pytest.raises(ValueError, match=r"new: expected a run that was begun; call begin\(\)"):
        new.save()


def test_a_trainer_names_an_argument_of_another_type(tiny, tmp_path):
    with pytest.raises(ValueError, match="start: expected Path or None, found 'tiny'"):
        Trainer(Config(), "tiny", tmp_path / "run", Parts())
    with pytest.raises(ValueError, match="parts: expected Parts, found None"):
        Trainer(Config(), tiny.weights, tmp_path / "run", None)
