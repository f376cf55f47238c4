"""prepare: the tokens of the documents come back in order, whatever happens while preparing."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import tokenizer_files
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qs.data import prepare as prepare_
from qs.data.__main__ import main
from qs.data.dataset import TokenDataset, resolve_data, sequential
from qs.data.prepare import prepare_dataset
from qs.model import __main__ as model_commands
from qs.model.tokenizer import Tokenizer, train_tokenizer

TEXTS = st.lists(st.text("ab \né", max_size=12), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a b ab ba\nabba"] * 9, folder, 266)
    return folder


def write(path, texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps({"url": "x", field: text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def make(where, folder, texts, **settings):
    """A prepared dataset of some texts, made in this process."""
    source = write(Path(where) / "in.jsonl", texts)
    prepare_dataset([source], Path(where) / "out", folder, **{"workers": 1, **settings})
    return Path(where) / "out"


def stream(folder, texts):
    """Naive: the tokens of all documents, one after the other, and each token's document."""
    tokenizer = Tokenizer(folder)
    rows = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    return sum(rows, []), [number for number, row in enumerate(rows) for _ in row]


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@given(texts=TEXTS, shard_tokens=st.integers(1, 40), seq=st.integers(1, 9))
@example(texts=["", "a"], shard_tokens=1, seq=2)
def test_documents_through_shards_are_the_same_stream(folder, texts, shard_tokens, seq):
    assume(any(text.strip() for text in texts))
    tokens, owners = stream(folder, texts)
    with tempfile.TemporaryDirectory() as where:
        out = make(where, folder, texts, heldout=0, shard_tokens=shard_tokens)
        dataset = TokenDataset(out)
        assert (dataset.tokens, dataset.documents) == (len(tokens), len(texts))
        for shard in dataset.meta["splits"]["train"]["shards"]:
            assert shard["documents"] == 1 or shard["tokens"] <= shard_tokens
        seen, batch = [], sequential(dataset, seq, 999)
        for ids, numbers in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
            start, real = len(seen), [n for n in numbers if n >= 0]
            seen += ids[: len(real)]
            expected = [n - owners[start] for n in owners[start : start + seq]]
            padding = seq - len(expected)
            assert numbers == expected + [-1] * padding
            assert ids[len(real) :] == [0] * padding
        assert seen == tokens


@settings(max_examples=25)
@given(
    texts=st.lists(st.text("ab", max_size=6), min_size=2, max_size=12, unique=True),
    heldout=st.floats(0.001, 0.999),
    seed=st.integers(0, 99),
)
def test_both_splits_have_documents_and_together_have_all(folder, texts, heldout, seed):
    with tempfile.TemporaryDirectory() as where:
        out = make(where, folder, texts, heldout=heldout, seed=seed)
        again = make(Path(where) / "x", folder, texts, heldout=heldout, seed=seed)
        assert {n: b for n, b in contents(out).items() if n != "meta.json"} == {
            n: b for n, b in contents(again).items() if n != "meta.json"
        }
        found = []
        for split in ("train", "heldout"):
            dataset = TokenDataset(out, split)
            assert dataset.documents >= 1
            ids, owners = dataset.read(0, dataset.tokens)
            found += [tuple(ids[owners == n]) for n in range(dataset.documents)]
    assert sorted(found) == sorted(tuple(stream(folder, [text])[0]) for text in texts)


def test_copies_of_a_document_are_never_in_both_splits(tmp_path, folder):
    texts = [f"{'ab' * (i % 20)}" for i in range(200)]
    out = make(tmp_path, folder, texts, heldout=0.3)
    documents_of = {}
    for split in ("train", "heldout"):
        dataset = TokenDataset(out, split)
        ids, owners = dataset.read(0, dataset.tokens)
        documents_of[split] = {tuple(ids[owners == n]) for n in range(dataset.documents)}
        assert dataset.documents % 10 == 0
    assert not documents_of["train"] & documents_of["heldout"]


def test_the_seed_changes_what_is_held_out_and_the_ends_hold_none_or_all(tmp_path, folder):
    texts = ["a" * i for i in range(40)]
    held = [
        contents(make(tmp_path / str(s), folder, texts, heldout=0.3, seed=s))["heldout-00000.bin"]
        for s in range(3)
    ]
    assert len(set(held)) == 3
    for heldout, count in ((0, 0), (1, 40)):
        out = make(tmp_path / f"h{heldout}", folder, texts, heldout=heldout)
        assert TokenDataset(out, "heldout").documents == count
        assert TokenDataset(out, "train").documents == 40 - count


