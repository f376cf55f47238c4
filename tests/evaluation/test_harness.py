"""harness: lm-evaluation-harness gets the numbers that the model gives when asked directly."""

import json
import math
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from tiny import make, run

from qs.evaluation import harness
from qs.evaluation.harness import Arguments, harness_model
from qs.inference.decoding import Decoding
from qs.inference.generate import Stream
from qs.inference.loglikelihood import ScoredText, score
from qs.presets import ONE_THOUGHT

QUESTIONS = [
    ("3 plus 4 is", (" 7", " 9."), 0),
    ("Then 2 times 5 is", (" 7", " 10.", " 25"), 1),
    ("1 plus 1", (" is 2.\nThen", " is 11"), 0),
]
TEXT = "3 plus 4 is 7.\nThen 3 times 4 is 12."
LONG = " ".join(f"{a} plus {a} is {a + a}." for a in range(60))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny"), positions=128)


@pytest.fixture(scope="module")
def installed():
    """The harness, without its warnings."""
    pytest.importorskip("lm_eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harness_model()


@pytest.fixture(scope="module")
def trained(tiny, installed, tmp_path_factory):
    """A run of which thoughts matter."""
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, tiny.flags(folder, "--mixer-lr=1", "--steps=4"))


def opened(folder, **given):
    return harness_model()(pretrained=str(folder), device="cpu", **given)


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def directly(adapter, context, continuation, longest=None):
    """Sum of log-probabilities and greediness by thinking everywhere, one row at a time."""
    quiet, encode = adapter.opened.quiet, adapter.opened.tokenizer.encode
    ids = encode(context + continuation, bos=True)
    count = len(ids) - len(encode(context.rstrip(), bos=True))
    ids = ids[-(longest or len(ids)) - 1 :]
    tokens = torch.tensor([ids])
    with quiet.with_settings(**ONE_THOUGHT, sample_temperature=0.0), torch.no_grad():
        documents, anchors = torch.zeros_like(tokens), torch.arange(len(ids) - 1)[None]
        _, thoughts = quiet.think(tokens, documents, anchors)
        base, mix, _ = quiet.predict(tokens, documents, anchors, thoughts)
    log_p = (base if adapter.thinking.when == "never" else mix)[0, -count:, 0, 0]
    targets = tokens[0, -count:]
    log_p[:, 1] -= math.inf * (targets != 1)  # BOS is never said
    chosen = log_p.gather(1, targets[:, None]).double().sum().item()
    return chosen, bool((log_p.argmax(1) == targets).all())


@pytest.mark.parametrize("think", [True, False])
def test_continuations_have_the_probability_that_the_model_gives_them(trained, think):
    adapter = opened(trained, think=think, batch_size=3)
    pairs = [(q, c) for q, choices, _ in QUESTIONS for c in choices] + [("", "Then"), ("is ", "7")]
    for pair, (log_p, greedy) in zip(
        pairs, adapter.loglikelihood(requests(*pairs), disable_tqdm=True), strict=True
    ):
        expected, likeliest = directly(adapter, *pair)
        assert log_p == pytest.approx(expected, abs=1e-4)
        assert greedy == likeliest
    assert (adapter.tally["thoughts"] > 0) == think
    assert adapter.tally["thoughts"] in (0, adapter.tally["tokens"])
    assert adapter.tally["cut"] == 0


def test_probabilities_are_means_over_thoughts(trained):
    one, three = (
        opened(trained, samples=samples, think_temperature=1.0).loglikelihood(
            requests(("3 plus 4 is", " 7.")), disable_tqdm=True
        )[0][0]
        for samples in (1, 3)
    )
    adapter = opened(trained, samples=3, think_temperature=1.0)
    before, after = adapter._encode_pair("3 plus 4 is", " 7.")
    positions = range(len(before) - 1, len(before) + len(after) - 1)
    text = ScoredText((*before, *after), tuple(positions))
    (((log_p, _, thoughts),),) = score(adapter.opened.quiet, [text], [adapter.thinking])
    assert three == pytest.approx(log_p.exp().mean(0).log().sum().item())
    assert three != one
    assert thoughts == 3 * len(after)


def test_thoughts_change_the_numbers(trained):
    with_thoughts, without = (
        opened(trained, think=think).loglikelihood(
            requests(("3 plus 4 is", " 7.")), disable_tqdm=True
        )
        for think in (True, False)
    )
    assert abs(with_thoughts[0][0] - without[0][0]) > 1e-3


def test_a_long_context_loses_its_beginning_and_is_counted(trained, caplog):
    adapter = opened(trained, max_length=20)
    found = adapter.loglikelihood(requests((LONG, " 7"), ("3 plus", " 4")), disable_tqdm=True)
    assert found[0][0] == pytest.approx(directly(adapter, LONG, " 7", 20)[0], abs=1e-4)
    assert adapter.tally["cut"] == 1
    assert "1 of 2 texts did not fit and were cut" in caplog.text
    assert adapter.max_length == 20
    n = adapter.opened.quiet.config.thoughts
    assert opened(trained).max_length == 128 - n - 2
    assert opened(trained, think=False).max_length == 128
    with pytest.raises(ValueError, match=r"\d+ tokens does not fit in 20"):
        adapter.loglikelihood(requests(("3", LONG)), disable_tqdm=True)


def test_a_continuation_begins_with_the_spaces_before_it(trained):
    adapter = opened(trained)
    for context in ("3 plus", "3 plus ", "3\n\n", " ", "3 plu"):
        for continuation in ("4", " is", "\n7 is.", "s"):
            before, after = adapter._encode_pair(context, continuation)
            assert before + after == adapter.tok_encode(context + continuation)
            known = len(adapter.tok_encode(context.rstrip()))
            assert len(before) == known or len(before) == len(before + after) - 1 < known


def test_an_empty_continuation_is_refused(trained):
    with pytest.raises(ValueError, match="expected a continuation of 'one and'"):
        opened(trained).loglikelihood(requests(("one and", "")))


def test_all_windows_of_a_text_together_are_the_text(trained):
    whole, cut = opened(trained), opened(trained, max_length=9)
    assert whole.loglikelihood_rolling(requests((TEXT,), ("",))) == [
        pytest.approx(directly(whole, "", TEXT)[0], abs=1e-4),
        0.0,
    ]
    ids = cut.opened.tokenizer.encode(TEXT)
    (total,) = cut.loglikelihood_rolling(requests((TEXT,)))
    assert cut.tally["tokens"] == len(ids)
    assert cut.tally["cut"] == 0
    assert total != pytest.approx(whole.loglikelihood_rolling(requests((TEXT,)))[0], abs=1e-4)


def test_each_token_is_scored_once_after_all_that_fits(trained, monkeypatch):
    adapter, scored = opened(trained, max_length=5), []
    ids = adapter.tok_encode(TEXT)

    def scoring(quiet, texts, ways):
        scored.extend(texts)
        return score(quiet, texts, ways)

    monkeypatch.setattr(harness, "score", scoring)
    adapter.loglikelihood_rolling(requests((TEXT,)))
    ends = {tuple(ids[max(0, end - 6) : end]) for end in range(2, len(ids) + 1)}
    assert {text.ids for text in scored} <= ends
    told = [text.ids[t + 1] for text in scored for t in text.positions]
    assert sorted(told) == sorted(ids[1:])


@pytest.mark.parametrize("think", [True, False])
def test_generation_ends_before_the_first_stop_string(trained, think):
    adapter = opened(trained, think=think, batch_size=2)
    contexts = ["3 plus 4 is", "Then 2 times", "8 plus"]
    free = adapter.generate_until(requests(*((x, {"max_gen_toks": 12}) for x in contexts)))
    assert adapter.tally["thoughts"] == adapter.tally["tokens"] * think
    for context, text in zip(contexts, free, strict=True):
        middle = len(text) // 2
        for stop in (text[middle : middle + 1], text[middle : middle + 3], text[:1]):
            asked = {"until": [stop, "never said"], "max_gen_toks": 12, "do_sample": False}
            found = adapter.generate_until(requests((context, asked)))
            assert found == [text[: text.index(stop)]]


