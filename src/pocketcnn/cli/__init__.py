"""The `pocketcnn` command. Each verb has a file of its own that parses the flags, calls the library and prints.

torch is imported only when a verb needs it, so `pocketcnn --help` answers at once.
"""

import contextlib
import faulthandler
import importlib
import sys
import traceback
from collections.abc import Sequence

from pocketcnn.cli.printing import BAD_INPUT, DONE, FAILED, STOPPED, log_to_stderr
from pocketcnn.cli.verbs import VERBS
from pocketcnn.errors import BadUsage, PocketError
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
    sys.exit(_run([word for word in words if word != "--debug"], debug))


def _run(words: list[str], debug: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if words[0] in ("-V", "--version"):
        print(f"pocketcnn {__version__}")
        return DONE
    log_to_stderr(debug)
    try:
        if words[0] not in VERBS:
            raise _unknown_verb(words[0])
        verb = getattr(importlib.import_module(f"pocketcnn.cli.verbs.{words[0]}"), words[0])
        return verb(words[1:]) or DONE
    except KeyboardInterrupt:
        print("Interrupted: stopped at once; the last checkpoint is kept", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()
        return DONE
    except (PocketError, ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"{type(error).__name__}: {message}", file=sys.stderr)
        return error.exit_code if isinstance(error, PocketError) else BAD_INPUT
    except Exception as error:
        if debug:
            traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        print(f"{type(error).__name__}: {first}; this is a bug: --debug shows where", file=sys.stderr)
        return FAILED


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
            "Any verb takes --debug, which shows the traceback of an error. Start with: pocketcnn compare",
        ]
    )


def _unknown_verb(word: str) -> PocketError:
    import difflib

    near = difflib.get_close_matches(word, VERBS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return BadUsage(f"no verb {word!r}{guess} Known: {', '.join(VERBS)}.")
