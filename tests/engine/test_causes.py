"""What an exception of torch means, said once."""

from __future__ import annotations

import errno

from resnext_det.engine.causes import cause_of
from resnext_det.errors import RunFailed, UserError


def test_a_dead_data_worker_is_named_once():
    cause = cause_of(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert isinstance(cause, RunFailed) and str(cause).count("a data worker died") == 1
    assert cause_of(cause) is cause, "a process reports it, and the command again"


def test_a_full_disk_is_the_users_to_mend_and_a_bug_stays_a_bug():
    assert isinstance(cause_of(OSError(errno.ENOSPC, "No space left on device")), UserError)
    bug = KeyError("x")
    assert cause_of(bug) is bug
