import os
import subprocess
import sys

import pytest

from automl_tl.engine.lock import RunLock
from automl_tl.errors import RunError


def test_a_held_lock_names_its_owner_and_is_free_afterwards(tmp_path):
    path = tmp_path / "lock"
    with RunLock(path), pytest.raises(RunError, match=rf"is in use by process {os.getpid()} on .*; wait until it ends"):
        RunLock(path).__enter__()
    with RunLock(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_dies_with_its_owner(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX);"
        "file.write('process 7 on mars'); file.flush(); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match="in use by process 7 on mars"):
            RunLock(path).__enter__()
        owner.kill()
    with RunLock(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_directory_that_is_not_there_is_an_error_of_the_run(tmp_path):
    with pytest.raises(RunError, match=r"cannot lock .*: No such file or directory; the run directory must exist"):
        RunLock(tmp_path / "nowhere" / "lock").__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_an_error_of_the_run(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match=r"cannot lock .*: Permission denied"):
        RunLock(tmp_path / "lock").__enter__()
