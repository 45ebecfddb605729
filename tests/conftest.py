"""Fixtures that several rooms share: graphs captured once a run."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("foretrace", deadline=None, max_examples=40)  # shared machines stall: no deadlines
settings.register_profile("thorough", deadline=None, max_examples=1000)  # HYPOTHESIS_PROFILE=thorough make unit
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "foretrace"))


@pytest.fixture(scope="session")
def gpt2_graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 forward, true size, saved."""
    pytest.importorskip("transformers")
    from foretrace import capture_graph, save_graph

    path = tmp_path_factory.mktemp("graphs") / "gpt2.graph"
    save_graph(capture_graph("gpt2"), path)
    return path