def test_the_number_of_workers_does_not_change_a_byte(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setattr(prepare_, "CHUNK", 500)  # many chunks of little text
    monkeypatch.chdir(tmp_path)
    texts = [f"{i} ab " * (i % 9) for i in range(300)]
    write(Path("in/b.jsonl.gz"), texts[:200])
    write(Path("in/c.jsonl"), [*texts[200:], "\ud800"])
    for workers in (1, 2, 3):
        prepare_dataset(
            ["in"], f"out{workers}", folder, heldout=0.1, workers=workers, shard_tokens=900
        )
    files = contents(Path("out1"))
    assert len(files) > 7
    assert files == contents(Path("out2")) == contents(Path("out3"))
    assert "tokens and" in capsys.readouterr().out


def test_more_than_one_percent_malformed_stops_and_leaves_nothing(tmp_path, folder, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n' * 197 + "x\n" * 2)
    out = tmp_path / "sub" / "out"
    arguments = ["prepare", str(source), "--out", str(out), "--tokenizer", str(folder)]
    assert main([*arguments, "--workers", "1"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: expected at most 1 % malformed records, found 2 of 199")
    assert not list(out.parent.iterdir())
    source.write_text('{"text": "a"}\n' * 198 + "x\n" * 2)
    assert main([*arguments, "--workers", "1"]) == 0


def test_documents_that_are_too_long_are_left_out_told_and_recorded(tmp_path, folder, capsys):
    source = write(tmp_path / "in.jsonl", ["a b"] * 90 + ["a " * 400] * 10)
    commands = {
        "data": ["prepare", f"--tokenizer={folder}", "--workers=1"],
        "tokens": ["tokenizer", "--vocab=264"],
    }
    for name, (command, *flags) in commands.items():
        arguments = [command, str(source), f"--out={tmp_path / name}", *flags]
        assert main([*arguments, "--max-document=200"]) == 0
        found = "0 malformed records, 10 longer than --max-document left out"
        assert found in capsys.readouterr().out
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    assert (meta["malformed"], meta["too_long"]) == (0, 10)
    assert meta["splits"]["train"]["documents"] + meta["splits"]["heldout"]["documents"] == 90


def test_a_folder_that_synthetic_wrote_trains_on_what_is_not_held_out(tmp_path, folder, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert main(["synthetic", f"--out={raw}", "--documents=30", "--tests=9"]) == 0
    lines = (raw / "heldout.jsonl").read_text().splitlines()
    reserved = [json.loads(line)["text"] for line in lines]
    prepare_dataset([raw], out, folder, heldout=0.0, workers=1)
    assert TokenDataset(out, "train").documents == 30
    told = capsys.readouterr().out
    assert "\n0 malformed records left out" in told
    assert f"1 passed over (held out by its name; for --heldout-source): {raw}/heldout" in told
    prepare_dataset([raw], out, folder, workers=1, heldout_sources=[raw], overwrite=True)
    assert TokenDataset(out, "train").documents == 30
    held = TokenDataset(out, "heldout")
    assert held.documents == 9
    size = sum(len(text.encode()) for text in reserved)
    assert held.meta["splits"]["heldout"]["bytes"] == size
    assert held.meta["heldout"] is None  # a fraction that nothing was split by
    assert "warning" not in capsys.readouterr().out


def test_a_preparation_that_fails_in_the_middle_leaves_the_old_dataset(
    tmp_path, folder, monkeypatch
):
    out = make(tmp_path, folder, ["a", "b"])
    before = contents(out)
    monkeypatch.setattr(prepare_, "CHUNK", 10)
    calls = []

    def fail(self, text, **settings):
        calls.append(text)
        if len(calls) > 20:
            raise OSError("disk on fire")
        return [1, 5, 2]

    monkeypatch.setattr(Tokenizer, "encode", fail)
    with pytest.raises(OSError, match="disk on fire"):
        make(tmp_path, folder, ["c"] * 50, overwrite=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]


def test_a_dataset_whose_replacement_was_killed_between_two_renames_is_put_back(
    tmp_path, folder, monkeypatch
):
    out = make(tmp_path, folder, ["a", "b"])
    before, rename = contents(out), Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "rename", lambda self, to: rename(self, to) if self == out else os._exit(9)
        )
        if not (child := os.fork()):
            make(tmp_path, folder, ["c"] * 9, overwrite=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not out.exists()
    with pytest.raises(ValueError, match="out: expected a new folder, found one"):
        make(tmp_path, folder, ["c"] * 9)
    assert contents(out) == before
    assert make(tmp_path, folder, ["c"] * 9, overwrite=True) == out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_preparation_leaves_nothing_that_would_be_read(tmp_path, folder, how):
    source = write(tmp_path / "in" / "a.jsonl", ["ab " * 200_000 + str(i) for i in range(40)])
    command = [sys.executable, "-m", "qs.data", "prepare", str(source), "--workers", "1"]
    command += ["--out", str(tmp_path / "out"), "--tokenizer", str(folder)]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not (parts := list(tmp_path.glob(".out.tmp/*.bin"))):
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.send_signal(how)
        error = job.communicate(timeout=20)[1]
    finally:
        job.kill()
        job.wait()
    assert job.returncode != 0
    assert not (tmp_path / "out").exists()
    if how == signal.SIGKILL:
        with pytest.raises(ValueError, match=r"meta\.json: expected .* No such file"):
            TokenDataset(parts[0].parent)
    else:
        assert error.endswith("; nothing was kept\n")
        assert "Traceback" not in error
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_ctrl_c_while_workers_start_is_told_in_one_line(tmp_path, folder):
    source = write(tmp_path / "in" / "a.jsonl", ["ab " * 100_000] * 40)
    command = [sys.executable, "-m", "qs.data", "prepare", str(source), "--workers", "2"]
    command += ["--out", str(tmp_path / "out"), "--tokenizer", str(folder)]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob(".out.tmp")):
        assert job.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)  # a worker imports for longer
    os.killpg(job.pid, signal.SIGINT)  # as a terminal sends it, to all of them
    error = job.communicate(timeout=20)[1]
    assert error == "error: interrupted by SIGINT; nothing was kept\n"
    assert job.returncode == 128 + signal.SIGINT
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_workers_end_with_a_parent_that_is_killed(tmp_path, folder):
    source = write(tmp_path / "in" / "a.jsonl", ["ab " * 100_000] * 40)
    command = [sys.executable, "-m", "qs.data", "prepare", str(source), "--workers", "2"]
    command += ["--out", str(tmp_path / "out"), "--tokenizer", str(folder)]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.glob(".out.tmp/*.bin")):
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    # Every process of the job holds its standard error: end of file means that all have ended.
    job.communicate(timeout=20)
    assert job.returncode == -signal.SIGKILL


def test_a_worker_that_is_killed_is_told_in_one_line():
    with pytest.raises(ValueError, match="found one killed .*; give fewer --workers"):
        list(prepare_._in_order(os._exit, iter([1, 1]), 2))


def test_an_existing_folder_is_replaced_only_on_request_and_only_if_it_is_a_dataset(
    tmp_path, folder
):
    out = make(tmp_path, folder, ["a", "b"])
    with pytest.raises(ValueError, match="found one; replace it with --overwrite or choose anoth"):
        make(tmp_path, folder, ["c", "d", "e"])
    make(tmp_path, folder, ["c", "d", "e"], overwrite=True)
    documents_now = [TokenDataset(out, split).documents for split in ("train", "heldout")]
    assert sum(documents_now) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]
    (out / "meta.json").unlink()
    with pytest.raises(ValueError, match="out: expected a new folder, found one; remove it or"):
        make(tmp_path, folder, ["c"], overwrite=True)
    assert (out / "train-00000.bin").exists()


def test_what_a_person_keeps_beside_a_dataset_is_never_removed_with_it(tmp_path, folder):
    out = make(tmp_path, folder, ["a", "b"])
    (out / "world.json").write_text("{}")
    source = write(out / "raw.jsonl", ["c", "d", "e"])
    before = contents(out)
    with pytest.raises(ValueError, match="out: expected a dataset alone .*found raw.jsonl beside"):
        prepare_dataset([source], out, folder, workers=1, overwrite=True)
    assert contents(out) == before
    source = source.rename(tmp_path / "raw.jsonl")
    prepare_dataset([source], out, folder, workers=1, overwrite=True)
    assert contents(out) != before


def test_a_dataset_is_replaced_where_a_link_leads(tmp_path, folder, monkeypatch):
    out = make(tmp_path, folder, ["a", "b"])
    (tmp_path / "link").symlink_to("out")
    source = write(tmp_path / "in.jsonl", ["c", "d", "e"])
    prepare_dataset([source], tmp_path / "link", folder, workers=1, overwrite=True)
    assert sum(TokenDataset(out, split).documents for split in ("train", "heldout")) == 3
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "link", "out"]
    monkeypatch.chdir(out)
    with pytest.raises(ValueError, match="out: expected a new folder, found one; replace it"):
        prepare_dataset([source], ".", folder, workers=1)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_tokenizer_that_is_there_is_never_replaced(tmp_path, capsys, name):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / name).write_text("of a model")
    source = str(write(tmp_path / "in.jsonl", ["a b ab ba"] * 99))
    assert main(["tokenizer", source, f"--out={tmp_path / 't'}", "--vocab=264"]) == 2
    assert "t: expected a folder without a tokenizer, found one;" in capsys.readouterr().err
    assert contents(tmp_path / "t") == {name: b"of a model"}


