"""How a step begins that goes on only while the on-prem job waits: look at it, keep its fence."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from hpcscale.burst.acts import Acts, left
from hpcscale.burst.moves import Move
from hpcscale.burst.sight import Sight
from hpcscale.connect import Connection
from hpcscale.ledger import Attempt

_A = TypeVar("_A", bound=Acts)
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Home:
    """The on-prem job as a step finds it, fenced again where its fence was gone.

    Attributes:
        move: with what is known of the job now.
        origin: the attempt.
        connection: to its site.
        seen: the job as it is now.
    """

    move: Move
    origin: Attempt
    connection: Connection
    seen: Sight


def at_home(
    over: Callable[[Move, Sight], bool] = left,
) -> Callable[
    [Callable[Concatenate[_A, Home, _P], Move | None]],
    Callable[Concatenate[_A, Move, _P], Move | None],
]:
    """A step that is taken while the on-prem job waits; else the move ends, as its site decided.

    Args:
        over: whether the job is not to be waited for any more.
    """

    def of(
        step: Callable[Concatenate[_A, Home, _P], Move | None],
    ) -> Callable[Concatenate[_A, Move, _P], Move | None]:
        @functools.wraps(step)
        def opened(self: _A, move: Move, /, *args: _P.args, **kw: _P.kwargs) -> Move | None:
            origin, connection = self._origin(move)  # a step of its own
            kept, seen = self._keep_fence(move, origin, connection)  # likewise
            if kept is None:  # another process was there first
                return None
            if over(kept, seen):
                return self._origin_changed(kept, seen)  # likewise
            return step(self, Home(kept, origin, connection, seen), *args, **kw)

        return opened

    return of
