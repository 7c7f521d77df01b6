"""Budgets: what is spent and reserved this month, and whether one more job fits. Pure.

A job that is moved reserves the most it can cost before anything is asked of the cloud; when it has
ended, what it cost takes the place of the reservation. So the sum never exceeds a budget, whatever
jobs do: spent + reserved + the new one's worst case is at most the limit, or the job stays.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from decimal import Decimal

import msgspec

from hpcscale.burst.policy import Budget, BudgetOf

Turn = tuple[int, ...]  # who was submitted first comes first


class Payer(msgspec.Struct, frozen=True, kw_only=True):
    """Under whose budgets a job falls."""

    user: str = ""
    account: str = ""
    project: str = ""

    def name(self, budget: Budget) -> str | None:
        """What this budget calls the payer; None when it does not cover them."""
        if budget.of is BudgetOf.ALL:
            return "all"
        mine = str(getattr(self, budget.of.value))
        if budget.of is BudgetOf.PROJECT and not mine and budget.name is None:
            return None  # a job without a project belongs to none
        if budget.name is not None and budget.name != mine:
            return None
        return f"{budget.of.value} {mine or '(none)'}"


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Money of one cloud attempt: reserved while it may still cost, then what it did cost.

    Attributes:
        payer: whose job.
        at: when it was reserved, aware.
        usd: what it cost once that is known, else the most it can cost; None: without a bound.
        settled: whether no more can come: ``usd`` is what it cost, as far as anybody can tell.
        waits: nothing but its waiting moved it.
    """

    payer: Payer = Payer()
    at: dt.datetime
    usd: Decimal | None
    settled: bool = False
    waits: bool = False


class Purse:
    """What is left of the budgets in one month, while a plan is made.

    Args:
        budgets: the limits.
        charges: of any month.
        now: its month counts (UTC); a job that still runs counts in whichever month it began too.
    """

    def __init__(
        self, budgets: Sequence[Budget], charges: Iterable[Charge], now: dt.datetime
    ) -> None:
        self._budgets = tuple(budgets)
        month = now.astimezone(dt.UTC).strftime("%Y-%m")
        self._charges = [
            charge
            for charge in charges
            if not charge.settled or charge.at.astimezone(dt.UTC).strftime("%Y-%m") == month
        ]
        self._now = now
        self._kept: dict[Turn, Charge] = {}

    def keep(self, payer: Payer, worst_usd: Decimal | None, turn: Turn) -> None:
        """Keep this for a job that may need it later: see ``refusal``."""
        self._kept[turn] = Charge(payer=payer, at=self._now, usd=worst_usd)

    def refusal(
        self, payer: Payer, worst_usd: Decimal | None, turn: Turn | None = None
    ) -> str | None:
        """Why a job may not spend this, in half a sentence; None when it may.

        Args:
            payer: whose job.
            worst_usd: the most it can cost.
            turn: of a job that money is kept for: what is kept for later ones it may spend. None:
                it came for no more than shorter waiting, and spends nothing that is kept.
        """
        for budget in self._budgets:
            name = payer.name(budget)
            if name is None:
                continue
            if worst_usd is None:
                return f"what it can cost has no bound to hold against the budget of {name}"
            mine = [c for c in self._charges if c.payer.name(budget) == name]
            if any(c.usd is None for c in mine):
                return f"a job under the budget of {name} has a cost without a bound"
            if turn is None and budget.waiting_usd is not None:
                part = [c for c in mine if c.waits]
                text, room = _account(worst_usd, part, budget.waiting_usd, name)
                if worst_usd > room:
                    return f"{text} by moves that save waiting alone"
            text, room = _account(worst_usd, mine, budget.usd, name)
            if worst_usd > room:
                return text
            kept = [
                c
                for other, c in self._kept.items()
                if c.payer.name(budget) == name and (turn is None or other < turn)
            ]
            more = sum((c.usd for c in kept if c.usd), Decimal(0))
            if worst_usd + more > room:
                who = "a job that was" if len(kept) == 1 else f"{len(kept)} jobs that were"
                return f"{text}, and ${more:.2f} is kept for {who} promised it (deadline or only)"
        return None

    def reserve(
        self,
        payer: Payer,
        worst_usd: Decimal | None,
        turn: Turn | None = None,
        *,
        waits: bool = False,
    ) -> None:
        """Take a job's worst case out of what is left; what was kept for it is kept no more."""
        if turn is not None:
            self._kept.pop(turn, None)
        self._charges.append(Charge(payer=payer, at=self._now, usd=worst_usd, waits=waits))


def _account(
    worst_usd: Decimal, charges: Iterable[Charge], limit: Decimal, name: str
) -> tuple[str, Decimal]:
    """How a limit stands, in words, and what is left of it."""
    known = [(c.usd, c.settled) for c in charges if c.usd]
    spent = sum((usd for usd, settled in known if settled), Decimal(0))
    held = sum((usd for usd, settled in known if not settled), Decimal(0))
    text = (
        f"it may cost ${worst_usd:.2f}, and of ${limit:.2f} a month for {name} "
        f"${spent:.2f} is spent and ${held:.2f} reserved"
    )
    return text, limit - spent - held


def advice(budgets: Iterable[Budget]) -> tuple[str, ...]:
    """What these budgets do not bound: a ledger knows the moves of its own user alone."""
    shared = [
        f"{budget.of.value} {budget.name}" if budget.name else f"each {budget.of.value}"
        for budget in budgets
        if budget.of in {BudgetOf.ACCOUNT, BudgetOf.PROJECT}
    ]
    if not shared:
        return ()
    text = f"the budget of {', '.join(shared)} is advisory: it bounds your own moves, "
    return (text + "which are all that this ledger knows of",)


def bounded(budgets: Iterable[Budget], payer: Payer) -> bool:
    """Whether a payer falls under any budget."""
    return any(payer.name(budget) is not None for budget in budgets)