@pytest.mark.parametrize(
    "wrong", [{"heldout": 1.5}, {"heldout": -1}, {"workers": 0}, {"shard_tokens": 0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(tmp_path, folder, wrong):
    with pytest.raises(ValueError, match="expected heldout from 0 to 1.*change what is out of"):
        make(tmp_path, folder, ["a"], **wrong)


def test_a_tokenizer_without_eos_is_refused(tmp_path, folder, monkeypatch):
    plain = Tokenizer(folder)
    plain.eos_id = None
    monkeypatch.setattr(prepare_, "_tokenizer", lambda folder, expected_hash: plain)
    with pytest.raises(ValueError, match="expected a tokenizer with EOS, found none in it or in"):
        make(tmp_path, folder, ["a"])


def test_unknown_tokens_are_counted_and_their_share_is_said(tmp_path, folder, capsys):
    pytest.importorskip("tokenizers")
    known = tokenizer_files.byte_fallback(tmp_path / "known")
    values = json.loads((known / "tokenizer.json").read_text())
    values["model"] |= {"byte_fallback": False, "fuse_unk": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    shutil.copy(known / "tokenizer_config.json", tmp_path)
    for tokenizer, unknown in ((tmp_path, 4), (known, 0), (folder, 0)):
        meta = make(
            tmp_path / f"of-{tokenizer.name}", tokenizer, ["the ΩΩ cat", "the ΩΩ"], heldout=0
        )
        printed = capsys.readouterr()
        assert json.loads((meta / "meta.json").read_text())["unknown"] == unknown
        assert ("4 tokens (30.8%) are unknown" in printed.out) == (unknown > 0)
        assert ("changes text: 'line" in printed.err) == (unknown > 0)


def test_a_tokenizer_that_changes_during_the_job_is_refused(folder):
    with pytest.raises(ValueError, match="changed during the preparation; start it again"):
        prepare_._tokenizer(str(folder), "another hash")


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path, folder, monkeypatch):
    large = Tokenizer(folder)
    large.vocab_size = 65537
    large.encode = lambda text, bos, eos: [1, 65536, 2]
    large.changes = lambda: None
    monkeypatch.setattr(prepare_, "Tokenizer", lambda folder: large)
    prepare_._tokenizer.cache_clear()
    try:
        dataset = TokenDataset(make(tmp_path, folder, ["a", "b"], heldout=0))
    finally:
        prepare_._tokenizer.cache_clear()
    assert dataset.meta["dtype"] == "uint32"
    assert dataset.read(0, 6)[0].tolist() == [1, 65536, 2] * 2


def test_data_names_resolve_to_folders_with_a_meta(tmp_path, folder, monkeypatch):
    out = make(tmp_path / "data", folder, ["a"])
    monkeypatch.chdir(tmp_path)
    assert resolve_data("out") == Path("data/out")
    assert resolve_data("data/out") == Path("data/out")
    assert resolve_data(str(out)) == out


def test_missing_data_ends_with_exactly_the_commands_to_run():
    owm = (
        "hf download open-web-math/open-web-math --repo-type dataset --include 'data/*' "
        "--local-dir data/raw/owm\n"
        "python -m qs.data prepare data/raw/owm --out data/owm --tokenizer weights/mistral-7b"
    )
    c4 = (
        "hf download allenai/c4 --repo-type dataset --include 'en/c4-train.0000*.json.gz' "
        "--local-dir data/raw/c4\n"
        "python -m qs.data prepare data/raw/c4 --out data/c4 --tokenizer weights/mistral-7b"
    )
    mine = "python -m qs.data prepare SOURCE --out data/mine --tokenizer weights/NAME"
    for name, lines in (("owm", owm), ("c4", c4), ("mine", mine)):
        with pytest.raises(ValueError, match="expected a prepared dataset") as caught:
            resolve_data(name)
        head, _, tail = str(caught.value).partition("\n")
        assert head.endswith("; or make it" if name == "mine" else "; run")
        assert tail == lines


def test_an_unknown_dataset_is_told_with_what_there_is_and_the_nearest():
    said = r"names in data \(.*tiny.*\); did you mean tiny\?; or make it"
    with pytest.raises(ValueError, match=said):
        resolve_data("tny")


@pytest.mark.parametrize("command", ["prepare", "init"])
def test_a_tokenizer_may_be_named_and_a_wrong_name_is_told(tmp_path, capsys, command):
    source = write(tmp_path / "in.jsonl", ["71600"])
    sizes = [f"--{name}=4" for name in ("dim", "layers", "hidden-dim", "max-positions")]
    rest = [str(source), "--workers=1"] if command == "prepare" else [*sizes, "--heads=2"]
    run = main if command == "prepare" else model_commands.main
    for name, status in (("tiny", 0), ("tny", 2)):
        out = tmp_path / name
        assert run([command, *rest, f"--out={out}", f"--tokenizer={name}"]) == status
        assert out.is_dir() is (status == 0)
    assert "did you mean tiny?" in capsys.readouterr().err


def test_the_two_commands_work_one_after_the_other(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", ["some text 12", "more of it"] * 60, field="body")
    tokenizer, out = tmp_path / "tokenizer", tmp_path / "out"
    common = [str(source), "--field", "body"]
    assert main(["tokenizer", *common, "--out", str(tokenizer), "--vocab", "290"]) == 0
    assert main(["prepare", *common, "--out", str(out), "--tokenizer", str(tokenizer)]) == 0
    last = capsys.readouterr().out.splitlines()
    assert last[-1] == str(out)
    assert "documents" in last[-4]
    assert last[-2] == f"{source}: 1 file(s) read"
    TokenDataset(out).check_tokenizer(Tokenizer(tokenizer))


def test_an_error_is_one_line_and_a_status(tmp_path, capsys):
    missing = str(tmp_path / "no")
    for arguments in (
        ["prepare", missing, "--out", str(tmp_path / "o"), "--tokenizer", missing],
        ["tokenizer", missing, "--out", str(tmp_path / "o")],
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_a_heldout_source_is_the_whole_heldout_split(tmp_path, folder):
    for name, texts in (("a", ["one", "two", "three"]), ("b", ["four", "five"])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    meta = prepare_dataset(
        [tmp_path / "a.jsonl"],
        tmp_path / "out",
        folder,
        workers=1,
        heldout_sources=[tmp_path / "b.jsonl"],
    )
    assert [meta["splits"][split]["documents"] for split in ("train", "heldout")] == [3, 2]
    for split, first in (("train", "one"), ("heldout", "four")):
        ids = TokenDataset(tmp_path / "out", split).read(0, 3)[0]
        assert first.startswith(Tokenizer(folder).decode(ids[1:2].tolist()))


def test_a_file_that_is_trained_on_and_held_out_is_named(tmp_path, folder, capsys):
    texts = tmp_path / "texts"
    source, other = (write(texts / f"{name}.jsonl", ["one", name]) for name in "ab")
    for out, sources, held in (
        ("out", [texts], {"heldout_sources": [source]}),
        ("apart", [other], {"heldout_sources": [source]}),
        ("drawn", [texts], {"heldout": 0.5}),
    ):
        prepare_dataset(sources, tmp_path / out, folder, workers=1, **held)
        printed = capsys.readouterr().out
        assert ("both trained on and held out" in printed) is (out == "out")
        assert out != "out" or f"1 file(s) both trained on and held out: {source}\n" in printed


def test_workers_start_without_torch():
    code = "import sys, qs.data, qs.data.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_is_said_where_nothing_or_the_larger_part_is_held_out(tmp_path, folder, capsys):
    make(tmp_path / "one", folder, ["a cat"])
    assert "warning: nothing is held out, of one document" in capsys.readouterr().out
    long, short = "the cat " * 50, "a"
    for seed in range(20):  # one of the two is drawn, or left
        out = make(tmp_path / f"two-{seed}", folder, [long, short], seed=seed)
        held = TokenDataset(out, "heldout").tokens > 50
        assert ("more is held out than trained on" in capsys.readouterr().out) == held
    make(tmp_path / "many", folder, [f"cat {i}" for i in range(50)], heldout=0.2)
    assert "warning" not in capsys.readouterr().out
