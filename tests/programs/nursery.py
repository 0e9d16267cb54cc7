"""Programs without the seconds that their imports take: forked from a process that has imported all of it once.

What is forked is a process as any other, with arguments, working folder, environment, files, signals and an exit code
of its own, and the child of whoever asked for it: the nursery forks twice, and the one who asked adopts the orphan
(`PR_SET_CHILD_SUBREAPER`). A program that was started so forks a nursery of its own at once, before it has threads, and
takes from it the processes that multiprocessing and joblib start. Whatever else it starts is executed.

TDAEXP_NURSERY=0 executes everything, as it is for users; tests of how programs begin take the fixture `executed`.

Programs of the nursery keep no memory that they have freed, so that what they take is theirs, on any machine.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import fcntl
import gc
import os
import pickle
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

PR_SET_CHILD_SUBREAPER = 36
HIGH = 200  # file descriptors are held from here on until they are put in their places
IMPORTED = ("transformers.models.llama.modeling_llama", "transformers.models.olmo.modeling_olmo", "sklearn.datasets",
            "joblib.externals.loky.backend.popen_loky_posix", "hydra_plugins.hydra_joblib_launcher._core")  # fmt: skip
"""What programs import beside all modules of ours; nothing of it may leave a thread behind."""
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}
"""With malloc's usual threshold, which grows up to 32 MiB, the same run keeps 120 to 320 MB of what it has freed."""


