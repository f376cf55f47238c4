"""synthetic: every document is what it says it is, and no held-out problem is ever trained on."""

import dataclasses
import json
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs.data.__main__ import main
from qs.data.synthetic import (
    CLOSE,
    KINDS,
    OPEN,
    STYLES,
    Document,
    World,
    documents,
    read_recipe,
)

SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(["train", "heldout"])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    width, relations = draw(st.integers(3, 8)), draw(st.integers(3, 10))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=1, max_size=3)))

    return World(
        *draw(st.sampled_from([(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.2, 3, 1)])),
        written=draw(st.floats(0, 1)),
        useful=draw(st.floats(0, 1)),
        again=draw(st.floats(0, 0.5)),
        lengths=some(2, width),
        hops=some(1, min(relations, width) - 1),
        steps=some(2, min(4, width - 1)),
        relations=relations,
        width=width,
        heldout=draw(st.floats(0.1, 0.9)),
    )


def first(world: World, seed: int, split: str, count: int) -> list[Document]:
    return list(islice(documents(world, seed, split), count))


def solve(kind: str, question: str) -> list[str]:
    """What each step comes to, worked out from the words of the question alone."""
    if kind == "sum":
        return [str(sum(map(int, question[:n])) % 10) for n in range(1, len(question) + 1)]
    if kind == "chain":
        *pairs, task = question.split()
        at, hops, stops = task[0], int(task[1:]), [task[0]]
        for _ in range(hops):
            (at,) = [b for a, b in pairs if a == at]
            stops.append(at)
        return [f" {stop}" for stop in stops]
    changes = re.findall(r"(has|buys|finds|eats|loses) (\d)", question)
    signed = [int(n) * (-1 if verb in ("eats", "loses") else 1) for verb, n in changes]
    counts = [sum(signed[:n]) for n in range(1, len(signed) + 1)]
    assert min(counts) >= 0, f"nobody loses what is not there: {question}"
    return [str(count)[-1] for count in counts]


def operands(kind: str, question: str) -> list[str]:
    """What the unhelpful styles spell."""
    if kind == "chain":
        return [f" {a}" for a, _ in question.split()[:-1]]
    return re.findall(r"\d", question)


def problem(document: Document) -> object:
    """What two documents share if they ask the same, however they tell it."""
    if document.kind == "sum":
        return document.question
    if document.kind == "chain":
        *pairs, task = document.question.split()
        return (frozenset(pairs), task)
    changes = re.findall(r"(?:has|buys|finds|(eats|loses)) (\d)", document.question)
    return tuple((loss != "", amount) for loss, amount in changes)


def filled(tokens: list[str], width: int) -> str:
    return "".join((tokens + width * tokens[-1:])[:width])


@given(world=worlds(), seeds=st.tuples(SEEDS, SEEDS))
def test_no_problem_is_in_both_splits_whatever_the_seeds(world, seeds):
    train, heldout = (
        {problem(d) for d in first(world, seed, split, 150)}
        for seed, split in zip(seeds, ("train", "heldout"), strict=True)
    )
    assert train
    assert heldout
    assert not train & heldout


@given(world=worlds(), seed=SEEDS, split=SPLITS)
def test_the_answer_of_one_token_ends_the_text_that_the_question_begins(world, seed, split):
    for d in first(world, seed, split, 20):
        assert d.text.endswith(d.answer)
        assert d.answer in d.choices
        assert len(d.answer.strip()) == 1
        assert d.text.startswith(f"{d.question}\n")


@given(world=worlds(), seed=SEEDS, split=SPLITS)
def test_a_naive_solver_finds_the_same_steps_and_the_same_answer(world, seed, split):
    for d in first(world, seed, split, 20):
        steps = solve(d.kind, d.question)
        assert d.answer == steps[-1]
        assert d.working == filled(steps, world.width)
        assert d.needed == d.difficulty + (d.kind != "sum")
        assert d.working == filled(steps[: d.needed], world.width)


@given(world=worlds(), seed=SEEDS)
def test_marks_stand_around_a_working_of_the_style_and_nowhere_else(world, seed):
    for d in first(world, seed, "train", 20):
        after = d.text[len(d.question) + 1 : -len(d.answer)]
        spelt = operands(d.kind, d.question)
        shown = {
            "useful": d.working,
            "repeat": filled(["q", *spelt], world.width),
            "reverse": filled(["r", *spelt[::-1]], world.width),
        }
        times = d.text.count(OPEN)
        assert (times > 0) == (d.style != "none")
        assert after == (times and times * f"{OPEN}{shown[d.style]}{CLOSE}" or "")


@given(world=worlds(), seed=SEEDS, split=SPLITS)
def test_same_world_and_seed_give_the_same_documents(world, seed, split):
    assert first(world, seed, split, 10) == first(world, seed, split, 10)


@given(seed=SEEDS)
def test_another_seed_and_another_split_give_other_documents(seed):
    world = World()
    texts = [d.text for d in first(world, seed, "train", 30)]
    assert texts != [d.text for d in first(world, seed + 1, "train", 30)]
    assert texts != [d.text for d in first(world, seed, "heldout", 30)]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shares_of_kinds_styles_and_difficulties_are_those_of_the_world(split):
    world, count = World(sums=2, chains=1, stories=1, written=0.4, useful=0.6), 8000
    drawn = first(world, 3, split, count)

    def close(seen: Counter, expected: dict) -> None:
        total = seen.total()
        assert seen.keys() == expected.keys()
        for name, share in expected.items():  # five standard deviations
            spread = 5 * (share * (1 - share) / total) ** 0.5
            assert abs(seen[name] / total - share) < spread, name

    close(Counter(d.kind for d in drawn), dict(zip(KINDS, (0.5, 0.25, 0.25), strict=True)))
    close(Counter(d.style for d in drawn), dict(zip(STYLES, (0.24, 0.08, 0.08, 0.6), strict=True)))
    for kind, values in zip(KINDS, (world.lengths, world.hops, world.steps), strict=True):
        seen = Counter(d.difficulty for d in drawn if d.kind == kind)
        close(seen, {value: 1 / len(values) for value in values})


