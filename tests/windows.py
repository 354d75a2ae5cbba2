"""Simulates Windows on Linux, in a process of its own, before fastmask is imported.

What fastmask imports as `os` and `signal` lacks what Windows lacks, and modules that Windows has not cannot be imported
by it. No file that is open or mapped in this process is replaced, renamed or removed, nor is a folder of one renamed;
nothing is renamed onto what exists; a folder cannot be opened, and what is open for reading alone cannot be synced.
Paths stay those of Linux.
"""

import builtins
import errno
import fcntl
import os
import shutil
import signal
from types import ModuleType
from typing import Any

NO_MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt", "readline", "curses")
_OS = """
    chown chroot confstr confstr_names ctermid fchdir fchmod fchown fdatasync fork forkpty fpathconf fstatvfs getegid
    geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid getuid initgroups killpg lchown
    lockf major makedev mkfifo mknod nice openpty pathconf pipe2 posix_fallocate posix_fadvise posix_spawn pread pwrite
    readv register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid setgid setgroups
    setpgid setpriority setsid setuid statvfs sync sysconf sysconf_names tcgetpgrp ttyname uname wait wait3 wait4
    waitid writev O_CLOEXEC O_DIRECTORY O_DSYNC O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC"""
_SIGNAL = """
    SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 alarm getitimer pause
    pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo"""
# the number that it has there
SIGBREAK = 21

_replace, _rename, _unlink, _fsync, _import = os.replace, os.rename, os.unlink, os.fsync, builtins.__import__


def pretend() -> None:
    """Make this process a process of Windows."""
    os.replace, os.rename, os.fsync = replace, rename, fsync
    os.unlink = os.remove = unlink
    # it is by descriptors of folders that Linux removes them
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    there = {"os": without(os, _OS, name="nt", open=open_file), "signal": without(signal, _SIGNAL, SIGBREAK=SIGBREAK)}

    def importing(name: str, globals_: Any = None, *arguments: Any, **more: Any) -> Any:
        if (globals_ or {}).get("__name__", "").partition(".")[0] == "fastmask":
            if name in NO_MODULES:
                raise ImportError(f"No module named {name!r}")
            if name in there:
                return there[name]
        return _import(name, globals_, *arguments, **more)

    builtins.__import__ = importing


def without(module: ModuleType, names: str = "", **others: Any) -> ModuleType:
    """A copy of a module that lacks some names and has others."""
    made = ModuleType(module.__name__)
    made.__dict__.update({name: value for name, value in vars(module).items() if name not in names.split()}, **others)
    return made


def in_use(path: str) -> str | None:
    """What of a file, or of the files in a folder, this process has open or mapped."""
    place = os.path.realpath(path)
    found = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    with open("/proc/self/maps") as maps:
        found += [words[5].strip() for words in (line.split(maxsplit=5) for line in maps) if len(words) == 6]
    return next((file for file in found if f"{file}/".startswith(f"{place}/") and not os.path.isdir(file)), None)


def _refuse(path: Any) -> None:
    found = in_use(os.fspath(path))
    if found is not None:
        raise PermissionError(errno.EACCES, f"{found} is being used by another process", os.fspath(path))


def replace(source: Any, target: Any) -> None:
    for path in (source, target):
        _refuse(path)
    _replace(source, target)


def rename(source: Any, target: Any) -> None:
    for path in (source, target):
        _refuse(path)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "it exists", os.fspath(target))
    _rename(source, target)


def unlink(path: Any, *, dir_fd: int | None = None) -> None:
    # filelock removes its files in another way there
    if dir_fd is None and not os.fspath(path).endswith(".lock"):
        _refuse(path)
    _unlink(path, dir_fd=dir_fd)


def fsync(file: int) -> None:
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _fsync(file)


def open_file(path: Any, *arguments: Any, **more: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
    return os.open(path, *arguments, **more)
