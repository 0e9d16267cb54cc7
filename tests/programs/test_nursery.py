"""A program from the nursery and one that is executed cannot be told apart by what they see and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from nursery import Program

SCRIPT = """
import json, os, signal, sys, threading
from pathlib import Path
print(json.dumps([sys.argv, os.getcwd(), __name__, sys.path[0], os.environ["WORD"], sys.stdin.read(),
                  Path(sys.modules["__main__"].__file__).name, threading.active_count(), os.getsid(0) == os.getpid(),
                  [str(signal.getsignal(n)).split(" at ")[0] for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
                  os.getppid(), sorted(os.listdir("/proc/self/fd"))[:3]]))
print("said", file=sys.stderr)
"""
ENDS = {
    "well": ("", 0),
    "code": ("sys.exit(7)", 7),
    "text": ("sys.exit('no')", 1),
    "error": ("raise ValueError('no')", 1),
    "interrupt": ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    "term": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "thread": ("threading.Thread(target=lambda: print('after', flush=True)).start()", 0),
}


@pytest.fixture
def hangup():
    """What is executed would inherit that nohup ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="nurseries are for Linux")
@pytest.mark.parametrize("end", ENDS)
def test_a_forked_program_is_as_one_that_is_executed(end, tmp_path, hangup):
    line, code = ENDS[end]
    (tmp_path / "program.py").write_text(SCRIPT + line + "\n", encoding="utf-8")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    how = {"cwd": tmp_path, "env": {**os.environ, "WORD": "x y"}, "start_new_session": end == "code", **pipes}
    found = []
    for kind in (subprocess.Popen, Program):
        process = kind([sys.executable, "program.py", "a", "--b=c d"], **how)
        out, err = process.communicate("asked", timeout=60)
        assert process.returncode == code, err
        found.append((out, err.splitlines()[0], err.splitlines()[-1]))
    assert found[0] == found[1]
