"""write: the text is what decoding says, up to the token that completes a stop, space and all."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny import TEXTS, init_weights

from qs.config import Config, RunConfig, ThoughtConfig
from qs.inference.decoding import Decoding, Generated, OutputToken
from qs.inference.generate import Stream
from qs.inference.write import write
from qs.model.tokenizer import train_tokenizer
from qs.quietstar.load import choose_placement, load

DECODING = Decoding(max_tokens=12, temperature=1.5)
PROMPTS = ("3 plus 4 is", "Then 2 times", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(TEXTS, folder, 300)
    init_weights(folder / "weights", folder, positions=64)
    thought = ThoughtConfig(thoughts=2, ahead=1, start_text="1", end_text="2")
    settings = Config(thought, run=RunConfig(seq=2, device="cpu", dtype="float32"))
    quiet, _ = load(folder / "weights", settings, choose_placement(settings.run))
    torch.nn.init.normal_(quiet.mixer[4].weight, 0, 1.0, torch.Generator().manual_seed(0))
    return quiet, tokenizer


@pytest.fixture(scope="module")
def prompts(model):
    return [model[1].encode(text, bos=True) for text in PROMPTS]


def test_texts_are_what_decoding_says_and_spaces_stay(model, prompts):
    quiet, tokenizer = model
    texts = []
    for seed in range(12):
        everything = write(quiet, tokenizer, prompts, DECODING, seed)
        rows = Stream(quiet, prompts, DECODING, seed).finish()
        for text, ids, written, row in zip(PROMPTS, prompts, everything, rows, strict=True):
            assert written.tokens == row.tokens
            assert text + written.text == tokenizer.decode(ids + row.text_ids)
            texts.append(written.text)
    assert any(text.startswith(" ") for text in texts)


def ids_of(written):
    return [token.id for token in written.tokens]


def test_a_text_ends_with_the_token_that_completes_a_stop(model, prompts):
    quiet, tokenizer = model
    for ids, free in zip(prompts, write(quiet, tokenizer, prompts, DECODING, 3), strict=True):
        for first in range(len(free.text)):
            for stop in (free.text[first], free.text[first : first + 3]):
                (found,) = write(
                    *(quiet, tokenizer, [ids], DECODING, 3),
                    stops=("never said", stop),
                    numbers=[prompts.index(ids)],
                )
                said = ids_of(found)
                assert said == ids_of(free)[: len(said)]
                assert stop in found.text
                assert found.whole
                assert stop not in tokenizer.continuation(ids, said[:-1])


def test_a_stop_may_have_as_many_tokens_as_bytes(model, monkeypatch):
    quiet, tokenizer = model
    spelt = tokenizer.encode("3€€4", bos=True)
    assert len(spelt) > 8  # the vocabulary has no euro, but its three bytes

    def saying(quiet, rows, decoding, seed, ended, numbers, reading):
        said = []
        for token in spelt[1:]:
            said.append(OutputToken(token, None, None, 0.0, 0.0))
            if ended(0, [each.id for each in said]):
                break
        return SimpleNamespace(finish=lambda: [Generated(tuple(said), "stop")])

    monkeypatch.setattr("qs.inference.write.Stream", saying)
    (found,) = write(quiet, tokenizer, [[tokenizer.bos_id]], DECODING, stops=["€€"])
    assert found.text.endswith("3€€")


def test_a_text_is_whole_if_the_end_of_text_was_said(model, prompts, monkeypatch):
    quiet, tokenizer = model
    plain = Decoding(max_tokens=12, temperature=1.5, think_when="never")
    (free,) = write(quiet, tokenizer, prompts[:1], plain)
    shape = dataclasses.replace(quiet.model.config, eos_id=ids_of(free)[5])
    monkeypatch.setattr(quiet.model, "config", shape)
    (found,) = write(quiet, tokenizer, prompts[:1], plain)
    assert ids_of(found)[-1] == shape.eos_id
    assert (free.whole, found.whole) == (False, True)


def test_a_prompt_and_its_text_are_no_longer_than_they_may_be(model, prompts):
    quiet, tokenizer = model
    longest = max(map(len, prompts))
    written = write(quiet, tokenizer, prompts, DECODING, longest=longest)
    for ids, found in zip(prompts, written, strict=True):
        if len(ids) == longest:
            assert found is None
        else:
            assert len(found.tokens) == min(DECODING.max_tokens, longest - len(ids))
    plain = Decoding(max_tokens=99, think_when="never")
    full, none = write(quiet, tokenizer, [[5] * 60, [5] * 64], plain)
    assert len(full.tokens) == 4
    assert not full.whole
    assert none is None


def test_rows_that_are_passed_over_leave_the_others_their_numbers(model, prompts):
    quiet, tokenizer = model
    longest = max(map(len, prompts))
    short = [i for i, ids in enumerate(prompts) if len(ids) < longest]
    some = write(quiet, tokenizer, [prompts[i] for i in short], DECODING, 3, (), longest, short)
    everything = write(quiet, tokenizer, prompts, DECODING, 3, (), longest)
    assert [everything[i].text for i in short] == [found.text for found in some]