def test_a_context_that_comes_again_draws_anew_and_a_batch_changes_nothing(trained):
    asked = {"max_gen_toks": 8, "do_sample": True, "temperature": 2.0}
    contexts = requests(*((x, asked) for x in ("3 plus", "Then", "3 plus")))
    one, two = (opened(trained, batch_size=size).generate_until(contexts) for size in (1, 3))
    assert one == two
    assert one[0] != one[2]


def test_generation_that_leaves_no_room_is_refused_and_long_contexts_are_cut(trained):
    adapter = opened(trained)
    with pytest.raises(ValueError, match="256 output tokens leave no room for a context in"):
        adapter.generate_until(requests(("3", {})))
    decode = adapter.opened.tokenizer.decode
    kept = adapter.tok_encode(LONG)[100 - adapter.max_length :]
    (text,) = adapter.generate_until(requests((LONG, {"max_gen_toks": 100})))
    assert adapter.tally["cut"] == 1
    (found,) = Stream(adapter.opened.quiet, [kept], Decoding(max_tokens=100)).finish()
    assert text == decode(kept + found.text_ids)[len(decode(kept)) :]


def test_what_a_task_asks_for_is_read_as_the_harness_means_it(trained):
    adapter = opened(trained, max_gen_toks=7)
    read = adapter.generation
    assert read({}) == read({"temperature": 0.0}) == (read({}).decoding, [], None)
    assert read({}).decoding.max_tokens == 7
    decoding, stops, _ = read({"until": "\n", "max_tokens": 3, "do_sample": True})
    assert (decoding.temperature, decoding.max_tokens, stops) == (1.0, 3, ["\n"])
    assert read({"do_sample": False, "temperature": 0.9}).decoding.temperature == 0.0
    assert read({"temperature": 0.9, "top_p": 0.5}).decoding.top_p == 0.5


NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "early_stopping": True, "use_cache": True}
NEUTRAL |= {"length_penalty": 2.0, "no_repeat_ngram_size": 0, "min_p": None, "max_length": 128}


def test_what_changes_nothing_does_not_end_an_evaluation(trained):
    adapter = opened(trained, max_gen_toks=7)
    greedy, drawn = {"until": ["\n"]}, {"do_sample": True, "temperature": 0.5}
    for own, more in ((greedy, {"top_k": 50, "min_p": 0.1}), (drawn, {"top_k": 0, "typical_p": 1})):
        asked = own | NEUTRAL | more
        assert adapter.generation(asked)[:2] == adapter.generation(own)[:2]
        if own is greedy:
            found = adapter.generate_until(requests(("3 plus", asked)))
            assert found == adapter.generate_until(requests(("3 plus", own)))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"num_beams": 5}, "num_beams=5"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"do_sample": True, "top_k": 50}, "top_k=50"),
        ({"temperature": 0.7, "min_p": 0.1}, "min_p=0.1"),
        ({"stop_at": "x"}, "stop_at='x'"),
        ({"num_beams": [1]}, r"num_beams=\[1\]"),
    ],
)
def test_what_would_change_a_text_is_refused_by_its_name(trained, asked, name):
    with pytest.raises(ValueError, match=f"expected some of .* what changes nothing; got {name}"):
        opened(trained).generation(asked)


