"""The burst policy file: when may a waiting job leave, where to, and how carefully.

.. code-block:: toml

    from = "lab-onprem"         # left out: default_site
    to = ["lab-cloud"]          # in order of preference; SITE/PARTITION: of the origin itself;
                                # left out: every burst target that has a login node
    max_wait = "30m"            # move a job that waited longer; leave out: no such rule
    deadline = true             # move a job whose deadline needs it
    deadline_margin = "10m"     # be this much early; left out: two cron_intervals, fence-first one
    use_start_estimate = true   # Slurm's own estimate may bring a move forward
    max_moves_per_run = 4
    retry_after = "30m"         # after a failed move, leave the job alone this long
    cron_interval = "5m"        # of your cron line; a cloud job waits twice that at its gate
    order = "gate-first"        # or "fence-first": no cloud minutes at the gate
    dependents = "stand-in"     # or "refuse": a job that others wait for does not move
    at_limit = "end"            # or "warn": a cloud job that has cost what was reserved for it
    only_between = "20:00-06:00"  # UTC, off-peak: else only deadlines move; leave out: always
    spot = true                 # take nodes that may be taken back, where a deadline bears it
    spot_lost = "30m"           # work that a checkpointing job loses with a node, at most
    spot_tries = 3              # nodes taken back so often: it goes on where nobody takes them
    stage_early = true          # send code and inputs while a job is likely to leave

    [target.lab-cloud]          # overrides of the site's own figures
    boot = "5m"
    staging = "2m"
    boot_timeout = "20m"

    [[budget]]                  # of a calendar month (UTC); reserved before a job is moved
    of = "account"              # user, account, project (the job's --wckey) or all
    name = "bio"                # left out: each one
    usd_per_month = 500
    waiting_usd_per_month = 100 # of it, for moves that only save waiting; left out: all of it

These are the rules of ``policy = "rules"``, the default. Other policies decide on waiting alone by
one rule of their own; ``deadline`` and the limits above hold for them too:

.. code-block:: toml

    policy = "value"            # move when the wait that is left is worth more than moving costs
    hour_usd = 20               # what an hour of one job's wait is worth
    margin = 1.1                # it must be worth so many times the cost: no verdict that flickers
    cap = 2.0                   # moved at the latest after this many times cost / hour_usd

    policy = "compute-wait"     # move after a wait in proportion to the job's GPU-hours
    wait_per_gpu_hour = "5m"

    policy = "constant-wait"    # move after a wait
    wait = "15m"

    policy = "threshold"        # move after a wait, while more than so many wait
    wait = "1h"
    depth = 10

    policy = "no-wait"          # move whatever has not started
    policy = "always"           # move everything that may leave
    policy = "deadline"         # move at the last moment that still meets the deadline, else never
    policy = "never"
"""

import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from hpcscale.burst.policy import (
    AtLimit,
    Budget,
    BudgetOf,
    Dependents,
    Order,
    Policy,
    PolicyKind,
    TargetTerms,
    Window,
    default_margin_s,
)
from hpcscale.errors import InvalidFileError
from hpcscale.site import split_target
from hpcscale.tomlfile import convert_toml, read_toml, with_line
from hpcscale.units import parse_duration_s


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


# the keys that each kind reads besides the common ones, and needs
_KEYS: dict[PolicyKind, tuple[str, ...]] = {
    PolicyKind.RULES: ("max_wait",),
    PolicyKind.THRESHOLD: ("wait", "depth"),
    PolicyKind.CONSTANT_WAIT: ("wait",),
    PolicyKind.COMPUTE_WAIT: ("wait_per_gpu_hour",),
    PolicyKind.VALUE: ("hour_usd", "margin", "cap", "max_wait"),
}
_HALF_HOUR = '"30m"'
_EXAMPLES = {
    "to": '["lab-cloud"]', "max_wait": '"30m"', "deadline_margin": '"10m"', "retry_after": '"30m"',
    "cron_interval": '"5m"', "spot_lost": '"30m"', "wait": '"15m"', "wait_per_gpu_hour": '"5m"',
}  # fmt: skip
_NEEDED = {"wait", "depth", "wait_per_gpu_hour", "hour_usd"}


class _BudgetFile(_Frozen, frozen=True, kw_only=True):
    of: BudgetOf
    usd_per_month: int | float | str
    waiting_usd_per_month: int | float | str | None = None
    name: str | None = None


