"""Check that a call raises an error."""

from collections.abc import Callable

from retrieval.errors import BadInput


def expect_error(error: type[BadInput], call: Callable[[], object], what: str) -> None:
    """Check that the call raises this error, with a message of one line."""
    try:
        call()
    except error as raised:
        message = str(raised)
        assert message and "\n" not in message, f"{what}: the message must be one line: {message}"
        return
    raise AssertionError(f"{what} must raise {error.__name__}")