def test_a_bound_on_prompt_and_output_is_refused_only_where_it_would_cut(trained):
    adapter = opened(trained)
    length = len(adapter.opened.tokenizer.prompt("3 plus"))
    asked = {"max_gen_toks": 5, "max_length": length + 5}
    bounded = adapter.generate_until(requests(("3 plus", asked)))
    assert bounded == adapter.generate_until(requests(("3 plus", {"max_gen_toks": 5})))
    message = f"max_length={length + 4} would cut an output of 5 tokens after a prompt of {length};"
    with pytest.raises(ValueError, match=message):
        adapter.generate_until(requests(("3 plus", asked | {"max_length": length + 4})))


def test_no_chat_template_is_said_in_one_line(trained):
    adapter = opened(trained)
    assert adapter.chat_template() == ""
    for ask in (lambda: adapter.chat_template("x"), lambda: adapter.tokenizer_name):
        with pytest.raises(ValueError, match="^--apply_chat_template: this model has no chat temp"):
            ask()


def test_a_file_of_answers_is_of_one_model_and_its_settings(trained, tiny, tmp_path):
    from lm_eval.api.model import CachingLM

    asked, path = requests(("3 plus 4 is", " 7.")), str(tmp_path / "answers.db")

    def answers(folder, **given):
        cached = CachingLM(opened(folder, **given), path)
        try:
            return cached.loglikelihood(asked)
        finally:
            cached.dbdict.close()

    first = answers(trained)
    assert first == answers(trained, batch_size=3)
    for folder, given in ((tiny.weights, {}), (trained, {"think": False}), (trained, {"seed": 1})):
        with pytest.raises(
            ValueError, match=r"--use_cache: expected answers of .*answers\.db; name"
        ):
            CachingLM(opened(folder, **given), path)
    path = str(tmp_path / "unnamed.db")
    from sqlitedict import SqliteDict

    with SqliteDict(path, autocommit=True) as of_old:
        of_old["x"] = (0.0, True)
    with pytest.raises(ValueError, match="--use_cache: expected answers of"):
        CachingLM(opened(trained), path)


def test_arguments_are_read_as_the_harness_gives_them():
    given = {"pretrained": 7, "think": True, "thoughts": 3, "batch_size": "4", "seed": None}
    assert Arguments.read(given) == Arguments("7", think=True, thoughts=3, batch_size=4)
    assert Arguments.read({"pretrained": "x", "think": False}).think is False
    for size in ("auto", "auto:4"):
        assert Arguments.read({"pretrained": "x", "batch_size": size}).batch_size == 8
        bounded = {"pretrained": "x", "batch_size": size, "max_batch_size": 2}
        assert Arguments.read(bounded).batch_size == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected pretrained=RUN"),
        ({"pretrained": "x", "thought": 1}, "expected some of pretrained, .*; got thought"),
        ({"pretrained": "x", "thoughts": 1.5}, r"thoughts: expected int or None, found 1.5"),
        ({"pretrained": "x", "batch_size": "all"}, "batch_size: expected .*int.*, found 'all'"),
        ({"pretrained": "x", "think": "maybe"}, r"think: expected bool or None, found 'maybe'"),
        ({"pretrained": "x", "think_when": "often"}, "expected always, never or entropy>X"),
        ({"pretrained": "x", "batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"pretrained": "x", "samples": 2}, "greedy thoughts are all the same"),
    ],
)
def test_arguments_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Arguments.read(given)


def test_the_device_that_the_harness_gives_unasked_is_taken_where_it_is_there(trained):
    device = harness_model()(pretrained=str(trained), device="cuda:0").opened.quiet.start.device
    assert (device.type == "cuda") == torch.cuda.is_available()


def test_a_device_that_is_none_is_refused(trained):
    with pytest.raises(ValueError, match="device: expected .*cpu.*, found 'mps'"):
        harness_model()(pretrained=str(trained), device="mps")


