"""training: a step is one mean over the whole batch, however it is split or measured."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROOT, batch, module, same_bits

import qs.quietstar.algorithm
from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import loss_terms
from qs.training.average import Average
from qs.training.memory import PartMemory
from qs.training.optimizer import make_optimizer
from qs.training.step import Part, schedule, think, train_step

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=8)
ANCHORS = [("all", 1.0), ("random", 0.5), ("uncertain", 0.5)]
STEP = 3


class Recorder:
    """Stands where the optimiser does and keeps the gradients that it is given."""

    def __init__(self, quiet):
        self.param_groups = [{"peak_lr": 1.0, "lr": None, "params": [*quiet.parameters()]}]
        self.parameters, self.found = dict(quiet.named_parameters()), None

    def step(self):
        self.found = {n: p.grad.clone() for n, p in self.parameters.items() if p.grad is not None}


def settings_of(anchors=("all", 1.0), micro_batch=0, objective="quiet", clip=1e9, **thought):
    kind, share = anchors
    values = {"thoughts": 2, "ahead": 2, "samples": 3, "beta": 30.0} | thought
    return Config(
        ThoughtConfig(anchors=kind, anchor_share=share, **values),
        OptimConfig(clip=clip, warmup=0),
        RunConfig(objective=objective, micro_batch=micro_batch, batch=4, seq=7, seed=5),
    )


def gradients(config, seed, measure=False):
    """The gradients of one step before clipping, and its record."""
    quiet = module(config.thinking, seed)
    recorder = Recorder(quiet)
    record = train_step(quiet, recorder, *text(config, seed), config, STEP, measure)
    return recorder.found, record


def text(config, seed):
    # documents that begin alike are equally uncertain: rounding would choose among them
    return batch(seed, cut=config.thought.anchors != "uncertain")


def number(tensor):
    return tensor.detach().item()


def naive_terms(config, seed):
    """Each weighted term from one forward of the whole batch; means written out."""
    quiet = module(config.thinking, seed)
    tokens, documents = text(config, seed)
    step = quiet(tokens, documents, generator=step_generator(config.run.seed, STEP))
    thought, rewarded = config.thought, step.valid.all(-1)
    ahead = [
        step.nll_mix[..., i][step.valid[..., i]].mean() if step.valid[..., i].any() else 0.0
        for i in range(thought.ahead)
    ]
    advantage = (step.reward - step.reward.mean(-1, keepdim=True)).clamp(min=0)[rewarded]
    policy = -(advantage * step.log_p[rewarded] / thought.thoughts).mean() if len(advantage) else 0
    terms = {
        "base": thought.base_weight * step.nll_base[step.base_valid].mean(),
        "talk": (1 - thought.base_weight) * sum(ahead) / thought.ahead,
        "policy": thought.beta * policy,
    }
    return quiet, step, terms


def separate(quiet, term):
    """The gradient of one term by itself."""
    names, parameters = zip(*quiet.named_parameters(), strict=True)
    if not torch.is_tensor(term) or not term.requires_grad:
        return dict.fromkeys(names, 0.0)
    found = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = number(value.abs().max()) + 1e-4  # a gradient that is 0 is rounding alone
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12 * scale, msg=name)


# Equals naive code


@few
@given(seeds, st.sampled_from(ANCHORS), st.sampled_from([0, 1, 2]))
def test_every_split_of_a_batch_gives_the_gradient_of_the_mean_over_the_batch(seed, anchors, rows):
    found, record = gradients(settings_of(anchors, rows), seed)
    quiet, step, terms = naive_terms(settings_of(anchors), seed)
    parts = [separate(quiet, term) for term in terms.values()]
    close(found, {name: sum(part[name] for part in parts) for name in found})
    assert record["loss"] == pytest.approx(number(sum(terms.values())), rel=1e-9)
    assert record["nll_base"] == pytest.approx(number(2 * terms["base"]), rel=1e-9)


@few
@given(
    seeds,
    st.sampled_from(ANCHORS),
    st.sampled_from([0, 1, 2]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_scoring_a_few_anchors_at_a_time_changes_neither_gradients_nor_record(
    seed, anchors, rows, at_once
):
    config = settings_of(anchors, rows)
    for measure in (False, True):
        whole, record = gradients(config, seed, measure)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PartMemory, "split", lambda *_: at_once)
            pieces, other = gradients(config, seed, measure)
        close(pieces, whole)
        assert other == pytest.approx(record, rel=1e-9, abs=1e-12)


def test_every_pass_that_measures_a_term_is_followed_back(monkeypatch):
    # else FSDP2, which learns of a pass by both ways, loses gradients of the passes beside it
    passes, ways = [], []
    scored, backward = Part.scored, torch.Tensor.backward
    monkeypatch.setattr(PartMemory, "split", lambda *_: (2, 3))
    monkeypatch.setattr(Part, "scored", lambda *args: passes.append(1) or scored(*args))
    monkeypatch.setattr(torch.Tensor, "backward", lambda x: ways.append(1) or backward(x))
    gradients(settings_of(), 1, measure=True)
    assert len(passes) == len(ways) > 2 * 3


def distilling(share, anchors=("all", 1.0), micro_batch=0, **thought):
    """The settings of a distilled stage."""
    run = {"curriculum": "2-2,0", "distil": share}
    config = settings_of(anchors, micro_batch, **thought).changed(**run)
    return config.stages[-1][1]


def distilled(config, seed, measure=False):
    """Gradients and record of a distilled step, which leaves all weights as they were."""
    quiet = module(config.thinking, seed)
    teacher = Average(module(config.thinking, seed + 1), 1.0, whole=True)
    parameters = dict(quiet.named_parameters())
    before = [{n: x.clone() for n, x in each.items()} for each in (parameters, teacher.weights)]
    recorder, rows = Recorder(quiet), text(config, seed)
    record = train_step(quiet, recorder, *rows, config, STEP, measure, average=teacher)
    same_bits(before[0], parameters)
    same_bits(before[1], teacher.weights)
    return recorder.found, record


@few
@given(
    seeds,
    st.sampled_from(ANCHORS),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0.25, 1.0]),
    st.sampled_from([{}, {"mix_weight": "sigmoid", "mix_space": "probability"}]),
)
def test_a_distilled_step_equals_plain_torch_however_it_is_split(
    seed, anchors, rows, share, mixing
):
    config = distilling(share, anchors, rows, **mixing)
    quiet, other = (module(config.thinking, seed + i) for i in (0, 1))
    tokens, documents = text(config, seed)
    at, thoughts = other.think(tokens, documents, generator=step_generator(5, STEP))
    assert thoughts.shape[2:] == (1, 2)
    with torch.no_grad():
        p = other.predict(tokens, documents, at, thoughts)[1][:, :, 0, 0].exp()  # (B, A, V)
    outputs, _ = quiet.score(tokens, documents, at[:, :0], thoughts[:, :0])
    log_q = (outputs @ quiet.model.head.T).log_softmax(-1)  # (B, T, V)
    counts = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    true = -log_q[:, :-1].gather(2, tokens[:, 1:, None])[..., 0][counts]
    learnt = -(p * log_q.gather(1, at[..., None].expand(-1, -1, 11))).sum(-1)  # (B, A)
    learnt = learnt[torch.cat([counts, counts[:, :1] & False], 1).gather(1, at)]
    learnt = learnt.mean() if len(learnt) else true.sum() * 0
    loss = (1 - share) * true.mean() + share * learnt
    expected = separate(quiet, loss)

    for measure in (False, True):
        found, record = distilled(config, seed, measure)
        close(found, {name: expected[name] for name in found})
        assert not any(x.any() for name, x in expected.items() if name not in found)
        assert record["loss"] == pytest.approx(number(loss), rel=1e-9)
        assert record["nll_base"] == pytest.approx(number(true.mean()), rel=1e-9)
        assert record["distil"] == pytest.approx(number(learnt), rel=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartMemory, "split", lambda *_: (1, 2))
        pieces, other = distilled(config, seed, True)
    close(pieces, found)
    assert other == pytest.approx(record, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("measure", [False, True])
def test_where_only_the_base_term_is_trained_no_row_is_cut(measure):
    config = settings_of(base_weight=1.0, beta=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartMemory, "cpu_bound", lambda *_: 1e-6)
        found, record = gradients(config, 3, measure)
    whole, expected = gradients(config, 3, measure)
    close(found, whole)
    assert record == pytest.approx(expected, rel=1e-9)
    quiet, generator = module(config.thinking, 3), step_generator(0, STEP)
    assert all(part.first for part in think(quiet, *text(config, 3), config, generator))


@few
@given(seeds, st.sampled_from(ANCHORS), st.sampled_from([1, 2]))
def test_every_split_of_a_batch_thinks_the_same_thoughts(seed, anchors, rows):
    def thoughts(micro_batch):
        config = settings_of(anchors, micro_batch)
        quiet, generator = module(config.thinking, seed), step_generator(0, STEP)
        parts = think(quiet, *text(config, seed), config, generator)
        rows = [(*part[:4], *part.targets[:4]) for part in parts]
        assert all(part.first for part in parts)
        return len(parts), [torch.cat(column) for column in zip(*rows, strict=True)]

    (split, some), (whole, together) = thoughts(rows), thoughts(0)
    assert (split, whole) == (4 // rows, 1)
    for one, other in zip(some, together, strict=True):
        assert torch.equal(one, other)


@few
@given(seeds, st.sampled_from([0, 2]))
def test_measuring_terms_apart_gives_the_same_update_and_the_norm_of_each_term(seed, rows):
    plain, without = gradients(settings_of(micro_batch=rows), seed)
    apart, record = gradients(settings_of(micro_batch=rows), seed, measure=True)
    close(apart, plain)
    quiet, _, terms = naive_terms(settings_of(), seed)
    for name, term in terms.items():
        parts = [torch.as_tensor(g).square().sum() for g in separate(quiet, term).values()]
        norm = float(torch.stack([p.double() for p in parts]).sum().sqrt())
        assert record[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-9)
        assert f"grad_norm_{name}" not in without
    total = math.sqrt(sum(float(g.square().sum()) for g in plain.values()))
    assert record["grad_norm"] == pytest.approx(total, rel=1e-9)
    assert without["grad_norm"] == pytest.approx(total, rel=1e-9)


@few
@given(seeds, st.sampled_from([0, 1, 2]))
def test_plain_training_has_the_gradient_of_the_base_nll_alone(seed, rows):
    found, record = gradients(settings_of(micro_batch=rows, objective="plain"), seed)
    quiet, step, terms = naive_terms(settings_of(base_weight=1.0), seed)
    expected = separate(quiet, terms["base"])
    close(found, {name: expected[name] for name in found})
    untrained = {"start", "end", *(name for name in expected if name.startswith("mixer."))}
    assert all((found[name] == 0).all() for name in untrained & found.keys())
    assert expected.keys() - found.keys() <= untrained
    assert record["loss"] == record["nll_base"] == pytest.approx(number(terms["base"]), rel=1e-9)
    assert not {"nll_talk", "gain", "reward", "weight_mean"} & record.keys()


def test_the_record_holds_the_means_of_what_the_step_computed():
    config = settings_of(micro_batch=2)
    _, record = gradients(config, 1)
    _, step, _ = naive_terms(config, 1)
    weight = step.weight[step.valid[:, :, None].expand_as(step.weight)]
    assert record["weight_mean"] == pytest.approx(number(weight.mean()), rel=1e-9)
    assert record["weight_std"] == pytest.approx(number(weight.std(correction=0)), rel=1e-6)
    assert record["reward"] == pytest.approx(
        float(step.reward[step.valid.all(-1)].mean()), rel=1e-9
    )
    assert record["lr"] == OptimConfig().lr
    assert record["skipped"] == 0


@few
@given(seeds, st.sampled_from([0, 1, 2]), st.sampled_from([1, 3]), st.sampled_from([1.0, 0.5]))
def test_the_gain_is_that_of_the_next_token_on_the_same_tokens(seed, rows, ahead, share):
    config = settings_of(("all" if share == 1 else "random", share), rows, ahead=ahead)
    _, record = gradients(config, seed)
    _, step, _ = naive_terms(config, seed)
    gains = [
        number(step.nll_base[b, t] - step.nll_mix[b, i, k, 0])
        for b, row in enumerate(step.anchors.tolist())
        for i, t in enumerate(row)
        for k in range(step.nll_mix.shape[2])
        if step.valid[b, i, 0]
    ]
    assert record["gain"] == pytest.approx(sum(gains) / len(gains), rel=1e-9)


def test_the_gradient_is_clipped_to_the_largest_norm():
    free, record = gradients(settings_of(), 1)
    assert record["grad_norm"] > 1
    found, clipped = gradients(settings_of(clip=0.25), 1)
    assert clipped["grad_norm"] == record["grad_norm"]
    norm = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
    assert norm == pytest.approx(0.25, rel=1e-4)
    for name, gradient in free.items():
        torch.testing.assert_close(
            found[name], gradient * 0.25 / record["grad_norm"], rtol=1e-4, atol=0
        )


# Steps that are not finite


def trained(config, seed=1):
    """A module and an optimiser that has made two steps."""
    quiet = module(config.thinking, seed)
    optimizer = make_optimizer(quiet, config.optim)
    for step in (0, 1):
        assert not train_step(quiet, optimizer, *batch(seed), config, step, False)["skipped"]
    return quiet, optimizer


def held(quiet, optimizer):
    states = [v.clone() for state in optimizer.state.values() for v in state.values()]
    return [p.detach().clone() for p in quiet.parameters()] + states


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(monkeypatch, apart, what):
    config = settings_of()
    quiet, optimizer = trained(config)
    before = held(quiet, optimizer)
    with monkeypatch.context() as patch:
        if what == "loss":
            patch.setattr(
                qs.quietstar.algorithm,
                "loss_terms",
                lambda *args: (terms := loss_terms(*args))._replace(base=terms.base * math.nan),
            )
        else:
            hook = quiet.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
        record = train_step(quiet, optimizer, *batch(2), config, 2, apart)
        if what == "gradient":
            hook.remove()
    assert record["skipped"] == 1
    assert math.isfinite(record["loss"]) == (what == "gradient")
    assert not math.isfinite(record["grad_norm"])
    after = held(quiet, optimizer)
    assert len(after) == len(before)
    assert all(map(torch.equal, after, before))
    assert all(p.grad is None for p in quiet.parameters())
    assert not train_step(quiet, optimizer, *batch(3), config, 3, apart)["skipped"]
    assert not all(map(torch.equal, held(quiet, optimizer), before))


# Optimiser, schedule, randomness


def test_each_parameter_has_its_learning_rate_and_only_matrices_decay():
    config = OptimConfig(lr=0.1, mixer_lr=0.2, thought_lr=0.3, weight_decay=0.4)
    quiet = module(ThoughtConfig())
    groups = make_optimizer(quiet, config).param_groups
    found = {p: (g["lr"], g["peak_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len([*quiet.parameters()])
    for name, parameter in quiet.named_parameters():
        lr = {"mixer": 0.2, "start": 0.3, "end": 0.3}.get(name.split(".")[0], 0.1)
        assert found[parameter] == (lr, lr, 0.4 if parameter.ndim == 2 else 0.0), name


@pytest.mark.parametrize("eight_bits", [False, True])
def test_the_second_moment_has_the_decay_that_was_asked_for(eight_bits):
    config = OptimConfig(beta2=0.5)
    groups = make_optimizer(module(ThoughtConfig()), config, eight_bits=eight_bits).param_groups
    assert {group["betas"] for group in groups} == {(0.9, 0.5)}


def test_a_step_takes_its_share_of_every_groups_peak():
    config = settings_of()
    optim = OptimConfig(lr=0.1, mixer_lr=0.2, thought_lr=0.3, warmup=3)
    config = Config(config.thought, optim, config.run)
    quiet = module(config.thinking)
    optimizer = make_optimizer(quiet, optim)
    for step in (2, 0):  # the share is taken of the peak, not of the last learning rate
        record = train_step(quiet, optimizer, *batch(0), config, step, False)
        share = (step + 1) / 4
        assert record["lr"] == pytest.approx(0.1 * share)
        assert {g["lr"] for g in optimizer.param_groups} == {0.1 * share, 0.2 * share, 0.3 * share}


def test_the_warm_up_rises_in_equal_parts_from_above_zero_to_the_peak():
    config = OptimConfig(warmup=4)
    assert [schedule(s, 9, config) for s in range(7)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 1]
    )
    assert schedule(0, 1, OptimConfig(warmup=0)) == 1


def test_the_cosine_falls_from_the_peak_at_the_end_of_the_warm_up_to_near_zero():
    config = OptimConfig(warmup=4, decay="cosine")
    values = [schedule(step, 104, config) for step in range(104)]
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4] == 1
    assert values[54] == pytest.approx(0.5)
    assert 0 < values[-1] < 1e-3
    assert values[4:] == sorted(values[4:], reverse=True)
    assert all(v > 0 for v in [schedule(s, 3, config) for s in range(3)])  # shorter than warm-up


def test_the_generator_of_a_step_depends_on_seed_and_step_alone():
    def first(seed, step):
        return torch.rand(4, generator=step_generator(seed, step)).tolist()

    with torch.random.fork_rng():
        one = first(1, 2)
        torch.manual_seed(9)
        assert first(1, 2) == one
    found = [first(seed, step) for seed in (0, 1, 2, 2**70) for step in (0, 1, 2)]
    assert len({tuple(values) for values in found}) == len(found)


# Targets that count


@few
@given(seeds, st.sampled_from([0, 1, 2]), st.sampled_from([0.2, 0.6, 1.0]))
def test_only_counted_targets_are_learnt_whatever_the_split(seed, rows, share):
    config = settings_of(micro_batch=rows, objective="plain")
    tokens, documents = batch(seed)
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < share
    counted[0, 1], documents[0, :2] = True, 0  # something counts

    quiet = module(config.thinking, seed)
    recorder = Recorder(quiet)
    record = train_step(quiet, recorder, tokens, documents, config, STEP, False, counted=counted)

    naive = module(config.thinking, seed)
    step = naive(tokens, documents, generator=step_generator(0, 0))
    found, number_of = 0.0, 0
    for row in range(tokens.shape[0]):
        for target in range(1, tokens.shape[1]):
            same = documents[row, target] == documents[row, target - 1] != -1
            if same and counted[row, target]:
                found, number_of = found + step.nll_base[row, target - 1], number_of + 1
    expected = separate(naive, found / number_of)
    close(recorder.found, {name: expected[name] for name in recorder.found})
    assert record["loss"] == pytest.approx(number(found / number_of), rel=1e-9)


@few
@given(seeds, st.sampled_from(["plain", "quiet"]), st.sampled_from([0, 2]))
def test_counting_everything_is_counting_nothing_apart(seed, objective, rows):
    config = settings_of(micro_batch=rows, objective=objective)
    results = []
    for counted in (None, torch.ones((4, 7), dtype=torch.bool)):
        quiet = module(config.thinking, seed)
        recorder = Recorder(quiet)
        record = train_step(quiet, recorder, *batch(seed), config, STEP, False, counted=counted)
        results.append((record, recorder.found))
    (record, found), (other, same) = results
    assert record == other
    assert found.keys() == same.keys()
    assert all(torch.equal(found[name], same[name]) for name in found)


compiler = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(compiler is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_layers_step_as_eager_ones_with_norms_after_without_and_from_a_cache(tmp_path):
    def told(*norms):
        done = subprocess.run(
            [sys.executable, "tests/compiled.py", *norms],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,  # where other work shares the cores
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = told("0", "1"), told("1")
    graphs = 4  # text, a token of a thought, text with thoughts, and for a term's norm text alone
    assert (first["miss"], first["hit"]) == (graphs, 0)
    assert (second["miss"], second["hit"]) == (0, graphs)
    assert max(first["worst"], second["worst"]) <= 1e-5
