"""One program, one question, one bounded answer: run in a thread, ended with its whole process group.

Starting a program blocks until it has been found and loaded, so all of it is off the event loop, in a thread of
this run. The program is told to end by SIGKILL to its group and is reaped, whatever becomes of the one who asked.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

PIECE = 64 * 1024


class TookTooLong(Exception):
    """The program had not ended at its time limit."""


class SaidTooMuch(Exception):
    """The program wrote more than is taken."""


class _Unwanted(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How a program ended. status: its exit status, the negative number of the signal that killed it."""

    status: int
    output: bytes = field(repr=False)
    errors: bytes = field(repr=False)


async def ask(command: Sequence[str], question: bytes, *, limit: float, most: int) -> Said:
    """Run a program with ``question`` on its standard input; return what it said.

    limit: seconds it may take. most: bytes taken of each of its outputs.
    Raises: TookTooLong; SaidTooMuch; OSError when it cannot be started.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix=command[0])
    wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    run = asyncio.get_running_loop().run_in_executor(thread, _run, command, question, wake, limit, most)
    try:
        return await asyncio.shield(run)
    except asyncio.CancelledError:
        os.eventfd_write(wake, 1)
        await asyncio.wait([run])  # for an instant: the program is killed
        if not run.cancelled():
            run.exception()  # seen
        raise
    finally:
        os.close(wake)
        thread.shutdown(wait=False)


def _run(command: Sequence[str], question: bytes, wake: int, limit: float, most: int) -> Said:
    deadline = time.monotonic() + limit
    pipe = subprocess.PIPE
    # A session of its own is a process group of its own, and has no terminal to ask at.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            with suppress(BrokenPipeError):  # a program need not read
                process.stdin.write(question)
            process.stdin.close()
            output, errors = _read([process.stdout, process.stderr], wake, deadline, most)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TookTooLong from error
        finally:
            # Before it is reaped: until then its group cannot be anybody else's.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return Said(status=status, output=output, errors=errors)


def _read(pipes: Sequence[IO[bytes]], wake: int, deadline: float, most: int) -> list[bytes]:
    """Read pipes to their ends, side by side."""
    taken = {pipe.fileno(): bytearray() for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        selector.register(wake, selectors.EVENT_READ)
        for fd in taken:
            selector.register(fd, selectors.EVENT_READ)
        while len(selector.get_map()) > 1:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TookTooLong
            for key, _ in ready:
                if key.fd == wake:
                    raise _Unwanted
                piece = os.read(key.fd, PIECE)
                if not piece:
                    selector.unregister(key.fd)
                taken[key.fd] += piece
                if len(taken[key.fd]) > most:
                    raise SaidTooMuch
    return [bytes(said) for said in taken.values()]
