"""library: four names, which say what `qs.quietstar` and `qs.inference` compute."""

from __future__ import annotations

import inspect
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny import ROOT, Tiny, make

import qs
from qs.files import new_run
from qs.inference.decoding import Decoding, OutputToken
from qs.inference.generate import Stream
from qs.inference.write import Written
from qs.presets import PRESETS
from qs.quietstar.load import open_model
from qs.quietstar.parts import Parts

BUNDLED = {"thoughts": 5, "start_text": ":", "end_text": ";", "device": "cpu"}
TEXT = "71600\n"


@pytest.fixture(scope="module")
def model() -> qs.Thinker:
    return qs.load("tiny", **BUNDLED, fixed_weight=1.0, seed=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


def test_the_names_are_there_and_pytorch_is_imported_with_the_first():
    code = (
        "import sys, qs; assert dir(qs) == ['Parts', 'Place', 'Thinker', 'load']; "
        "assert 'torch' not in sys.modules; qs.load; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert qs.load is sys.modules["qs.library"].load
    with pytest.raises(AttributeError, match="module 'qs' has no attribute 'lod'"):
        qs.lod  # noqa: B018


def test_every_argument_is_typed_and_documented():
    for function in (qs.load, qs.Thinker.think, qs.Thinker.predict, qs.Thinker.generate):
        signature, said = inspect.signature(function), inspect.getdoc(function)
        for name, parameter in signature.parameters.items():
            assert name == "self" or parameter.annotation is not inspect.Parameter.empty
            assert name == "self" or name in said
        assert signature.return_annotation is not inspect.Signature.empty
    assert (ROOT / "qs" / "py.typed").is_file()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"folder": ""}, "'': expected a checkpoint, found no such folder; .*tiny"),
        ({"folder": None}, "folder: expected str or Path, found None"),
        ({"thoughts": "5"}, "thoughts: expected int or None, found '5'"),
        ({"thoughts": 5.5}, "thoughts: expected int or None, found 5.5"),
        ({"thoughts": True}, "thoughts: expected int or None, found True"),
        ({"thoughts": -1}, "thoughts must be at least 0, got -1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"device": "foo"}, "device: expected 'auto' or 'cpu' or 'cuda', found 'foo'"),
        ({"fixed_weight": math.nan}, "fixed_weight: expected a finite number, found nan"),
        ({"fixed_weight": "x"}, "fixed_weight: expected float or None, found 'x'"),
        ({"seed": "x"}, "seed: expected int, found 'x'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"start_text": 3}, "start_text: expected str or None, found 3"),
        ({"parts": None}, "parts: expected Parts, found None"),
    ],
)
def test_a_wrong_argument_of_load_is_named_with_what_was_expected(wrong, said):
    with pytest.raises(ValueError, match=said):
        qs.load(**{"folder": "tiny"} | BUNDLED | wrong)


@pytest.mark.parametrize(
    ("ask", "wrong", "said"),
    [
        ("think", {"text": None}, "text: expected str, found None"),
        ("think", {"seed": 0.5}, "seed: expected int or None, found 0.5"),
        ("predict", {"text": b"7"}, "text: expected str, found b'7'"),
        ("predict", {"top": 0}, "top must be at least 1, got 0"),
        ("generate", {"max_tokens": "4"}, "max_tokens: expected int, found '4'"),
        ("generate", {"temperature": math.nan}, "temperature: expected a finite number, found nan"),
        ("generate", {"temperature": 1e-45}, "^temperature must be 0 or at least 1e-06, got 1e-45"),
        ("generate", {"think_temperature": 1e-39}, "^think_temperature must be 0 or at least"),
        ("generate", {"top_p": 0.2}, "^--top-p is of drawn tokens, and --temperature 0 draws"),
        (
            "generate",
            {"think_when": "never", "think_temperature": 1.0},
            "^--think-temperature is of thoughts, and by --think-when never there are none",
        ),
        ("generate", {"stops": "4"}, "stops: expected a list of str, found '4'"),
        ("generate", {"stops": ["7", ""]}, "stops: expected texts, found an empty one"),
        ("generate", {"stops": [4]}, r"stops: expected a list of str, found \[4\]"),
    ],
)
def test_a_wrong_argument_of_a_question_is_named_too(model, ask, wrong, said):
    with pytest.raises(ValueError, match=said):
        getattr(model, ask)(**{"text": TEXT} | wrong)


def test_an_argument_of_another_name_is_refused_by_name():
    with pytest.raises(TypeError, match=r"load\(\) got an unexpected keyword argument 'thougts'"):
        qs.load("tiny", thougts=3)


