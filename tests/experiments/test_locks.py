"""The lock of a folder, against other processes: held, released, left by one that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytest.importorskip("filelock")

from riverval.errors import InputError
from riverval.experiments.locks import alone

HOLDER = """
import sys, time
from pathlib import Path
from riverval.experiments.locks import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_until_its_process_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(InputError, match="another process is at work in"), alone(tmp_path):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) != []  # what a killed process leaves is no lock
    with alone(tmp_path):
        pass


def test_nothing_stays_behind_and_one_process_cannot_hold_it_twice(tmp_path):
    for _ in range(2):
        with alone(tmp_path), pytest.raises(InputError, match="wait for it or stop it"), alone(tmp_path):
            pass
        with pytest.raises(KeyboardInterrupt), alone(tmp_path):
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []
