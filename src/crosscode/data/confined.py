"""Calls into other libraries that change nothing outside this process: no child process, no network, no progress bar.

The functions that are replaced belong to the whole process, so a replacement is in force for the calling thread alone.
"""

import functools
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

PROCESSES: tuple[tuple[Any, str], ...] = (
    (subprocess.Popen, "__init__"),  # and with it `run`, `check_call`, `check_output`, `os.popen`
    *((os, name) for name in ("system", "fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve")),
)
NETWORK: tuple[tuple[Any, str], ...] = (
    (socket.socket, "connect"),
    (socket.socket, "connect_ex"),
    (socket, "getaddrinfo"),
)
_one_thread = threading.RLock()
"""Held while functions are replaced, so that they are put back in the reverse order."""


@contextmanager
def confined(network: bool = False) -> Iterator[list[str]]:
    """Within, this thread starts no child process and, unless `network`, opens no connection: both are an `OSError`.

    Yields a list of what was refused, which is there to be told: callers are free to catch the error.
    """
    refused: list[str] = []

    def refuse(usual: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A program with its arguments, or where a connection was to go; methods have their object before it.
        words = next((argument for argument in args if isinstance(argument, str | bytes | list | tuple)), "")
        refused.append(" ".join(map(str, words)) if isinstance(words, list | tuple) else str(words))
        raise OSError(f"not allowed here: {refused[-1]}")

    with _replaced(PROCESSES if network else (*PROCESSES, *NETWORK), refuse):
        yield refused


@contextmanager
def without_bars() -> Iterator[None]:
    """Within, this thread's progress bars are invisible, whoever makes them."""
    import tqdm

    def invisible(usual: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return usual(*args, **{**kwargs, "disable": True})

    with _replaced(((tqdm.std.tqdm, "__init__"),), invisible):
        yield


@contextmanager
def _replaced(functions: Iterable[tuple[Any, str]], instead: Callable[..., Any]) -> Iterator[None]:
    """Functions of modules or classes that call `instead(the usual one, …)`, in this thread."""
    thread = threading.get_ident()

    def replacement(usual: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(usual)
        def called(*args: Any, **kwargs: Any) -> Any:
            return instead(usual, *args, **kwargs) if threading.get_ident() == thread else usual(*args, **kwargs)

        return called

    with _one_thread:
        before: list[tuple[Any, str, Any]] = []
        try:
            for owner, name in functions:
                if hasattr(owner, name):  # not every system has all of them
                    before.append((owner, name, vars(owner).get(name)))
                    setattr(owner, name, replacement(getattr(owner, name)))
            yield
        finally:
            for owner, name, own in reversed(before):
                if own is None:
                    delattr(owner, name)  # it was inherited
                else:
                    setattr(owner, name, own)
