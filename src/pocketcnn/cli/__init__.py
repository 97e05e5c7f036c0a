"""The `pocketcnn` command. Each verb has a file of its own that parses the flags, calls the library and prints.

torch is imported only when a verb needs it, so `pocketcnn --help` answers at once.
"""

import contextlib
import errno
import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from pocketcnn.cli.printing import (
    BAD_INPUT,
    DONE,
    FAILED,
    STOPPED,
    complain,
    log_to_stderr,
    one_answer,
    open_streams,
    somebody_waits,
    spoken,
)
from pocketcnn.cli.verbs import VERBS
from pocketcnn.errors import BadUsage, NotEnoughMemory, PocketError
from pocketcnn.support.version import __version__


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line and exits with its code.

    The codes are 0 done, 1 failed while running, 2 bad input, 130 interrupted, 75 told to stop: start it again later.
    """
    with contextlib.suppress(RuntimeError, ValueError, OSError):  # a program without stderr has nowhere to write
        if sys.__stderr__ is not None and not faulthandler.is_enabled():
            faulthandler.enable(sys.__stderr__)  # a crash in a native library shows where it happened
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    open_streams()
    if argv is None:
        somebody_waits()
    sys.exit(_flushed(_run([word for word in words if word != "--debug"], debug)))


def _run(words: list[str], debug: bool) -> int:
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_overview())
            return DONE
        if words[0] in ("-V", "--version"):
            print(f"pocketcnn {__version__}")
            return DONE
        log_to_stderr(debug)
        _show_crashes()
        if words[0] not in VERBS:
            raise _unknown_verb(words[0])
        verb = getattr(importlib.import_module(f"pocketcnn.cli.verbs.{words[0]}"), words[0])
        with one_answer():
            return verb(words[1:]) or DONE
    except KeyboardInterrupt:
        complain("Interrupted: stopped at once; the last checkpoint is kept")
        return STOPPED
    except BrokenPipeError:
        _let_go(sys.stdout)
        return DONE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explained(error)


def _explained(error: Exception) -> int:
    """Prints one line about an error, and returns the exit code."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        return _output_lost(error)
    if isinstance(error, PocketError | ValueError | OSError) and not isinstance(error, UnicodeError):
        complain(f"{type(error).__name__}: {spoken(str(error))}")
        return error.exit_code if isinstance(error, PocketError) else BAD_INPUT
    if _lacks_memory(error):
        complain(
            f"NotEnoughMemory: {spoken(str(error)) or 'there is none left'}; give fewer or smaller images, or a smaller net"
        )
        return NotEnoughMemory.exit_code
    if isinstance(error, RecursionError | OverflowError | UnicodeError):
        complain(f"BadUsage: a word is too long, too large or no text: {spoken(str(error))}; --debug shows where")
        return BAD_INPUT
    complain(f"{type(error).__name__}: {spoken(str(error))}; this is a bug: --debug shows where")
    return FAILED


def _lacks_memory(error: Exception) -> bool:
    """Tells whether an error says that memory could not be had; torch raises kinds of its own."""
    asked = (
        "can't allocate memory",
        "not enough memory",
        "CUDA out of memory",
        "Unable to allocate",
        "Storage size calculation",
    )
    return isinstance(error, MemoryError) or any(words in str(error) for words in asked)


def _show_crashes() -> None:
    """Prints where the process was if a library below crashes it."""
    try:
        faulthandler.enable()
    except (AttributeError, ValueError, OSError, RuntimeError):  # stderr is no file, as in a notebook
        return


def _flushed(code: int) -> int:
    """Writes what was printed, while a full disk or a closed pipe can still be reported."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go(sys.stdout)
    except OSError as error:
        return code or _output_lost(error)
    return code


def _output_lost(error: OSError) -> int:
    _let_go(sys.stdout)
    complain(f"CannotWrite: standard output: {error.strerror or error}; what was printed is lost")
    return FAILED


def _let_go(stream: object) -> None:
    """Sends what is still to be written to nowhere, so that Python does not complain of it at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
    except (OSError, AttributeError, ValueError):
        return


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {what}" for name, what in VERBS.items()]
    return "\n".join(
        [
            "pocketcnn: convolutional nets that are small because their weights are generated, shared or solved for",
            "",
            "usage: pocketcnn VERB [flags]; pocketcnn VERB --help lists the flags",
            "",
            *lines,
            "",
            "Any verb takes --debug, which shows the traceback of an error; each that prints a table takes --json.",
            "Start with: pocketcnn compare",
        ]
    )


def _unknown_verb(word: str) -> PocketError:
    import difflib

    near = difflib.get_close_matches(word, VERBS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return BadUsage(f"no verb {word[:60]!r}{guess} Known: {', '.join(VERBS)}.")
