"""Bad input of a command or recipe: one sentence on stderr and exit status 2, no traceback; Ctrl+C: status 130."""

from __future__ import annotations

import functools
import io
import logging
import signal
import sys
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str]], None]


def command(main: Main) -> Main:
    """Wrap the main function of a script: errors that a user can fix and Ctrl+C are printed, not raised."""

    @functools.wraps(main)
    def run(argv: Sequence[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8, as on stderr
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        for noisy in ("httpx", "accelerate", "datasets", "torch"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            main(argv)
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    return run
