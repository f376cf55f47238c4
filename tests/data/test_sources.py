"""sources: every file with documents is read once, and all others are named with the reason."""

import os

import pytest

from qs.data.sources import find_files


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def read(found):
    return [path for files in found.files.values() for path in files]


def test_links_are_followed_and_a_loop_ends(tmp_path):
    put(tmp_path / "big/deep/one.jsonl", tmp_path / "links/two.jsonl", tmp_path / "blob")
    links = tmp_path / "links"
    (links / "sub").symlink_to("../big")
    (links / "loop").symlink_to("../links")
    (links / "self.jsonl").symlink_to("self.jsonl")
    (links / "gone.jsonl").symlink_to("nowhere")
    (links / "store.jsonl").symlink_to("../blob")  # as a download client stores files
    found = find_files([links])
    assert read(found) == [
        links / name for name in ("store.jsonl", "sub/deep/one.jsonl", "two.jsonl")
    ]
    assert found.passed_over == {
        "a link to nothing": [links / "gone.jsonl", links / "self.jsonl"],
        "read already": [links / "loop"],
    }


def test_kinds_are_told_by_their_suffix_in_either_case_and_all_others_are_named(tmp_path):
    documents = ["A.JSONL", "b.Json.GZ", "c.jsonl.zst", "d.TXT", "e.parquet", "readme.jsonl"]
    about = ["README.txt", "dataset_info.json", "dataset_infos.json", "requirements.txt"]
    hidden = [".cache/x.jsonl", ".x.txt"]
    put(*(tmp_path / name for name in (*documents, *about, *hidden, "notes.md")))
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = find_files([tmp_path])
    assert read(found) == [tmp_path / name for name in documents]
    assert found.passed_over == {
        "hidden": [tmp_path / ".cache", tmp_path / ".x.txt"],
        "about the data, by its name": [tmp_path / name for name in about],
        "of another kind": [tmp_path / "notes.md"],
        "no plain file": [tmp_path / "pipe.jsonl"],
    }
    report = found.report().splitlines()
    assert report[0] == f"{tmp_path}: 6 file(s) read"
    assert f"1 passed over (no plain file): {tmp_path / 'pipe.jsonl'}" in report
    assert read(find_files([tmp_path / "README.txt"])) == [tmp_path / "README.txt"]


def test_what_is_given_twice_is_read_once_and_many_are_counted(tmp_path):
    put(
        *(tmp_path / f"{i:02}.txt" for i in range(30)),
        *(tmp_path / f"{i:02}.md" for i in range(12)),
    )
    found = find_files([tmp_path / "07.txt", tmp_path, tmp_path])
    assert len(read(found)) == len(set(read(found))) == 30
    assert read(found)[0] == tmp_path / "07.txt"
    assert "12 passed over (of another kind): " in found.report()
    assert found.report().endswith(", ...") or ", ...\n" in found.report()
    assert "and 21 more sources" in find_files(read(found)).report()


@pytest.mark.parametrize("name", ["pipe.jsonl", "folder", "notes.md", "missing"])
def test_a_source_without_documents_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.jsonl")
    put(tmp_path / "notes.md", tmp_path / "folder/README.txt")
    kinds = {"folder": "a folder without any", "notes.md": "of another kind"}
    said = f"found {kinds.get(name, 'no plain file')}; give files"
    said = "missing: expected a file or folder, found none$" if name == "missing" else said
    with pytest.raises(ValueError, match=said):
        find_files([tmp_path / name])
    with pytest.raises(ValueError, match="note.md: .*found none; did you mean notes.md"):
        find_files([tmp_path / "note.md"])


def test_names_of_files_are_shown_and_not_obeyed(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b\x1b[2J").touch()
    assert find_files([tmp_path]).report().endswith(r"b\x1b[2J")


def test_what_this_project_writes_about_data_is_no_document(tmp_path):
    about = [tmp_path / name for name in ("digests.json", "meta.json", "world.json")]
    put(tmp_path / "a.jsonl", *about)
    found = find_files([tmp_path])
    assert read(found) == [tmp_path / "a.jsonl"]
    assert found.passed_over == {"about the data, by its name": about}


HELD, NOT_HELD = "held out by its name; for --heldout-source", "not held out by its name"
FOLDERS = [  # files to train on, files that are held out
    (["train.jsonl"], ["heldout.jsonl"]),
    (["en/c4-train.00000-of-01024.json.gz"], ["en/c4-validation.00000-of-00008.json.gz"]),
    (
        ["data/train-00000-of-00001.parquet", "extra.jsonl"],
        ["data/test-00000-of-00001.parquet", "data/valid_0.parquet"],
    ),
    (["latest.txt", "Train/latest/a.txt", "dev/train.txt"], ["dev/1.txt", "train/x.eval.txt"]),
    (["training.txt"], ["held-out.txt", "test2.txt", "val.txt"]),
    (["train.txt", "retest.txt", "developer/a.txt"], []),
    ([], ["test.txt", "validation/a.txt"]),
]


@pytest.mark.parametrize(("trained", "held"), FOLDERS)
def test_of_a_folder_with_both_splits_one_is_read_and_the_other_is_named(tmp_path, trained, held):
    trained, held = ([tmp_path / name for name in names] for names in (trained, held))
    put(*trained, *held)
    training, holding = find_files([tmp_path]), find_files([tmp_path], "heldout")
    if trained and held:
        assert sorted(read(training)) == sorted(trained)
        assert sorted(read(holding)) == sorted(held)
        assert [*training.passed_over] == ["held out by its name; for --heldout-source"]
        assert [*holding.passed_over] == ["not held out by its name"]
        assert sorted(*holding.passed_over.values()) == sorted(trained)
    else:
        assert sorted(read(training)) == sorted(read(holding)) == sorted(trained + held)


def test_a_file_that_is_given_by_itself_is_read_whatever_its_name_says(tmp_path):
    one, other, names = tmp_path / "train.txt", tmp_path / "test.txt", tmp_path / "world.json"
    put(one, other, names)
    assert read(find_files([one, other, names])) == [one, other, names]
    for sources in ([tmp_path, other], [other, tmp_path]):
        assert sorted(read(find_files(sources))) == [other, one]
    assert read(find_files([one, tmp_path])) == [one]