class Program(subprocess.Popen):
    """A Python program, `[sys.executable, *arguments]`, that is forked from the nursery of this process."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int,
                       c2pread: int, c2pwrite: int, errread: int, errwrite: int, *rest: Any) -> None:  # fmt: skip
        session = bool(rest[5])
        streams = [given if given != -1 else own for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        environment = dict(os.environ if env is None else env)
        self.pid = own().fork(list(args[1:]), environment, {0: streams[0], 1: streams[1], 2: streams[2]}, cwd, session)
        self._child_created = True
        for mine, given in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if mine != -1 and given != -1:
                os.close(mine)


class Nursery:
    """The near end of a nursery."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

    def fork(
        self, arguments: list[str], env: dict[str, str], files: dict[int, int], cwd: Any = None, session: bool = False
    ) -> int:
        """Start Python with these arguments; `files`: for each of its descriptors, one of ours. Returns the pid."""
        order = pickle.dumps((arguments, env, list(files), str(cwd or os.getcwd()), session))
        fds = array.array("i", files.values())
        self.end.sendmsg([len(order).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self.end.sendall(order)
        return int.from_bytes(_read(self.end, 8), "big")


_MINE: list[Nursery] = []


def own() -> Nursery:
    """The nursery of this process, begun when it is first asked for."""
    if not _MINE:
        _MINE.append(_begun())
    return _MINE[-1]


def _begun() -> Nursery:
    near, far = socket.socketpair()
    command = [sys.executable, str(Path(__file__).resolve()), str(far.fileno())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # of pyarrow, which pandas imports
    environment |= GIVING_BACK
    begun = subprocess.Popen(command, pass_fds=[far.fileno()], env=environment, start_new_session=True)
    begun.returncode = 0  # nobody waits for it: it ends with this process
    far.close()
    return Nursery(near)


def popen(command: list[str], **how: Any) -> subprocess.Popen[str]:
    """`subprocess.Popen` of a Python program, by way of the nursery."""
    assert command[0] == sys.executable
    return (Program if _wanted() else subprocess.Popen)(command, **how)


def run(command: list[str], *, check: bool = False, **how: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a Python program whose words are kept, by way of the nursery."""
    started = popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)
    out, err = started.communicate()
    if check and started.returncode:
        raise subprocess.CalledProcessError(started.returncode, command, out, err)
    return subprocess.CompletedProcess(command, started.returncode, out, err)


def _wanted() -> bool:
    return sys.platform == "linux" and os.environ.get("TDAEXP_NURSERY") != "0"


def _read(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = end.recv(size - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def _serve(end: socket.socket) -> list[str] | None:
    """Fork on demand. Returns in each program, with the arguments of its own, and at the end in the nursery."""
    while True:
        try:
            head, ancillary, *_ = end.recvmsg(8, socket.CMSG_SPACE(64 * 4))
            if len(head) < 8:
                return None
            arguments, env, places, cwd, session = pickle.loads(_read(end, int.from_bytes(head, "big")))
        except (EOFError, ConnectionError):
            return None
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        telling, told = os.pipe()
        between = os.fork()
        if between == 0:
            program = os.fork()
            if program == 0:
                end.close()
                _place(dict(zip(places, fds, strict=True)), keep=())
                _settle(env, cwd, session)
                return arguments
            os.write(told, program.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        pid = os.read(telling, 8)
        for one in (telling, told, *fds):
            os.close(one)
        end.sendall(pid)


def _place(files: dict[int, int], keep: tuple[int, ...]) -> None:
    """Put open files in their places and close all others."""
    held = {place: fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for place, fd in files.items()}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in (*held.values(), *keep):
            with contextlib.suppress(OSError):
                os.close(fd)
    for place, fd in held.items():
        os.dup2(fd, place)
        os.close(fd)


def _settle(env: dict[str, str], cwd: str, session: bool) -> None:
    """Be a program that has just begun."""
    if session:
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream, name in enumerate(("stdin", "stdout", "stderr")):
        opened = os.fdopen(stream, "r" if stream == 0 else "w", buffering=1, closefd=False)
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)
    warnings.resetwarnings()
    if env.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    near, far = socket.socketpair()
    if os.fork() == 0:
        near.close()
        null = os.open(os.devnull, os.O_RDWR)
        _place({0: null, 1: null, 2: null}, keep=(far.fileno(),))
        _nursery(far)
    far.close()
    _MINE.append(Nursery(near))
    intercept()


def intercept() -> None:
    """Take the processes that multiprocessing and joblib start in this process from its nursery."""
    import multiprocessing.util

    from joblib.externals.loky.backend import fork_exec as loky

    def streams(fds: Any) -> dict[int, int]:
        return {0: 0, 1: 1, 2: 2} | {int(fd): int(fd) for fd in fds}

    executed, executed_by_loky = multiprocessing.util.spawnv_passfds, loky.fork_exec

    def spawn(path: Any, args: Any, passfds: Any) -> int:
        texts = [os.fsdecode(one) for one in args]
        if not _wanted() or not any("spawn_main" in text for text in texts):
            return executed(path, args, passfds)
        return own().fork(texts[1:], dict(os.environ), streams(passfds))

    def fork_exec(cmd: Any, keep_fds: Any, env: Any = None) -> int:
        texts = [os.fsdecode(one) for one in cmd]
        if not _wanted() or not any("popen_loky_posix" in text for text in texts):
            return executed_by_loky(cmd, keep_fds, env)
        return own().fork(texts[1:], {**os.environ, **(env or {})}, streams(keep_fds))

    multiprocessing.util.spawnv_passfds = spawn
    loky.fork_exec = fork_exec


def _nursery(end: socket.socket) -> NoReturn:
    """The body of a nursery, and of the programs that it forks."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    arguments = _serve(end)
    if arguments is None:
        os._exit(0)
    code = 1
    try:
        code = _ended(arguments)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # taking apart what was imported would take a second


def _ended(arguments: list[str]) -> int:
    """Run to the end; returns the exit code."""
    try:
        _run(arguments)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 255
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does."""
    arguments = list(arguments)
    while arguments[0].startswith("-") and arguments[0] not in ("-c", "-m"):
        arguments.pop(0)  # of the interpreter
    places = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*places, *(one for one in sys.path if one not in places)]
    kind = arguments.pop(0) if arguments[0] in ("-c", "-m") else None
    what = arguments.pop(0)
    sys.argv = [kind if kind == "-c" else what, *arguments]
    sys.path.insert(0, str(Path(what).resolve().parent) if kind is None else "")
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)
    import tdaexp

    for name in (*IMPORTED, *(module.name for module in pkgutil.walk_packages(tdaexp.__path__, "tdaexp."))):
        __import__(name)
    from tdaexp.runtime.code import reached

    reached(*(name for name in sys.modules if name.startswith("tdaexp.")))  # what programs name their results after
    tasks = len(os.listdir("/proc/self/task"))
    assert tasks == 1, f"{tasks} threads: a fork of this process would lose all but one"
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    gc.freeze()  # else a collection would touch, and so copy, all of it
    _nursery(socket.socket(fileno=int(sys.argv[1])))