def test_a_seed_may_be_as_large_as_a_run_takes(model):
    assert model.think(TEXT, seed=2**100 + 3) == model.think(TEXT, seed=3)


def test_numbers_of_numpy_are_numbers(model):
    seed, top, cold = np.int64(3), np.arange(3)[2], np.float32(0.5)
    assert model.think(TEXT, seed=seed) == model.think(TEXT, seed=3)
    assert model.predict(TEXT, top) == model.predict(TEXT, 2)
    said = [model.generate(TEXT, 2, temperature=t, seed=1) for t in (cold, 0.5)]
    assert said[0] == said[1]
    again = qs.load("tiny", **BUNDLED | {"thoughts": np.int32(5)})
    assert type(again.quiet.config.thoughts) is int


def test_thoughts_and_predictions_are_those_of_the_module(model):
    opened = open_model("weights/tiny", **BUNDLED, samples=4, ahead=1)
    quiet, tokenizer = opened.quiet, opened.tokenizer
    tokens = torch.tensor([tokenizer.encode(TEXT, bos=True)])
    batch = (tokens, torch.zeros_like(tokens), torch.tensor([[tokens.shape[1] - 1]]))
    _, thoughts = quiet.think(*batch, torch.Generator().manual_seed(2))
    with torch.no_grad():
        without, mixed, weights = quiet.predict(*batch, thoughts, fixed_weight=1.0)
    found = model.think(TEXT)
    assert [list(thought.ids) for thought in found] == thoughts[0, 0].tolist()
    assert [thought.text for thought in found] == [*map(tokenizer.decode, thoughts[0, 0].tolist())]
    predictions = model.predict(TEXT, top=2)
    assert [prediction.thought for prediction in predictions] == list(found)
    for k, prediction in enumerate(predictions):
        assert prediction.weight == weights[0, 0, k, 0] == 1
        for likely, log_p in ((prediction.without, without), (prediction.mixed, mixed)):
            p, ids = log_p[0, 0, k, 0].exp().topk(2)
            assert [each.id for each in likely] == ids.tolist()
            assert [each.text for each in likely] == [*map(tokenizer.piece, ids.tolist())]
            torch.testing.assert_close(torch.tensor([each.p for each in likely]), p)


def test_what_is_generated_is_what_the_stream_says(model):
    decoding = Decoding(max_tokens=3, temperature=1.0, fixed_weight=1.0, think_when="entropy>1")
    ids = model.tokenizer.prompt(TEXT)
    (expected,) = Stream(model.quiet, [ids], decoding, seed=5).finish()
    found = model.generate(TEXT, max_tokens=3, temperature=1.0, think_when="entropy>1", seed=5)
    assert found.text == model.tokenizer.continuation(ids, expected.text_ids)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert (one.entropy, one.weight) == (other.entropy, other.weight)
        assert (one.thought and one.thought.ids) == other.thought
    assert {token.thought is None for token in found.tokens} == {True, False}
    assert found.whole == (expected.reason == "eos")
    assert model.generate(TEXT, max_tokens=9, stops=["4"]).whole


def test_results_are_shown_in_words(model):
    assert repr(model.think(TEXT)) == "'q7160'\n'78444'\n'r0061'\n'78444'"
    line = "'78444'    weight +1.00  without ':' 0.29, '0' 0.07, '6' 0.07  with '4' 0.73, ':' 0.27"
    assert repr(model.predict(TEXT)).splitlines()[1].startswith(line)
    found = model.generate(TEXT, max_tokens=1)
    assert repr(found) == "'4'"
    assert repr(found.tokens) == "'4'        entropy 2.24 nats, thought '78444' weight +1.00"
    plain = model.generate(TEXT, max_tokens=1, think_when="never").tokens
    assert repr(plain) == "':'        entropy 2.24 nats"
    assert "tiny on CPU" in repr(model)
    assert repr(model).endswith("4 thoughts of 5 tokens, weight 1")


def test_a_seed_gives_the_same_thoughts_and_another_one_others(model):
    assert model.think(TEXT) == model.think(TEXT, seed=2)
    assert len({model.think(TEXT, seed=seed) for seed in range(4)}) > 1


def test_the_seed_0_is_a_seed(model):
    one = model.think(TEXT, seed=0)
    assert one == qs.load("tiny", **BUNDLED, fixed_weight=1.0).think(TEXT) != model.think(TEXT)
    said = [model.generate(TEXT, 9, 2.0, seed=seed).text for seed in (0, None)]
    other = qs.load("tiny", **BUNDLED, fixed_weight=1.0).generate(TEXT, 9, 2.0).text
    assert said[0] == other != said[1]


