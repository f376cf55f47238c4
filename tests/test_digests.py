"""digests: what changed in anything that was written is named before it is read."""

import random
import shutil

import pytest
from checkpoints import SMALL, filled, filled_extras
from hypothesis import example, given
from hypothesis import strategies as st

from qs import plain
from qs.digests import DIGESTS, check_digests, damage, write_digests
from qs.files import write_json
from qs.model import shards
from qs.model.weights import save
from qs.plain import content_digest, digest_as_file, file_digest


def flip(path, place, bit):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small checkpoint in several files, with what goes with it."""
    folder = tmp_path_factory.mktemp("written") / "step_000004"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "LARGEST", 4000)
        save(folder, SMALL, filled(SMALL, 0), filled_extras(12, 1), {"embedding_scale": 1.0})
    for name in ("optimizer.safetensors", "tokenizer.model"):
        (folder / name).write_bytes(random.Random(name).randbytes(3000))
    write_json(folder / "trainer.json", {"step": 4, "epoch": 0, "index": 16})
    write_digests(folder)
    return folder


@given(st.data(), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_single_bit_in_any_file_is_found_and_its_file_named(
    written, tmp_path_factory, data, at, bit
):
    names = sorted(path.name for path in written.iterdir())
    assert len(names) > 8
    name = data.draw(st.sampled_from(names))
    copy = shutil.copytree(written, tmp_path_factory.mktemp("copy") / "w")
    assert damage(copy) == ""
    flip(copy / name, at, bit)
    assert str(copy / ("" if name == DIGESTS else name)) in damage(copy)
    shutil.rmtree(copy.parent)


@pytest.mark.parametrize("left", [None, 0, 20])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "trainer.json"])
def test_a_file_that_is_cut_or_gone_is_named(written, tmp_path, name, left):
    copy = shutil.copytree(written, tmp_path / "w")
    path = copy / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    assert damage(copy).startswith(f"{path}: expected what digests.json says was written, found")
    with pytest.raises(ValueError, match=r"w again, or remove digests.json if you changed the fi"):
        check_digests(copy)


def test_an_optimiser_counts_only_where_it_is_used(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "w")
    flip(copy / "optimizer.safetensors", 0.5, 3)
    assert "optimizer.safetensors" in damage(copy)
    check_digests(copy)


def test_a_folder_without_digests_is_taken_as_it_is(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "w")
    (copy / DIGESTS).unlink()
    flip(copy / "trainer.json", 0.5, 0)
    check_digests(copy)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"../x": "0"}', '{"config.json": 3}'])
def test_digests_that_are_none_are_named(written, tmp_path, text):
    copy = shutil.copytree(written, tmp_path / "w")
    (copy / DIGESTS).write_text(text)
    with pytest.raises(ValueError, match=f"{DIGESTS}: expected"):
        check_digests(copy)


@given(st.integers(0, 3), st.integers(-1, 1))
@example(0, 0)
def test_a_file_is_hashed_by_blocks_as_their_digests_are(tmp_path_factory, blocks, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "BLOCK", 7)
        content = random.Random(blocks).randbytes(max(0, 7 * blocks + more))
        path = tmp_path_factory.mktemp("f") / "file"
        path.write_bytes(content)
        parts = [content_digest(content[i : i + 7]) for i in range(0, len(content), 7)]
        assert file_digest(path) == content_digest("".join(parts).encode())
        assert digest_as_file(content) == file_digest(path)
