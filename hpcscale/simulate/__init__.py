"""A site's queue run again: events, backfill, and what each job would have waited."""

from hpcscale.extras import require

require("forecast", "a simulation")
