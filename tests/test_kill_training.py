"""A short kill test; ``python tests/kill_training.py`` is the long one."""

import pytest
from kill_training import kill_test


@pytest.mark.slow
def test_killed_runs_end_with_the_same_weights(tmp_path):
    counts = kill_test(tmp_path, kills=4, mid_checkpoint=1)
    assert (counts["anywhere"], counts["mid-checkpoint"]) == (4, 1)
