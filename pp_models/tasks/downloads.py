"""Where data files come from: the user's folder, the cache, or the publisher, checked by hash.

Files are looked for in the folder that the environment variable ``GUIDEBOOK_DATA`` names, then in the cache folder,
and are downloaded into the cache otherwise. A download goes to a temporary file, is checked, and only then takes the
file's name, so a broken one never replaces a good one. Files of the user's own folder are taken as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from pp_models.data import DataError
from pp_models.files import FileError, create_exclusively, replaced_atomically

DATA_VARIABLE = "GUIDEBOOK_DATA"


@dataclass(frozen=True)
class RemoteFile:
    """A published file: the addresses to try in order, and its SHA-256."""

    urls: tuple[str, ...]
    sha256: str


def _mnist(name: str, sha256: str) -> RemoteFile:
    return RemoteFile(
        (
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
            f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}",
        ),
        sha256,
    )


_OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python"
_SVHN = "http://ufldl.stanford.edu/housenumbers"

#: By path below the data folder or the cache.
REGISTRY: dict[str, RemoteFile] = {
    f"mnist/{name}": _mnist(name, sha256)
    for name, sha256 in (
        ("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    )
} | {
    "omniglot/images_background.zip": RemoteFile(
        (f"{_OMNIGLOT}/images_background.zip",), "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640"
    ),
    "omniglot/images_evaluation.zip": RemoteFile(
        (f"{_OMNIGLOT}/images_evaluation.zip",), "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"
    ),
    "cifar10/cifar-10-binary.tar.gz": RemoteFile(
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "emnist/gzip.zip": RemoteFile(  # all six sets, 536 MB
        (
            "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
            "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/gzip.zip",
        ),
        "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
    ),
    "svhn/train_32x32.mat": RemoteFile(
        (f"{_SVHN}/train_32x32.mat",), "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"
    ),
    "svhn/test_32x32.mat": RemoteFile(
        (f"{_SVHN}/test_32x32.mat",), "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"
    ),
}


def data_folder() -> Path | None:
    """The folder named by ``GUIDEBOOK_DATA``, or None where it is unset.

    Raises:
        DataError: it names no folder.
    """
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"{DATA_VARIABLE}: got {named!r}; it must name an existing folder")
    return folder


def cache_folder() -> Path:
    """The folder of downloaded files (not created here)."""
    import pooch

    return Path(pooch.os_cache("guidebook"))


_forbidden: ContextVar[str] = ContextVar("forbidden", default="")


@contextmanager
def no_downloads(who: str) -> Iterator[None]:
    """Within the block what is not on this machine is a DataError.

    Args:
        who: never reaches the network, for the message: "opening a run".
    """
    token = _forbidden.set(who)
    try:
        yield
    finally:
        _forbidden.reset(token)


def check_allowed(name: str) -> None:
    """To be called before the network is reached.

    Raises:
        DataError: within :func:`no_downloads`.
    """
    if who := _forbidden.get():
        raise DataError(
            f"{name}: it is not on this machine, and {who} downloads nothing; make such tasks once yourself, which "
            f"does, or put it into the folder that {DATA_VARIABLE} names"
        )


def _regular(path: Path) -> Path:
    """The path of a file, unless reading it would hang or never end.

    Raises:
        DataError: it is a device or a pipe.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path.name}: it is not a regular file; replace {path}")
    return path


def find(name: str) -> Path | None:
    """A file or folder of that name in the data folder, else in the cache, else None.

    Raises:
        DataError: it is a device or a pipe.
    """
    for folder in (data_folder(), cache_folder()):
        if folder is not None and (folder / name).exists():
            return _regular(folder / name)
    return None


def fetch(name: str, progress: bool = True) -> Path:
    """A registered file, downloaded into the cache where neither the data folder nor the cache has it.

    Args:
        name: a key of ``REGISTRY``, such as ``"mnist/train-images-idx3-ubyte.gz"``.
        progress: shows a progress bar on stderr.

    Raises:
        DataError: the download failed, or its SHA-256 is not the published one; a file that was there is untouched.
    """
    import pooch

    remote = REGISTRY[name]
    folder = data_folder()
    if folder is not None and _regular(folder / name).is_file():
        return folder / name
    path = _regular(cache_folder() / name)
    if path.is_file() and pooch.file_hash(str(path), alg="sha256") == remote.sha256:
        return path
    check_allowed(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{name}: the cache folder {path.parent} cannot be written ({error.strerror})") from None
    try:
        with replaced_atomically(path) as partial:
            os.close(create_exclusively(partial))
            failure = _download(remote.urls, str(partial), progress)
            if failure is not None:
                raise DataError(
                    f"{name}: the download from {remote.urls[-1]} failed ({failure}); try again, "
                    f"or put the file into the folder that {DATA_VARIABLE} names, as {name}"
                )
            got = pooch.file_hash(str(partial), alg="sha256")
            if got != remote.sha256:
                raise DataError(f"{name}: the download is corrupted; its SHA-256 is {got}, expected {remote.sha256}")
    except FileError as error:
        raise DataError(f"{name}: the cache folder {path.parent} cannot be written ({error})") from None
    return path


def _download(urls: tuple[str, ...], target: str, progress: bool) -> str | None:
    """Tries each address in turn; returns what went wrong with the last, on one line, or None."""
    import pooch

    failure: str | None = None
    for url in urls:
        try:
            pooch.HTTPDownloader(progressbar=progress, timeout=60)(url, target, None)
            return None
        except OSError as error:  # requests' errors are OSErrors
            response = getattr(error, "response", None)
            what = os.strerror(error.errno) if error.errno else type(error).__name__  # of the disk, or of the network
            failure = what if response is None else f"HTTP status {response.status_code}"
    return failure