class _TargetFile(_Frozen, frozen=True, kw_only=True):
    boot: str | None = None
    staging: str | None = None
    boot_timeout: str | None = None


class _PolicyFile(_Frozen, frozen=True, kw_only=True, rename={"from_": "from"}):
    """The file as it is written; durations are still text."""

    from_: str
    to: tuple[str, ...]
    max_wait: str | None = None
    deadline: bool = True
    deadline_margin: str | None = None
    use_start_estimate: bool = True
    max_moves_per_run: int = 10
    retry_after: str = "30m"
    cron_interval: str = "5m"
    order: Order = Order.GATE_FIRST
    dependents: Dependents = Dependents.STAND_IN
    at_limit: AtLimit = AtLimit.END
    only_between: str | None = None
    spot: bool = True
    spot_lost: str = "30m"
    spot_tries: int = 3
    stage_early: bool = True
    target: dict[str, _TargetFile] = msgspec.field(default_factory=dict)
    policy: PolicyKind = PolicyKind.RULES
    wait: str | None = None
    depth: int | None = None
    wait_per_gpu_hour: str | None = None
    hour_usd: int | float | str | None = None
    margin: float | None = None
    cap: float | None = None
    budget: tuple[_BudgetFile, ...] = ()


def load_policy(
    path: Path,
    *,
    origin: Callable[[], str] | None = None,
    targets: Callable[[str], tuple[str, ...]] | None = None,
) -> Policy:
    """Read and check a policy file.

    Args:
        path: the file.
        origin: gives the site of a file that has no ``from``.
        targets: gives those of a file that has no ``to``; its argument is the origin.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: unreadable, no TOML, an unknown key, a wrong type or value.
    """
    data = read_toml(path)
    if origin is not None and "from" not in data:
        data["from"] = origin()
    if targets is not None and "to" not in data and isinstance(data.get("from"), str):
        data["to"] = list(targets(data["from"]))
    return policy_from(data, str(path))


def _list(names: Iterable[str]) -> str:
    """As TOML writes it."""
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _line(key: str) -> str:
    """A line that sets a needed key."""
    return f"{key} = {_EXAMPLES.get(key) or {'hour_usd': '20', 'depth': '10'}[key]}"


