"""A call writes over what an earlier call wrote, and over nobody else's files, whatever they are called."""

import json
import os

import pytest

from pp_models import files, own_files
from pp_models.files import FileError
from pp_models.own_files import INDEX, refuse_others, replaced_own, write_own


def refused(path, why):
    before = path.read_bytes() if path.is_file() else None
    for attempt in (
        lambda: refuse_others(path.parent, "out", "report.*"),
        lambda: write_own(path, b"ours"),
        lambda: replaced_own(path).__enter__(),
    ):
        with pytest.raises(FileError, match=rf"^out: .* holds report.html, which {why}; move it away, or name another"):
            attempt()
    assert before is None or path.read_bytes() == before


def test_what_was_written_is_written_over(tmp_path):
    path = tmp_path / "report.html"
    for content in (b"first", b"second", b"second", b"third"):
        refuse_others(tmp_path, "out", "*")
        write_own(path, content)
        assert path.read_bytes() == content
    with replaced_own(path) as partial:
        partial.write_bytes(b"fourth")
    refuse_others(tmp_path, "out", "*")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != INDEX} == {"report.html": b"fourth"}


def test_what_somebody_else_wrote_is_refused(tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(b"precious")
    refused(path, "was not written by guidebook")
    assert os.listdir(tmp_path) == ["report.html"]
    refuse_others(tmp_path, "out", "*.csv")


def test_what_somebody_changed_since_is_refused(tmp_path):
    path = tmp_path / "report.html"
    write_own(path, b"ours")
    path.write_bytes(b"ours, with notes by hand")
    refused(path, "was changed since guidebook wrote it")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "dangling"])
def test_links_folders_and_pipes_are_refused(tmp_path, kind):
    folder = tmp_path / "run"
    folder.mkdir()
    path, victim = folder / "report.html", tmp_path / "victim"
    victim.write_bytes(b"ours")
    write_own(path, b"ours")  # the same bytes as the link's
    path.unlink()
    make = {"link": lambda: path.symlink_to(victim), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}
    make.get(kind, lambda: path.symlink_to(tmp_path / "nothing"))()
    refused(path, "was changed since guidebook wrote it")
    assert victim.read_bytes() == b"ours"


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_kill_between_index_and_file_leaves_both_contents_known(tmp_path, monkeypatch, at):
    path = tmp_path / "report.html"
    write_own(path, b"old")

    def cut(target, content):
        if at == "after":
            files.write_atomically(target, content)
        if target == path:
            raise KeyboardInterrupt
        files.write_atomically(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(own_files, "write_atomically", cut)
        with pytest.raises(KeyboardInterrupt):
            write_own(path, b"new")
    assert path.read_bytes() == (b"old" if at == "before" else b"new")
    write_own(path, b"newer")
    assert path.read_bytes() == b"newer"


@pytest.mark.parametrize("content", ["mine", json.dumps({"files": {}}), "[" * 100_000])
def test_an_index_of_somebody_else_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(FileError, match=r"^\S+\.written\.json: ") as caught:
        write_own(tmp_path / "report.html", b"ours")
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {INDEX: content}


@pytest.mark.parametrize("key", ["format", "sha256"])
def test_a_seal_does_not_write_over_keys_of_the_content(key):
    with pytest.raises(
        ValueError, match=rf"^content: got a key '{key}', which holds the seal; it must have another name$"
    ):
        files.sealed_json({"steps": 3, key: "mine"})


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.html"
    write_own(path, b"old")
    with pytest.raises(FileError, match="what was there is intact"), replaced_own(path) as partial:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == [INDEX, "report.html"]
    write_own(path, b"new")
