"""The forecast of a live site: what it shows, what was learned of it, when a job would start."""

from hpcscale.extras import require

require("forecast", "a forecast")