def policy_from(data: dict[str, Any], where: str) -> Policy:
    """Check a policy's TOML data; ``where`` names its file in messages."""
    try:
        raw: _PolicyFile = convert_toml(data, _PolicyFile, where)
    except InvalidFileError as exc:
        for key, value in _EXAMPLES.items():
            if f"key {key!r}" in exc.message:
                exc.hint = f"{key} = {value}"
        raise

    def wrong(key: str, message: str, hint: str | None = None) -> InvalidFileError:
        return InvalidFileError(f"key {key!r}: {message}", where=with_line(where, key), hint=hint)

    def seconds(text: str | None, key: str) -> int | None:
        if text is None:
            return None
        try:
            value = parse_duration_s(text)
        except ValueError as exc:
            leaf = key.rpartition(".")[2]
            raise wrong(key, str(exc), f"{leaf} = {_EXAMPLES.get(leaf, _HALF_HOUR)}") from exc
        if value is None:
            raise wrong(key, f"{text!r} sets no length of time", "leave the key out instead")
        return value

    def dollars(value: float | str | None, key: str) -> Decimal:
        try:
            amount = Decimal(str(value))
        except InvalidOperation:
            amount = Decimal("nan")
        if not amount.is_finite() or amount <= 0:
            raise wrong(key, f"{value!r} is no amount of dollars", "a number above 0, such as 20")
        return amount

    def window(text: str) -> Window:
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
        if match is None or match[1] + match[2] == match[3] + match[4]:
            raise wrong("only_between", f"{text!r} is no window", 'such as "20:00-06:00", in UTC')
        first, first_m, last, last_m = (int(number) for number in match.groups())
        return Window(first=first * 60 + first_m, last=last * 60 + last_m)

    def budget(entry: _BudgetFile) -> Budget:
        limit, part = dollars(entry.usd_per_month, "usd_per_month"), None
        if entry.waiting_usd_per_month is not None:
            part = dollars(entry.waiting_usd_per_month, "waiting_usd_per_month")
            if part > limit:
                raise wrong(
                    "waiting_usd_per_month", f"{part} is more than usd_per_month = {limit}",
                    f"waiting_usd_per_month = {limit}, or less",
                )  # fmt: skip
        return Budget(of=entry.of, name=entry.name, usd=limit, waiting_usd=part)

    used = _KEYS.get(raw.policy, ())
    for key in sorted({key for keys in _KEYS.values() for key in keys}):
        given = getattr(raw, key) is not None
        if given and key not in used:
            raise wrong(key, f"policy = {raw.policy.value!r} does not read it", "remove the line")
        if not given and key in used and key in _NEEDED:
            raise wrong("policy", f"{raw.policy.value!r} needs the key {key!r}", _line(key))
    if raw.margin is not None and not 1 <= raw.margin < float("inf"):
        raise wrong("margin", "must be at least 1", "margin = 1.1")
    if raw.cap is not None and not 0 < raw.cap < float("inf"):
        raise wrong("cap", "must be above 0", "cap = 2.0")
    if raw.depth is not None and raw.depth < 0:
        raise wrong("depth", "must be at least 0", "depth = 10")
    for entry in raw.budget:
        if entry.of is BudgetOf.ALL and entry.name is not None:
            raise wrong("budget", "of = 'all' takes no name", "remove the name")
    if not raw.to:
        raise wrong("to", "no target site", 'name one or more: to = ["lab-cloud"]')
    if raw.from_ in raw.to:
        rest = [name for name in raw.to if name != raw.from_] or ["lab-cloud"]
        raise wrong("to", f"{raw.from_!r} is both the origin and a target", f"to = {_list(rest)}")
    if len(set(raw.to)) != len(raw.to):
        raise wrong("to", "a target is named twice", f"to = {_list(dict.fromkeys(raw.to))}")
    for name in raw.to:
        site, partition = split_target(name)
        if partition is not None and site != raw.from_:
            raise wrong(
                "to",
                f"{name!r}: only jobs of {site} can be moved into a partition of {site}",
                f'from = "{site}", or the site alone: to = ["{site}"]',
            )
    if raw.max_moves_per_run < 1:
        raise wrong("max_moves_per_run", "must be at least 1", "max_moves_per_run = 10")
    if raw.spot_tries < 1:
        raise wrong("spot_tries", "must be at least 1", "spot = false takes none")
    for name in raw.target:
        if name not in raw.to:
            raise wrong(
                f"target.{name}", f"{name!r} is not in 'to'", f"targets: {', '.join(raw.to)}"
            )
    target = {
        name: TargetTerms(
            boot_s=seconds(terms.boot, f"target.{name}.boot"),
            staging_s=seconds(terms.staging, f"target.{name}.staging"),
            boot_timeout_s=seconds(terms.boot_timeout, f"target.{name}.boot_timeout"),
        )
        for name, terms in raw.target.items()
    }
    cron_interval_s = seconds(raw.cron_interval, "cron_interval") or 0
    if cron_interval_s < 1:
        raise wrong("cron_interval", "must be at least 1s", 'cron_interval = "5m"')
    return Policy(
        source=where,
        from_site=raw.from_,
        to=raw.to,
        max_wait_s=seconds(raw.max_wait, "max_wait"),
        deadline=raw.deadline,
        deadline_margin_s=default_margin_s(cron_interval_s, raw.order)
        if raw.deadline_margin is None
        else seconds(raw.deadline_margin, "deadline_margin") or 0,
        use_start_estimate=raw.use_start_estimate,
        max_moves_per_run=raw.max_moves_per_run,
        retry_after_s=seconds(raw.retry_after, "retry_after") or 0,
        cron_interval_s=cron_interval_s,
        order=raw.order,
        dependents=raw.dependents,
        at_limit=raw.at_limit,
        only_between=None if raw.only_between is None else window(raw.only_between),
        spot=raw.spot,
        spot_lost_s=seconds(raw.spot_lost, "spot_lost") or 0,
        spot_tries=raw.spot_tries,
        stage_early=raw.stage_early,
        target=target,
        kind=raw.policy,
        wait_s=seconds(raw.wait, "wait") or 0,
        depth=raw.depth or 0,
        wait_per_gpu_hour_s=seconds(raw.wait_per_gpu_hour, "wait_per_gpu_hour") or 0,
        hour_usd=Decimal(0) if raw.hour_usd is None else dollars(raw.hour_usd, "hour_usd"),
        margin=1.1 if raw.margin is None else raw.margin,
        cap=2.0 if raw.cap is None else raw.cap,
        budgets=tuple(budget(entry) for entry in raw.budget),
    )
