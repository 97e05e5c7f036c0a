"""Signals by which users and schedulers ask a program to stop; Windows has fewer of them."""

import signal


def present(*names: str) -> tuple[signal.Signals, ...]:
    """Lists the named signals that this system has."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__ and hasattr(signal, name))


STOP = present("SIGINT", "SIGTERM", "SIGUSR1")
"""What users and schedulers send."""
