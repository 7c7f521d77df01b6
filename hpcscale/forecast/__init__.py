"""When jobs will start: plans of the queue, learned runtimes, bounds that hold, and demand."""

from hpcscale.extras import require

require("forecast", "a forecast")
