"""tokenizer.json: every command takes such a checkpoint, and text goes on as its ids do."""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import tokenizer_files as made
from tiny import SMALL, TEXTS, init_weights, run, same_checkpoint

import evaluate
import train
from qs.data.dataset import TokenDataset
from qs.data.prepare import prepare_dataset
from qs.files import TRAINER, newest_step
from qs.inference.decoding import Decoding
from qs.inference.generate import Stream
from qs.model import __main__ as model_commands
from qs.model.tokenizer import Tokenizer
from qs.output import harmless
from qs.quietstar.load import open_model

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module", params=["byte_level", "normalising"])
def checkpoint(request, tmp_path_factory):
    """A folder with weights/ and data/ of a tokenizer that begins without BOS."""
    folder = tmp_path_factory.mktemp(request.param)
    getattr(made, request.param)(folder / "tokenizer")
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    prepare_dataset([source], folder / "data", folder / "tokenizer", heldout=0.1, workers=1)
    init_weights(folder / "weights", folder / "tokenizer", positions=96)
    return folder


def trained(checkpoint, out, *more):
    places = [f"--data={checkpoint / 'data'}", f"--weights={checkpoint / 'weights'}"]
    return run(out, [*places, f"--out={out}", *SMALL, "--steps=2", "--save-every=1", *more])


def test_documents_are_prepared_without_bos_and_end_with_eos(checkpoint):
    tokenizer, data = Tokenizer(checkpoint / "tokenizer"), TokenDataset(checkpoint / "data")
    ids, documents = data.read(0, data.tokens)
    assert tokenizer.bos_id not in ids
    assert (ids == tokenizer.eos_id).sum() == documents[-1] + 1
    assert tokenizer.decode(ids[documents == 0]) in [
        tokenizer.decode(tokenizer.encode(text)) for text in TEXTS
    ]


def test_a_run_is_saved_resumed_opened_and_exported_with_its_tokenizer(checkpoint, tmp_path):
    folder = trained(checkpoint, tmp_path / "runs")
    again = shutil.copytree(folder, tmp_path / "again")
    shutil.rmtree(newest_step(again))
    assert train.main(["--resume", str(again)]) == 0
    one, other = newest_step(folder), newest_step(again)
    same_checkpoint(one, other, "tokenizer.json")
    assert (one / TRAINER).is_file()
    exported = tmp_path / "exported"
    assert model_commands.main(["export", str(folder), "--layout=hf", f"--out={exported}"]) == 0
    hashes = {Tokenizer(x).hash for x in (checkpoint / "tokenizer", one, exported)}
    assert len(hashes) == 1
    assert evaluate.main(["score", str(folder), "--device=cpu", "--show=1"]) == 0


def test_what_is_printed_is_the_prompt_and_the_text_of_the_ids(checkpoint, tmp_path, capsys):
    decoding = ["--temperature=1", "--think-when=never", "--device=cpu"]
    texts = []
    weights = str(checkpoint / "weights")
    for prompt, most in [("Then  7 TIMES", 12), *(("", most) for most in range(2, 14))]:
        asked = ["generate", weights, prompt, *decoding, f"--max-tokens={most}"]
        assert evaluate.main(asked) == 0
        printed = capsys.readouterr()
        opened = open_model(weights, device="cpu", seq=8, thoughts=1)
        ids = opened.tokenizer.prompt(prompt)
        settings = Decoding(max_tokens=most, temperature=1.0, think_when="never")
        (said,) = Stream(opened.quiet, [ids], settings, opened.config.run.seed).finish()
        text = opened.tokenizer.continuation(ids, said.text_ids)
        assert printed.out.startswith(f"{prompt}{harmless(text)}\n[{most} tokens")
        texts.append(text)
        changed = "two  spaces' comes back as 'two spaces'" in printed.err
        assert changed == (checkpoint.name.startswith("normalising"))
    assert any(text.endswith("\ufffd") for text in texts)  # what was held back comes at the end


def test_text_ends_with_what_prepared_documents_end_with(checkpoint, tmp_path):
    weights = shutil.copytree(checkpoint / "weights", tmp_path / "weights")
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
    (weights / "digests.json").unlink()  # as its message advises who changes a file
    opened = open_model(str(weights), device="cpu", seq=8, thoughts=1)
    assert opened.quiet.model.config.eos_id == opened.tokenizer.eos_id == 2


def test_question_sets_are_answered_or_refused_in_one_line(checkpoint, tmp_path, capsys):
    asked = ["tasks", str(checkpoint / "weights"), "arithmetic", "--limit=2"]
    asked += ["--thoughts=1", "--device=cpu", f"--out={tmp_path}"]
    direct = [*asked, "--samples=1"]
    if checkpoint.name.startswith("normalising"):  # it knows no newline, by which answers end
        assert evaluate.main(direct) == 2
        assert "expected a token for '\\n', found none" in capsys.readouterr().err
    else:
        assert evaluate.main(direct) == evaluate.main([*asked, "--votes=2"]) == 0


def test_the_harness_scores_and_generates(checkpoint):
    pytest.importorskip("lm_eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qs.evaluation.harness import harness_model

        adapter = harness_model()(pretrained=str(checkpoint / "weights"), device="cpu")
    asked = [("3 plus", " 4"), ("", "Then"), ("  ", "7")]
    scores = adapter.loglikelihood([SimpleNamespace(args=pair) for pair in asked])
    assert all(log_p < 0 for log_p, _ in scores)
    until = {"until": ["\n"], "max_gen_toks": 4}
    contexts = [SimpleNamespace(args=(text, until)) for text in ("3 plus", "", "\n")]
    assert len(adapter.generate_until(contexts)) == 3
    if checkpoint.name.startswith("normalising"):
        for context in ("", " "):
            with pytest.raises(ValueError, match="expected a continuation of"):
                adapter.loglikelihood([SimpleNamespace(args=(context, "\n"))])
