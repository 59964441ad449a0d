"""What tests of experiments share."""

import pytest

from evaluation import report


@pytest.fixture
def coarse_pictures(monkeypatch):
    """Pictures of few pixels: drawing is most of an experiment at smoke scale."""
    monkeypatch.setattr(report, "PICTURE_DPI", 30)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder a module, so that experiments find each other's fits as they do for a user."""
    return tmp_path_factory.mktemp("runs")
