"""evaluate: a run is measured as it was trained; a command has only flags that it reads."""

import io
import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import make, run

import evaluate
from qs.data.dataset import TokenDataset
from qs.model import __main__ as main
from qs.tables import escaped


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return run(out, tiny.flags(out, "--start-text", "plus", "--sample-temperature", "0.7"))


def test_a_run_scores_what_it_scored_at_its_end(trained, capsys):
    assert evaluate.main([str(trained), "--rows", "6"]) == 0
    found = json.loads((trained / "evaluation.json").read_text())
    expected = json.loads((trained / "results.json").read_text())["after"]
    assert found["score"]["text"] == pytest.approx(expected["text"])
    assert found["checkpoint"] == "step_000006"
    assert f"{expected['text']['nll_mix']:14.4f}" in capsys.readouterr().out


def test_thoughts_of_another_length_change_only_what_follows_thoughts(trained):
    scores = []
    for n in ("0", "5"):
        assert evaluate.main([str(trained), "--rows", "6", "--thoughts", n]) == 0
        path = trained / f"evaluation-thoughts-{n}.json"
        scores.append(json.loads(path.read_text())["score"]["text"])
    short, long = scores
    assert short["nll_base"] == pytest.approx(long["nll_base"], abs=1e-6)
    assert short["nll_mix"] != long["nll_mix"]


