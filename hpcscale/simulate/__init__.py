"""Replays of a history: what a policy would have cost, and how long jobs would have waited."""

from hpcscale.extras import require

require("forecast", "the simulator")