def test_what_was_not_trained_to_think_does_not_unless_told_to(tiny, installed, tmp_path):
    plain = run(tmp_path, tiny.flags(tmp_path, "--objective=plain", "--steps=1"))
    for folder in (plain, tiny.weights):
        assert opened(folder).thinking.when == "never"
        assert opened(folder, think=True).thinking.when == "always"
        assert opened(folder, thoughts=3).thinking.when == "always"
        assert opened(folder, think_when="entropy>1").thinking.when == "entropy>1"
        assert opened(folder, think=False, thoughts=3).thinking.when == "never"
    assert opened(tiny.weights, thoughts=0).thinking.when == "never"
    assert opened(tiny.weights, thoughts=5).opened.quiet.config.thoughts == 5


def test_without_the_harness_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(harness, "harness_model", harness_model.__wrapped__)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    assert harness.main(["run"]) == 2
    line = "expected lm-evaluation-harness, found none; run pip install -e '.[harness]'"
    assert capsys.readouterr().err == f"error: {line}\n"


# the rest is with the harness itself


def write_tasks(folder):
    """Three small tasks over a local file."""
    lines = [{"q": q, "choices": c, "gold": g} for q, c, g in QUESTIONS]
    (folder / "lines.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "lines.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "target_delimiter": "",
        "metadata": {"version": 1},
    }
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}{{choices[gold]}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    }
    until = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, task in {"qs_choice": choice, "qs_rolling": rolling, "qs_until": until}.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | shared | task))


@pytest.fixture(scope="module", params=[True, False], ids=["thinking", "plain"])
def measured(request, trained, tmp_path_factory):
    """The adapter, and what the harness's own command wrote: results and samples by task."""
    folder = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
            patch.setenv(name, "1")
        for name in ("HF_HOME", "HF_DATASETS_CACHE"):
            patch.setenv(name, str(folder / "cache"))
        write_tasks(folder)
        model = f"pretrained={trained},think={request.param},batch_size=2,device=cpu"
        command = ["run", "--model", "qs", "--model_args", model, "--log_samples"]
        command += ["--include_path", str(folder), "--output_path", str(folder / "out")]
        assert harness.main([*command, "--tasks", "qs_choice,qs_rolling,qs_until"]) == 0
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {
        path.name.split("_2")[0].removeprefix("samples_"): [
            json.loads(line) for line in path.read_text().splitlines()
        ]
        for path in (folder / "out").rglob("samples_*.jsonl")
    }
    return opened(trained, think=request.param), json.loads(results.read_text()), samples


def test_the_harness_has_our_accuracy(measured):
    adapter, results, samples = measured
    right = 0
    for sample in samples["qs_choice"]:
        question, choices, gold = QUESTIONS[sample["doc_id"]]
        found = [float(x[0]) for x in sample["filtered_resps"]]
        expected = [directly(adapter, question, choice)[0] for choice in choices]
        assert found == pytest.approx(expected, abs=1e-4)
        right += expected.index(max(expected)) == gold
    assert len(samples["qs_choice"]) == 3
    assert results["results"]["qs_choice"]["acc,none"] == pytest.approx(right / 3)


def test_the_harness_has_our_perplexity(measured):
    adapter, results, _ = measured
    texts = [q + choices[gold] for q, choices, gold in QUESTIONS]
    nats = -sum(directly(adapter, "", text)[0] for text in texts)
    bits = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    words = sum(len(text.split()) for text in texts)
    found = results["results"]["qs_rolling"]
    assert found["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    assert found["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-4)


def test_the_harness_has_our_text(measured):
    adapter, results, samples = measured
    assert len(samples["qs_until"]) == 3
    for sample in samples["qs_until"]:
        context = QUESTIONS[sample["doc_id"]][0]
        ids = adapter.tok_encode(context)
        decoding = Decoding(max_tokens=8, think_when=adapter.thinking.when)
        (found,) = Stream(adapter.opened.quiet, [ids], decoding).finish()
        whole = adapter.opened.tokenizer.decode(ids + found.text_ids)
        assert sample["filtered_resps"] == [re.split(r"[.\n]", whole[len(context) :])[0]]
    assert results["config"]["thinking"]["when"] == adapter.thinking.when
    assert results["config"]["counts"]["cut"] == 0