def test_a_working_is_written_again_with_the_same_chance_each_time():
    drawn = first(World(written=1, again=0.3), 0, "train", 8000)
    times = Counter(d.text.count(OPEN) for d in drawn)
    for count in (1, 2, 3):
        more = sum(n for again, n in times.items() if again > count)
        total = more + times[count]
        assert abs(more / total - 0.3) < 5 * (0.21 / total) ** 0.5


def test_a_share_of_zero_is_never_drawn():
    world = World(chains=0, written=1, useful=0, again=0)
    assert {d.text.count(OPEN) for d in first(world, 1, "train", 50)} == {1}
    drawn = first(world, 0, "train", 300)
    assert {d.kind for d in drawn} == {"sum", "story"}
    assert {d.style for d in drawn} == {"repeat", "reverse"}


def test_every_answer_is_about_equally_frequent():
    # otherwise a model could be right without working by naming the most frequent answer
    for kind in KINDS:
        answers = Counter(d.answer for d in first(World(), 0, "train", 9000) if d.kind == kind)
        assert max(answers.values()) < 0.13 * answers.total(), kind


def test_the_command_writes_every_field_of_the_same_documents(tmp_path, capsys):
    flags = ["--documents=20", "--tests=5", "--seed=7", "--written=0.9", "--stories=3"]
    assert main(["synthetic", "--out", str(tmp_path / "new"), *flags]) == 0
    world = World(written=0.9, stories=3.0)
    for split, count in (("train", 20), ("heldout", 5)):
        lines = (tmp_path / "new" / f"{split}.jsonl").read_text().splitlines()
        expected = [dataclasses.asdict(d) for d in first(world, 7, split, count)]
        assert [json.loads(line) for line in lines] == json.loads(json.dumps(expected))
        assert read_recipe(tmp_path / "new", split) == first(world, 7, split, count)
    names = ["heldout.jsonl", "train.jsonl", "world.json"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names


def test_a_recipe_without_documents_is_refused(tmp_path):
    recipe = {"world": dataclasses.asdict(World()), "seed": 0, "documents": {"heldout": 0}}
    (tmp_path / "world.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"expected what .* writes, found 0 heldout documents"):
        read_recipe(tmp_path, "heldout")


def test_text_of_another_make_has_no_recipe_and_a_damaged_recipe_is_refused(tmp_path):
    assert read_recipe(tmp_path, "heldout") is None
    recipe = {"world": dataclasses.asdict(World()), "seed": 0, "documents": {"heldout": 1}}
    for damage in ({"world": {"width": 2}}, {"documents": {}}, {"world": {"x": 1}}):
        (tmp_path / "world.json").write_text(json.dumps(recipe | damage))
        with pytest.raises(ValueError, match="expected what python -m qs.data synthetic writes"):
            read_recipe(tmp_path, "heldout")
    (tmp_path / "world.json").write_text("[]")
    with pytest.raises(ValueError, match="world.json: expected a JSON object, found list; write"):
        read_recipe(tmp_path, "heldout")


REFUSALS = {
    "written": ({"written": 1.5}, r"expected written to be a share in \[0, 1\], found 1.5"),
    "useful": ({"useful": -0.1}, r"expected useful to be a share in \[0, 1\], found -0.1"),
    "again": ({"again": 1.0}, r"expected again to be a chance in \[0, 1\), found 1.0"),
    "heldout": ({"heldout": 0.0}, r"expected heldout to be a share in \(0, 1\), found 0.0"),
    "weights": ({"sums": 0, "chains": 0, "stories": 0}, "one is above 0 .*, found"),
    "negative": ({"sums": -1}, r"one is above 0 and none below, found \(-1, 1.0, 1.0\)"),
    "relations": ({"relations": 11}, "expected relations to be from 3 to 10, found 11"),
    "lengths": ({"lengths": (3, 6)}, r"lengths to be numbers from 2 to 5 .*, found \(3, 6\)"),
    "hops": ({"hops": (3,), "relations": 3}, r"hops to be numbers from 1 to 2 .*, found \(3,\)"),
    "steps": ({"steps": (5,)}, r"steps to be numbers from 1 to 4 with width 5, found \(5,\)"),
    "empty": ({"steps": ()}, r"steps to be numbers .*, found \(\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_world_that_cannot_be_is_refused(name):
    settings, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        World(**settings)


def test_unknown_and_empty_splits_are_refused():
    with pytest.raises(ValueError, match="expected a split train or heldout, found 'test'"):
        next(documents(World(), 0, "test"))
    tiny = World(chains=0, stories=0, lengths=(2,), heldout=1e-9)
    with pytest.raises(ValueError, match="expected heldout problems of kind sum, difficulty 2"):
        next(documents(tiny, 0, "heldout"))


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "new")
    for flags, message in (
        (["--out", out, "--useful=4"], "argument --useful: expected 0 to 1, got 4"),
        (["--out", out, "--documents=0"], "argument --documents: expected 1 to 1000000000, got 0"),
        (["--out", str(tmp_path / "file"), "--documents=1"], "expected a new folder"),
        (["--out", out, "--stories=x"], "invalid float value: 'x'; see python -m qs.data synth"),
    ):
        assert main(["synthetic", *flags]) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1
    assert not (tmp_path / "new").exists()
