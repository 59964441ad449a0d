"""Sentences from installed sources: which are taken, that nothing is run, and what is refused."""

import sys

import pytest

from pp_models.data import DataError
from pp_models.tasks import docstring_texts
from pp_models.tasks.docstring_texts import docstring_sentences, library_sentences

GOOD = "Computes the {} of everything that was ever measured here."


def package(folder, name, sentences, **files):
    """Writes a package whose import fails, with one function a sentence in one file each."""
    root = folder / name
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('it was run')\n")
    for i, text in enumerate(sentences):
        (root / f"m{i}.py").write_text(f'def f():\n    """{text}\n\n    More of it.\n    """\n')
    for path, content in files.items():
        (root / f"{path.replace('__', '/')}.py").write_text(content)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstring_texts.metadata, "version", lambda name: "1.0")
    return tmp_path


def test_first_paragraphs_of_the_right_length_are_taken_and_nothing_runs(installed):
    many = "\n".join(f'def g{i}():\n    """{GOOD.format(f"sixth {i}")}"""' for i in range(9))
    package(
        installed,
        "lib_a",
        [
            GOOD.format("mean"),
            GOOD.format("mean"),
            "Too short.",
            "Long " * 60,
            "Wraps torch and SciPy for scikit-learn.",
        ],
        many=many,
        broken="def (",
        tests__hidden=f'def h():\n    """{GOOD.format("hidden")}"""',
        example='def e():\n    """Shows how it is called: >>> e() gives nothing at all."""',
    )
    texts, source = docstring_sentences("lib_a", "lib-a", 6)
    assert source == "lib_a 1.0" and "lib_a" not in sys.modules
    assert len(set(texts)) == 6
    assert sum("sixth" in text for text in texts) == docstring_texts.PER_FILE
    assert GOOD.format("mean") in texts and "Wraps library and library for library." in texts
    assert docstring_sentences("lib_a", "lib-a", 6)[0] == texts
    with pytest.raises(DataError, match="lib_a: its installed sources hold 6 sentences; 7 are needed"):
        docstring_sentences("lib_a", "lib-a", 7)


def test_a_sentence_of_two_libraries_belongs_to_neither(installed, monkeypatch):
    monkeypatch.setattr(docstring_texts, "SPARE", 1)
    for name in ("lib_b", "lib_c"):
        package(installed, name, [GOOD.format("copy"), *(GOOD.format(f"{name} {i}") for i in range(3))])
    monkeypatch.setattr(docstring_texts, "LIBRARIES", {"lib_b": "b", "lib_c": "c"})
    rows, source = library_sentences.__wrapped__(3)
    assert source == "lib_b 1.0, lib_c 1.0"
    assert [label for _, label in rows] == [0, 1] * 3
    assert all(f"lib_{'bc'[label]}" in text for text, label in rows)
    monkeypatch.setattr(docstring_texts, "SPARE", 0)
    with pytest.raises(DataError, match=r"libraries \(lib_b 1.0, lib_c 1.0\) share more than 0 of 4 sentences"):
        library_sentences.__wrapped__(4)


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(DataError, match="no_such_library: .* pip install no-such"):
        docstring_sentences("no_such_library", "no-such", 1)