def test_passages_are_shown_with_their_thoughts_and_all_of_them_on_a_page(trained, capsys):
    before = (trained / "thoughts.html").read_text()
    assert evaluate.main([str(trained), "--rows", "4", "--show", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(", part ") == 2
    page = trained / "thoughts-eval-rows-4.html"
    assert page.read_text().count("<section") > 2
    assert f"as a page: {page}" in printed
    assert (trained / "thoughts.html").read_text() == before


def test_a_checkpoint_that_is_no_run_is_measured_and_nothing_is_written(tiny, capsys):
    before = sorted(tiny.weights.iterdir())
    flags = ["--data", str(tiny.data), "--rows", "2", "--seq", "16", "--thoughts", "1"]
    assert evaluate.main([str(tiny.weights), *flags]) == 0
    assert sorted(tiny.weights.iterdir()) == before
    assert "with thoughts" in capsys.readouterr().out


def test_a_checkpoint_that_was_copied_out_of_its_run_is_measured_as_any_other(
    tiny, trained, tmp_path, capsys
):
    step = trained / "step_000006"
    copy = shutil.copytree(step, tmp_path / step.name)
    flags = ["--rows", "2", "--seq", "16", "--data", str(tiny.data)]
    assert evaluate.main([str(copy), *flags]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [step.name]
    assert evaluate.main([str(copy)]) == 2
    assert "step_000006 is no run, so give --data" in capsys.readouterr().err
    (tmp_path / "log.jsonl").touch()  # a run that has lost its settings is not taken as another
    assert evaluate.main([str(copy), *flags]) == 2
    assert "expected the folder of a run, found no config.json" in capsys.readouterr().err


def test_an_exported_run_scores_as_the_run(tiny, trained, tmp_path, capsys):
    out = tmp_path / "released"
    assert main.main(["export", str(trained), "--layout", "quietstar", f"--out={out}"]) == 0
    capsys.readouterr()
    flags = ["--rows", "6", "--seq", "16", "--data", str(tiny.data)]  # n is stored
    lines = []
    for model in (trained, out):
        assert evaluate.main([str(model), *flags]) == 0
        printed = capsys.readouterr().out.splitlines()
        lines.append([x for x in printed if x.startswith(("  ", "thought"))])
    assert lines[0] == lines[1]
    assert len(lines[0]) == 9
    assert lines[0][0] == "thought 2 tokens, in rows of 16; temperature 0.7, seed 0"


def test_an_exported_run_of_pauses_pauses(tiny, tmp_path, capsys):
    made = run(tmp_path / "made", tiny.flags(tmp_path / "made", "--objective=pause"))
    out = tmp_path / "released"
    assert main.main(["export", str(made), "--layout", "quietstar", f"--out={out}"]) == 0
    capsys.readouterr()
    flags = ["--rows", "6", "--seq", "16", "--data", str(tiny.data)]
    lines = []
    for model in (made, out):
        for seed in ("0", "1"):  # nothing is drawn
            assert evaluate.main([str(model), *flags, "--seed", seed]) == 0
            printed = capsys.readouterr().out.splitlines()
            lines.append([x for x in printed if x.startswith("  ")])
    assert lines[0] == lines[1] == lines[2] == lines[3]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    return run(out, tiny.flags(out, "--objective=plain", "--steps=1", "--thoughts=1"))


def test_hard_tokens_of_a_model_that_does_not_think_are_refused(plain, capsys):
    assert evaluate.main(["text", str(plain)]) == 2
    error = capsys.readouterr().err.strip()
    assert "text expects a model that thinks" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(
            (
                f"{command} {flag}",
                f"{flag.split('=')[0]} is of sampled thoughts, and {{step}} has "
                "none by its --objective plain: leave it out",
            )
            for command, flag in (
                ("score {run}", "--thoughts=2"),
                ("score {run}", "--sample-temperature=0"),
                ("score {run}", "--show=2"),
                ("plot {run}", "--thoughts=2"),
            )
        ),
        *(
            (
                f"{command} {flag}",
                f"{flag.split('=')[0]} is of thoughts, and {{step}} has none "
                "unasked: give --thoughts N, or leave it out",
            )
            for command, flag in (
                ("tasks {run} arithmetic", "--samples=2"),
                ("generate {run} 1", "--think-temperature=1"),
                ("generate {run} 1", "--fixed-weight=0.5"),
            )
        ),
        ("generate {run} 1 --top-p=0.2", "--top-p is of drawn tokens, and --temperature 0 draws"),
        *(
            (
                f"generate {{run}} 1 --think-when=never {flag}",
                f"{flag.split('=')[0]} is of thoughts"
                ", and by --think-when never there are none: leave one out",
            )
            for flag in ("--think-temperature=1", "--fixed-weight=0.5")
        ),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused_in_one_line(plain, capsys, words, message):
    before = sorted(plain.iterdir())
    step = plain / "step_000001"
    assert evaluate.main(words.format(run=plain).split()) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {message.format(step=step)}")
    assert "\n" not in error
    assert sorted(plain.iterdir()) == before


def test_no_temperature_is_asked_of_what_is_not_sampled(trained, capsys):
    flags = ["--thoughts=0", "--rows=2"]
    assert evaluate.main([str(trained), *flags, "--sample-temperature=1"]) == 2
    assert "has none by its --thoughts 0: leave it out" in capsys.readouterr().err


def test_a_model_that_was_not_trained_to_think_does_where_it_is_asked_to(
    tiny, plain, tmp_path, capsys
):
    assert evaluate.main(["score", str(plain)]) == 0
    assert "thought none, in rows of 16\n" in capsys.readouterr().out
    text = [str(tiny.weights), f"--data={tiny.data}", "--seq=16", "--rows=2"]
    for flags, told in ([], "none, in"), (["--thoughts=2", "--show=1"], "2 tokens, in"):
        assert evaluate.main(["score", *text, *flags]) == 0
        printed = capsys.readouterr().out
        assert f"thought {told} rows of 16" in printed
        assert ("gain by thinking" in printed) == bool(flags)
    assert evaluate.main(["text", *text, "--thoughts=2", f"--out={tmp_path / 'text'}"]) == 0
    capsys.readouterr()
    unasked = f"{tiny.weights} has none unasked: give --thoughts N, or leave it out"
    for flag in "--show=1", "--sample-temperature=1":
        assert evaluate.main(["score", *text, flag]) == 2
        assert unasked in capsys.readouterr().err
    not_asked, trained = "does not unasked: give --thoughts N", "was trained with --objective plain"
    for model, why in (tiny.weights, not_asked), (plain, trained):
        assert evaluate.main(["text", str(model), *text[1:]]) == 2
        assert f"a model that thinks, and {model} {why}\n" in capsys.readouterr().err
    for model in (plain, tiny.weights):
        for flags, thoughts in ([], 0), (["--thoughts=2"], 2), (["--think-when=always"], 2):
            assert evaluate.main(["generate", str(model), "1", "--max-tokens=2", *flags]) == 0
            assert f"[2 tokens, {thoughts} thoughts" in capsys.readouterr().out
        for flags, n in ([], 0), (["--thoughts=2", "--samples=1"], 2):
            out = tmp_path / f"{model.name}{n}"
            asked = ["tasks", str(model), "arithmetic", "--limit=1", f"--out={out}"]
            status = evaluate.main([*asked, *flags])
            printed = capsys.readouterr()
            assert status == 0, printed.err
            assert f"thoughts of n {n}" in printed.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere"),
        (["{run}", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["{run}", "--data", "nowhere"], "qs.data prepare"),
        (["{run}", "--seq", "4000"], "--seq 4000"),
        (["{run}", "--thoughts", "-1"], "--thoughts must be at least 0"),
        (["{run}", "--device", "cuda"], "--device"),
        (["{run}", "--device", "abacus"], "--device"),
        (["{run}", "--colour"], "--colour"),
    ],
)
def test_a_refusal_is_one_line(trained, capsys, monkeypatch, flags, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert evaluate.main([flag.format(run=trained) for flag in flags]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_an_exported_sigmoid_head_is_read_as_one(tiny, tmp_path, capsys):
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", "--mix-weight", "sigmoid"))
    out = tmp_path / "exported"
    assert main.main(["export", str(found), "--layout", "quietstar", f"--out={out}"]) == 0
    flags = ["--data", str(tiny.data), "--rows", "2", "--seq", "16", "--thoughts", "2"]
    assert evaluate.main([str(out), *flags]) == 0


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory", 2),
        (MemoryError(), "out of memory", 2),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_what_stops_an_evaluation_is_told_in_one_line(
    trained, monkeypatch, capsys, error, line, status
):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(evaluate, "heldout_score", fail)
    assert evaluate.main([str(trained), "--rows", "2"]) == status
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {line}")


def test_a_checkpoint_that_is_no_run_needs_data(tiny, capsys):
    assert evaluate.main([str(tiny.weights)]) == 2
    assert "give --data" in capsys.readouterr().err


@pytest.fixture
def questions(tmp_path):
    """A data folder with three questions of each published set."""
    for task, name in (("gsm8k", "test.jsonl"), ("commonsense_qa", "validation.jsonl")):
        lines = []
        for i in range(3):
            gsm8k = {"question": f"{i} plus {i}?", "answer": f"Easy.\n#### {2 * i}"}
            choices = [{"label": label, "text": str(i)} for label in "AB"]
            choice = {"question": {"stem": f"{i} plus {i}?", "choices": choices}, "answerKey": "B"}
            lines.append(json.dumps((gsm8k if task == "gsm8k" else choice) | {"id": f"q{i}"}))
        path = tmp_path / "data" / task / name
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A run whose tokenizer has the letters and digits of answers."""
    folder = tmp_path_factory.mktemp("spoken")
    texts = ["(A) plus (B) times A: A B\nA: B\nA: 1 Q:"] * 40
    made = make(folder, extra=texts, positions=128)
    return run(folder / "out", made.flags(folder / "out", "--start-text", "plus"))


def test_question_sets_are_scored_into_the_results_of_the_run(spoken, questions, capsys):
    before = json.loads((spoken / "results.json").read_text())
    page = questions / "page.md"
    flags = ["gsm8k,commonsense_qa", f"--questions={questions}", "--samples=2"]
    assert evaluate.main(["tasks", str(spoken), *flags, f"--markdown={page}"]) == 0
    printed = capsys.readouterr().out
    assert "gsm8k: 3 of 3 questions" in printed
    assert "commonsense_qa: 3 of 3 questions" in printed
    assert "times as many" in printed
    results = json.loads((spoken / "results.json").read_text())
    assert results["after"] == before["after"]
    assert {found["exam"]["task"] for found in results["exams"].values()} == {
        "gsm8k",
        "commonsense_qa",
    }
    for name, found in results["exams"].items():
        assert found["environment"].keys() >= {"commit", "torch", "device"}
        assert len((spoken / name).read_text().splitlines()) == 3
    assert f"written to {page}" in printed
    text = page.read_text()
    for part in (f"python evaluate.py tasks {spoken} gsm8k", "commit", "torch", "seed 0", "3 of 3"):
        assert part in text
    assert [x for x in text.splitlines() if x.startswith("## ")] == [
        f"## {escaped(f'{task}: 3 of 3 questions')}" for task in ("gsm8k", "commonsense_qa")
    ]
    shown = {cell for line in printed.splitlines() for cell in line.split("  ")}
    cells = {c.strip() for x in text.splitlines() if x.startswith("| gold") for c in x.split("|")}
    assert len(cells) > 4
    assert cells - {""} <= {cell.strip() for cell in shown}


def answers(model, questions, out, *more):
    """What a model answers to both sets: file -> lines."""
    flags = ["gsm8k,commonsense_qa", f"--questions={questions}"]
    flags += ["--samples=2"] * ("--thoughts=0" not in more)
    assert evaluate.main(["tasks", str(model), *flags, f"--out={out}", *more]) == 0
    lines = {}
    for path in out.glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            lines[path.name.partition("-")[0], line["id"]] = line
    return lines


@pytest.fixture(scope="module")
def released(spoken, tmp_path_factory):
    """The run in the released layout, its lengths not stored: as the published folder is."""
    out = tmp_path_factory.mktemp("released") / "model"
    assert main.main(["export", str(spoken), "--layout", "quietstar", f"--out={out}"]) == 0
    config = json.loads((out / "config.json").read_text())
    del config["quiet_star"]
    (out / "config.json").write_text(json.dumps(config))
    (out / "digests.json").unlink()
    return out


def test_the_released_layout_is_asked_as_the_run_that_it_holds(
    spoken, released, questions, tmp_path
):
    found = answers(released, questions, tmp_path / "released", "--thoughts=2")
    assert found == answers(spoken, questions, tmp_path / "run")
    assert any(x["gold_greedy"] != x["gold_base"] for x in found.values())


@pytest.mark.parametrize("name", ["start_embedding", "end_embedding", "talk_head.0.4.weight"])
def test_stored_vectors_and_head_are_used_as_they_are(released, questions, tmp_path, name):
    before = answers(released, questions, tmp_path / "before", "--thoughts=2")
    other = tmp_path / "other"
    shutil.copytree(released, other)
    stored = load_file(other / "model.safetensors")
    stored[name] = stored[name] + 0.5
    save_file(stored, other / "model.safetensors", {"format": "pt"})
    found = answers(other, questions, tmp_path / "after", "--thoughts=2")
    assert found.keys() == before.keys()
    for key, line in found.items():
        assert line["gold_base"] == before[key]["gold_base"]
        assert line["gold_greedy"] != before[key]["gold_greedy"]


def test_weights_that_were_replaced_are_asked_anew(released, questions, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(released, model)
    before = answers(model, questions, out, "--thoughts=2")
    stored = load_file(model / "model.safetensors")
    stored["lm_head.weight"] = -stored["lm_head.weight"]
    save_file(stored, model / "model.safetensors", {"format": "pt"})
    assert len(list(out.glob("*.jsonl"))) == 2
    answers(model, questions, out, "--thoughts=2")
    assert len(list(out.glob("*.jsonl"))) == 4
    shutil.copytree(released, tmp_path / "moved")
    assert answers(tmp_path / "moved", questions, out, "--thoughts=2").keys() == before.keys()
    assert len(list(out.glob("*.jsonl"))) == 4


def test_two_models_are_compared_and_a_comparison_with_nothing_is_refused_at_once(
    spoken, released, questions, tmp_path, capsys
):
    answers(released, questions, tmp_path / "base", "--thoughts=0")
    answers(spoken, questions, tmp_path / "run", f"--against={tmp_path / 'base'}")
    printed = capsys.readouterr().out
    assert printed.count(f"minus {tmp_path / 'base'}") == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for found in results["exams"].values():
        assert found["against"]["questions"] == 3
        assert found["against"]["gold_base"]["mean"] == pytest.approx(0, abs=1e-6)
    flags = ["gsm8k", f"--questions={questions}", f"--out={tmp_path / 'new'}"]
    assert evaluate.main(["tasks", str(spoken), *flags, f"--against={tmp_path / 'new'}"]) == 2
    assert "expected answers of gsm8k-direct to compare with" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    path = questions / "gsm8k" / "test.jsonl"  # other questions, by the same names
    path.write_text(path.read_text().replace("plus", "times"))
    assert evaluate.main(["tasks", str(spoken), *flags, f"--against={tmp_path / 'base'}"]) == 2
    assert "found none with the same id, text, choices and answer" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_question_that_was_changed_has_a_new_answer(spoken, questions, tmp_path, capsys):
    flags = ["gsm8k", f"--questions={questions}", f"--out={tmp_path / 'out'}", "--samples=1"]
    path, shown = questions / "gsm8k" / "test.jsonl", []
    for gold in ("#### 4", "#### 777", "#### 4"):
        path.write_text(path.read_text().replace("#### 777", "#### 4").replace("#### 4", gold))
        assert evaluate.main(["tasks", str(spoken), *flags]) == 0
        shown.append([x for x in capsys.readouterr().out.splitlines() if "  gold answer" in x])
    assert shown[0] == shown[2] != shown[1]


def test_a_task_that_was_finished_is_kept_when_the_next_is_interrupted(
    spoken, questions, tmp_path, monkeypatch, capsys
):
    asked = evaluate.question_sets.run

    def interrupted(exam, *rest):
        if exam.task == "commonsense_qa":
            raise KeyboardInterrupt
        return asked(exam, *rest)

    monkeypatch.setattr(evaluate.question_sets, "run", interrupted)
    flags = ["gsm8k,commonsense_qa", f"--questions={questions}", f"--out={tmp_path}"]
    assert evaluate.main(["tasks", str(spoken), *flags, "--samples=1"]) == 130
    assert "the same command does the rest" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert [x["exam"]["task"] for x in results["exams"].values()] == ["gsm8k"]


@pytest.mark.parametrize("flag", ["against", "out", "markdown", "questions"])
def test_a_name_that_a_shell_left_empty_is_refused(spoken, capsys, flag):
    assert evaluate.main(["tasks", str(spoken), "arithmetic", "--limit=2", f"--{flag}="]) == 2
    assert capsys.readouterr().err == f"error: --{flag}: expected a name, found none\n"


def test_sums_need_no_file(spoken, capsys):
    assert evaluate.main(["tasks", str(spoken), "arithmetic", "--limit=2", "--samples=1"]) == 0
    assert "arithmetic: 10 of 10 questions" in capsys.readouterr().out


def test_chains_are_voted_on(spoken, questions, capsys):
    flags = ["gsm8k", f"--questions={questions}", "--votes=2", "--limit=2"]
    assert evaluate.main(["tasks", str(spoken), *flags]) == 0
    assert "one chain is right" in capsys.readouterr().out


def test_text_is_continued_with_and_without_showing_thoughts(spoken, tmp_path, capsys, monkeypatch):
    flags = ["--max-tokens", "4", "--think-when", "always"]
    assert evaluate.main(["generate", str(spoken), "1 plus 1", *flags]) == 0
    plain = capsys.readouterr().out
    assert plain.startswith("1 plus 1")
    assert "4 thoughts" in plain
    assert "passes]" in plain
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1 plus\n2 plus\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompts.read_bytes())))
    for source in (str(prompts), "-"):
        assert evaluate.main(["generate", str(spoken), source, *flags, "--show-thoughts"]) == 0
        shown = capsys.readouterr().out
        assert shown.count("thought '") + shown.count('thought "') == 8
        assert shown.count("[4 tokens") == 2
    long = "1 plus 1\n" * 40  # longer than the name of a file can be
    assert evaluate.main(["generate", str(spoken), long, *flags]) == 2
    assert "positions that the model was made for: shorten it" in capsys.readouterr().err
    prompts.write_text("")
    assert evaluate.main(["generate", str(spoken), str(prompts), *flags]) == 2
    assert "expected a prompt in each line, found no line" in capsys.readouterr().err
    assert evaluate.main(["generate", str(spoken), "1", *flags[:2], "--think-when=never"]) == 0
    assert "0 thoughts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("tasks", ["gsm8k,spelling"], "some of gsm8k,commonsense_qa,arithmetic; got 'spelling'"),
        ("tasks", ["gsm8k", "--questions=nowhere"], "expected questions of gsm8k"),
        ("tasks", ["gsm8k", "--limit=0"], "--limit must be at least 1, got 0"),
        ("tasks", ["arithmetic", "--votes=-1"], "--votes must be at least 0, got -1"),
        *(
            ("tasks", ["gsm8k", *flags.split()], f"{flags.partition('=')[0]} is of {message}")
            for flags, message in (
                ("--temperature=1", "chains of thought: give --votes, or leave it out"),
                ("--max-tokens=8", "chains of thought: give --votes, or leave it out"),
                ("--max-tokens=384 --votes=0", "chains of thought: give --votes, or leave it out"),
                ("--samples=4 --votes=2", "direct answers: leave out --votes, or it"),
                ("--samples=9 --thoughts=0", "thoughts: leave out --thoughts 0, or it"),
            )
        ),
        ("generate", ["1", "--think-when=sometimes"], "expected always, never or entropy>X"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(spoken, capsys, command, flags, message):
    assert evaluate.main([command, str(spoken), *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_hard_tokens_are_told_with_what_sparing_thoughts_costs(tiny, trained, capsys):
    assert evaluate.main(["text", str(trained)]) == 0
    printed = capsys.readouterr().out
    for title in ("a tenth each", "thinking only where", "helped most", "hurt most"):
        assert title in printed
    found = json.loads((trained / "results.json").read_text())
    assert len(found["text"]["deciles"]) == len(found["text"]["frontier"]) == 10
    assert found["text"]["frontier"][0]["share"] == 1
    _, numbers = TokenDataset(tiny.data, "heldout").read(0, 6 * 16)  # rows of 16, cut anywhere
    pairs = zip(numbers, numbers[1:], range(1, len(numbers)), strict=False)
    assert found["text"]["documents"] == len({a for a, b, i in pairs if i % 16 and a == b})
    assert all(d["documents"] <= found["text"]["documents"] for d in found["text"]["deciles"])
    assert f"{found['text']['documents']:,} documents" in printed
    assert found["after"]["text"]["tokens"] == sum(d["tokens"] for d in found["text"]["deciles"])
    more = ["--sample-temperature=2", "--rows=2", "--seed=3"]
    for flags in (more, [f"--out={trained}"]):
        assert evaluate.main(["text", str(trained), *flags]) == 0
        later = json.loads((trained / "results.json").read_text())
        assert later["text"] == found["text"]
    other = later["text-sample-temperature-2.0-seed-3-eval-rows-2"]
    assert other["settings"]["thought"] == found["text"]["settings"]["thought"] | {
        "sample_temperature": 2.0
    }
    assert other["settings"]["run"]["eval_rows"] == 2
    assert other["checkpoint"] == "step_000006"


NEEDS = {  # each command: what stands beside it
    **{"score": "M", "tasks": "M gsm8k", "text": "M", "generate": "M 1"},
    **{"controls": "R", "ladder": "R", "rounds": "R R", "compare": "M M", "plot": "M"},
}
READ_BY = {  # each flag with a value: the commands that read it
    **dict.fromkeys(("--thoughts 3", "--seed 3"), "score tasks text generate plot"),
    "--device cpu": "score tasks text generate compare plot",
    "--rows 3": "score text controls plot",
    **dict.fromkeys(("--data D", "--seq 9", "--sample-temperature 1"), "score text plot"),
    "--compile": "score text plot",
    "--show 3": "score",
    **dict.fromkeys(("--questions D", "--limit 3", "--batch 3", "--samples 3"), "tasks"),
    **dict.fromkeys(("--votes 3", "--against D"), "tasks"),
    "--temperature 1": "tasks generate",
    "--out D": "tasks text",
    "--markdown F": "tasks text controls ladder rounds compare",
    **dict.fromkeys(("--top-p 1", "--fixed-weight 1"), "generate"),
    "--max-tokens 3": "tasks generate",
    **dict.fromkeys(("--think-when never", "--think-temperature 1"), "generate"),
    "--show-thoughts": "generate",
    **dict.fromkeys(("--seeds 3", "--jobs 3"), "controls ladder"),
    **dict.fromkeys(("--arms none", "--lengths 0,5"), "controls"),
    "--only plain": "ladder",
    **dict.fromkeys(("--on world", "--problems 3"), "compare"),
}


@pytest.fixture
def called(monkeypatch):
    """Commands that say that they were called, and do nothing."""
    calls = []
    for name in NEEDS:

        def command(args, name=name):
            calls.append(name)

        command.__name__ = name
        monkeypatch.setattr(evaluate, name, command)
    return calls


@pytest.mark.parametrize("command", NEEDS)
def test_every_flag_of_a_command_says_who_reads_it(command, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([command, "--help"])
    printed = capsys.readouterr().out
    flags = set(re.findall(r"^  (--[a-z-]+)", printed, re.M))
    assert flags == {flag.split()[0] for flag in READ_BY if command in READ_BY[flag].split()}
    assert len(printed.splitlines()) < 60
    assert printed.count("[") >= len(flags) - 4  # values without a flag


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_is_called_by_its_name(command, called):
    assert evaluate.main([command, *NEEDS[command].split()]) == 0
    assert called == [command]


@pytest.mark.parametrize("flag", READ_BY)
def test_a_flag_is_taken_where_it_is_read_and_refused_elsewhere(flag, called, capsys):
    for command, needs in NEEDS.items():
        reads = command in READ_BY[flag].split()
        assert evaluate.main([command, *needs.split(), *flag.split()]) == (0 if reads else 2)
        error = capsys.readouterr().err.strip()
        refusal = f"error: unrecognized arguments: {flag}; see python evaluate.py {command} --help"
        error = re.sub(r"; (did you mean|there is) [^;]*", "", error)  # flags of its own
        assert error == ("" if reads else refusal)
    assert called == READ_BY[flag].split()


def test_the_manual_has_an_example_of_every_command(capsys):
    for arguments in ([], ["--colour"]):
        assert evaluate.main(arguments) == 2
        assert "see python evaluate.py --help" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    printed = capsys.readouterr().out
    assert re.findall("^    python evaluate.py ([a-z]+) ", printed, re.M) == list(NEEDS)


def test_a_model_alone_is_scored_and_a_wrong_command_is_told_which_there_are(called, tiny, capsys):
    assert evaluate.main([str(tiny.weights), "--rows=3"]) == 0
    assert called == ["score"]
    assert evaluate.main(["scroe", str(tiny.weights)]) == 2
    error = capsys.readouterr().err.strip()
    assert f"a command: {', '.join(NEEDS)}" in error
    assert "\n" not in error
    assert evaluate.main(["mistral-7b"]) == 2
    assert "hf download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("R --tasks gsm8k --votes 3", "--tasks is a command now: see python evaluate.py tasks --h"),
        ("R --tasks=text", "see python evaluate.py tasks --help"),
        ("R --generate 1 --data D", "see python evaluate.py generate --help"),
        ("--controls R --thoughts 3", "see python evaluate.py controls --help"),
        ("--rounds R R", "see python evaluate.py rounds --help"),
        ("--compare M M --votes 3", "see python evaluate.py compare --help"),
        ("--plot R --show 1", "see python evaluate.py plot --help"),
    ],
)
def test_a_command_line_of_old_is_told_the_new_one_in_one_line(flags, message, called, capsys):
    assert evaluate.main(flags.split()) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not called
