"""Short ways to a decision, for tests that make a job's options themselves."""

import datetime as dt

from hpcscale.burst.candidates import place
from hpcscale.burst.decide import decide
from hpcscale.burst.offer import offers
from hpcscale.burst.plan import Forecast
from hpcscale.burst.seen import Budgets, Catalog, Foretold, Snapshot


def decided(jobs, policy, now, charges=(), *, replan=None, pending=0):
    """``decide`` on jobs that carry their options and starts; a plan anew is ``replan``'s."""
    foretold = Foretold(Forecast(pending=pending))
    if replan is not None:
        foretold.replan = replan
    budgets = Budgets(limits=policy.budgets, charges=tuple(charges))
    return decide(Snapshot(jobs=tuple(jobs)), foretold, Catalog(), budgets, policy, now)


def offered_at(spec, limit_s, site, policy, rows, today, **kw):  # noqa: PLR0917 -- as they were made
    """The options of a job at one target."""
    catalog = Catalog(sites={site.name: site}, rows=rows)
    now = dt.datetime.combine(today, dt.time(12), dt.UTC)
    return offers(place(spec, limit_s, site.name, policy, site, **kw), catalog, policy, now)
