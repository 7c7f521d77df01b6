"""What a site's queue did before: traces and accounting as one columnar ``Workload``."""

from hpcscale.extras import require

require("forecast", "reading a workload history")
