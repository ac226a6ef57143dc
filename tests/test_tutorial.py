"""The tutorial runs as it is written, and what it says about itself is true."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.py"


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """(what it returned, the folder it wrote into), with a setting of seconds."""
    folder = tmp_path_factory.mktemp("tutorial")
    main = runpy.run_path(str(TUTORIAL))["main"]
    return main(["--images=600", "--epochs=2", "--timesteps=6", f"--out={folder}"]), folder


@pytest.mark.slow
def test_its_network_learns(tutorial):
    assert tutorial[0]["accuracy"] > 0.2  # chance is .1, give or take .03


@pytest.mark.slow
def test_it_writes_a_raster_and_a_file_with_the_same_scores(tutorial):
    result, folder = tutorial
    assert (folder / "raster.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "saved_model" / "saved_model.pb").exists()
    assert result["export_error"] <= 1e-5


def test_it_can_be_read_from_top_to_bottom():
    assert len(TUTORIAL.read_text(encoding="utf-8").splitlines()) <= 110
