"""A hook of the documentation's build: reports of fits of the gallery, as `guidebook inspect` writes them."""

import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from guidebook.inspection import inspect_pretrained

#: those that docs/reports.md links to
NAMES = (
    "nmdp-kernels-gp-mix-tnp",
    "bnnp-gp-rbf-fixed",
    "nmdp-strict-branches",
    "nvdp+path-gp-rbf-tnp",
    "nvdp-gp-rbf",
    "nvdp-digits",
)
PAGE = "report.html"
_made: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds ``reports/NAME.html`` for each of them, made once a process."""
    for name in NAMES:
        if name not in _made:
            with tempfile.TemporaryDirectory() as folder:
                inspect_pretrained(name, folder)
                _made[name] = Path(folder, PAGE).read_text(encoding="utf-8")
        files.append(File.generated(config, f"reports/{name}.html", content=_made[name]))
    return files
