"""The checker that the test run puts around every function of minilm, so that its annotations cannot lie."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_beartype = beartype(
    conf=BeartypeConf(is_pep484_tower=True)
)  # an int is accepted where a float is meant, as in Python


def check(function: Callable) -> Callable:
    """beartype, except around configurations: they check their own fields, and tests read those messages."""
    return function if function.__module__ == "minilm.config" else _beartype(function)
