"""A run of a detector that takes seconds."""

import pytest
from tiny import TinyRun


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    """A detector of a few thousand weights on nine images; every test takes an OUTPUT_DIR of its own."""
    return TinyRun(tmp_path_factory.mktemp("tiny"))
