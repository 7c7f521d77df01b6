"""Questions that wait for their answers side by side, where several commands may run at once."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """The result of a call that goes on meanwhile.

    Args:
        call: to be made.
        at_once: in a thread of its own, from now on; else not before its result is asked for.
    """

    def __init__(self, call: Callable[[], T], *, at_once: bool) -> None:
        self._call = call
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if at_once:
            # daemon: Ctrl-C does not wait for a command that waits for its controller
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as exc:  # noqa: BLE001  # handed on by ``answer``
            self._error = exc

    def answer(self) -> T:
        """What the call returned, or its error; called once."""
        if self._thread is None:
            return self._call()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]