def test_a_thought_is_read_after_what_was_said_before_it(model, monkeypatch):
    first, second = model.tokenizer.encode("é")[-2:]  # a byte each
    said = OutputToken(first, None, None, 1.0, 0.0), OutputToken(second, (second,), 1.0, 1.0, 0.0)
    monkeypatch.setattr("qs.library.write", lambda *_: [Written("é", said, False)])
    assert model.generate(TEXT).tokens[1].thought.text == "é"


def test_a_model_of_its_own_head_and_visibility_is_asked_with_them(tiny):
    def alone(query, key):
        return query.anchor == key.anchor

    model = qs.load(tiny.weights, thoughts=2, device="cpu", parts=Parts(visibility=alone))
    assert model.quiet.visibility is alone
    one, other = (model.predict(text)[0].without for text in ("3 plus 4", "9 plus 4"))
    assert one == other  # what stands before the last token is hidden
    assert model.generate("3 plus 4", max_tokens=2).tokens


def test_no_text_at_all_is_begun_with_bos(model):
    assert len(model.think("")) == 4


def test_a_text_that_leaves_no_room_is_refused(tiny):
    model = qs.load(tiny.weights, thoughts=2, device="cpu")
    for ask in (model.think, model.predict, model.generate):
        with pytest.raises(ValueError, match="expected a text of at most 44 tokens, .*shorten it"):
            ask("7 " * 60)
    (full,) = {"7 " * n for n in range(60) if len(model.tokenizer.prompt("7 " * n)) == 44}
    assert len(model.think(full)) == 4
    assert model.generate(full).tokens


def test_ids_that_are_no_text_are_shown_by_their_number(model):
    log_p = torch.zeros(model.tokenizer.vocab_size + 1)
    log_p[-1] = 1
    assert model._likeliest(log_p, 1)[0].text == f"<{model.tokenizer.vocab_size}>"


def test_rewards_and_baselines_of_ones_own_count_with_a_beta():
    def wrong(reward):
        return None

    text = torch.tensor([[1, 2, 3, 4]])
    own = qs.Parts(baseline=wrong)
    for beta, refused in ((0.0, False), (1.0, True)):
        quiet = qs.load("tiny", thoughts=2, parts=own, beta=beta).quiet
        step = quiet(text, generator=torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match="Parts.baseline") if refused else nullcontext():
            quiet.loss(quiet.means(step))
    means = qs.load("tiny", thoughts=2, beta=1.0).quiet.config
    assert (means.baseline, means.beta) == ("mean", 1.0)
    with pytest.raises(ValueError, match="--samples 1"):
        qs.load("tiny", thoughts=2, samples=1, beta=1.0)


@pytest.mark.parametrize(
    ("objective", "ignored"),
    [("plain", {"beta": 1.0}), ("star", {"beta": 1.0}), ("pause", {"beta": 1.0, "samples": 3})],
)
def test_what_an_objective_would_ignore_is_refused(tiny, tmp_path, objective, ignored):
    run = new_run(tmp_path, "run", PRESETS["tiny"].changed(objective=objective))
    shutil.copytree(tiny.weights, run / "step_000001")
    (run / "step_000001" / "trainer.json").write_text("{}")
    for name, value in ignored.items():
        said = rf"run: {name} is (0.0|1) by its --objective {objective}, got {value}; .*='quiet'$"
        with pytest.raises(ValueError, match=said):
            qs.load(run, device="cpu", **{name: value})
    assert qs.load(run, device="cpu").quiet.config.samples == (1 if objective == "pause" else 4)
    asked = {"beta": 1.0, "samples": 3}
    quiet = qs.load(run, device="cpu", objective="quiet", **asked).quiet
    assert (quiet.config.beta, quiet.config.samples, quiet.pause) == (1.0, 3, False)


def test_a_weight_that_probabilities_are_not_mixed_by_is_refused_at_once(tiny, tmp_path):
    mixing = {"mix_weight": "sigmoid", "mix_space": "probability"}
    run = new_run(tmp_path, "run", PRESETS["tiny"].changed(**mixing))
    shutil.copytree(tiny.weights, run / "step_000001")
    (run / "step_000001" / "trainer.json").write_text("{}")
    for weight in (0.0, 1.0):
        (p,) = {each.p for each in qs.load(run, fixed_weight=weight).predict("1")[0].mixed[:1]}
        assert 0 < p <= 1
    said = "--fixed-weight: expected 0 to 1, as --mix-space probability needs, got 1.5"
    with pytest.raises(ValueError, match=said):
        qs.load(run, fixed_weight=1.5)
    model = qs.load(run)
    with pytest.raises(ValueError, match=said):
        Stream(model.quiet, [[1]], Decoding(fixed_weight=1.5))
