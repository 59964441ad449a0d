import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pp_models import DataError
from pp_models.tasks import downloads

GOOD = b"the published bytes"
NAME = "mnist/file.gz"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder served over HTTP on this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch, server):
    """An empty cache folder, with NAME registered at the local server."""
    monkeypatch.delenv(downloads.DATA_VARIABLE, raising=False)
    folder = tmp_path / "cache"
    monkeypatch.setattr(downloads, "cache_folder", lambda: folder)
    remote = downloads.RemoteFile((f"{server[1]}/file.gz",), hashlib.sha256(GOOD).hexdigest())
    monkeypatch.setitem(downloads.REGISTRY, NAME, remote)
    return folder


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_download_is_checked_kept_and_not_repeated(server, cache, capsys):
    (server[0] / "file.gz").write_bytes(GOOD)
    path = downloads.fetch(NAME)
    assert path == cache / NAME and path.read_bytes() == GOOD and files(cache) == ["file.gz"]
    assert "100%" in capsys.readouterr().err
    (server[0] / "file.gz").unlink()
    assert downloads.fetch(NAME) == path


def test_a_corrupted_download_gets_one_clear_line_and_leaves_the_earlier_file(server, cache):
    (server[0] / "file.gz").write_bytes(b"something else")
    earlier = cache / NAME
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"an earlier file")
    with pytest.raises(DataError) as error:
        downloads.fetch(NAME, progress=False)
    got, expected = (hashlib.sha256(data).hexdigest() for data in (b"something else", GOOD))
    assert str(error.value) == f"{NAME}: the download is corrupted; its SHA-256 is {got}, expected {expected}"
    assert earlier.read_bytes() == b"an earlier file" and files(cache) == ["file.gz"]


def test_a_corrupted_first_download_leaves_nothing(server, cache):
    (server[0] / "file.gz").write_bytes(GOOD[:5])
    with pytest.raises(DataError, match="the download is corrupted"):
        downloads.fetch(NAME, progress=False)
    assert files(cache) == []


def test_a_failed_download_says_where_the_file_may_be_put(cache):
    with pytest.raises(DataError) as error:
        downloads.fetch(NAME, progress=False)
    text = str(error.value)
    assert "HTTP status 404" in text and "GUIDEBOOK_DATA" in text and "\n" not in text
    assert files(cache) == []


def test_the_next_address_is_tried(server, cache, monkeypatch):
    (server[0] / "file.gz").write_bytes(GOOD)
    remote = downloads.REGISTRY[NAME]
    both = downloads.RemoteFile((f"{server[1]}/absent.gz", *remote.urls), remote.sha256)
    monkeypatch.setitem(downloads.REGISTRY, NAME, both)
    assert downloads.fetch(NAME, progress=False).read_bytes() == GOOD


def test_the_users_folder_comes_first_and_is_taken_as_it_is(cache, tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "mnist").mkdir(parents=True)
    (own / NAME).write_bytes(b"rebuilt by the user")
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(own))
    assert downloads.fetch(NAME) == own / NAME == downloads.find(NAME)
    assert downloads.find("mnist/absent") is None


def test_a_wrong_data_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(DataError, match="GUIDEBOOK_DATA: got .*; it must name an existing folder"):
        downloads.fetch("mnist/train-images-idx3-ubyte.gz")


def test_an_unwritable_cache_is_named(cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="mnist/file.gz: the cache folder .* cannot be written"):
        downloads.fetch(NAME, progress=False)


def test_the_registry_is_well_formed():
    assert len(downloads.REGISTRY) == 10
    for name, remote in downloads.REGISTRY.items():
        assert len(remote.sha256) == 64 and int(remote.sha256, 16) >= 0
        assert all(url.rsplit("/", 1)[1] == name.rsplit("/", 1)[1] for url in remote.urls)
