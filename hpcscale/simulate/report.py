"""The simulator's report: one HTML page with inline charts, which loads nothing from anywhere."""

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

import numpy as np

from hpcscale.history.workload import Workload
from hpcscale.simulate.compare import Comparison, fronts, timeline
from hpcscale.simulate.overflow import Floats
from hpcscale.simulate.policies import Tuned
from hpcscale.simulate.svg import BOTTOM, TOP, Chart

# of Okabe and Ito: told apart by colour-blind readers too
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#666666")
HERE, AWAY, WAITING = "#009e73", "#e69f00", "#d55e00"
ACCOUNTS = 12
SHORT = 0.8  # of all hours: if 99 % of the jobs have ended by then, the rest is not drawn
DOTS = "Each dot is a policy as in the table"
KNOBS = "; a line joins the best of its other knobs"
FRONT = ". Ringed and joined by dashes: no other policy is better in both"
KEY = (
    f'<p class="key"><span style="background:{HERE}"></span>GPUs busy on the cluster'
    f'<span style="background:{AWAY}"></span>GPUs in the cloud'
    f'<span style="background:{WAITING};height:2px;vertical-align:middle"></span>GPUs that waiting '
    'jobs ask for<span class="dashes"></span>GPUs of the cluster</p>'
)

STYLE = """
:root { --ink: #1b1f24; --soft: #5c6570; --rule: #d8dde3; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4af; --rule: #363d46; --paper: #15191e; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p { color: var(--soft); margin: .3rem 0; max-width: 75ch; } p.key { max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1.5rem; }
figure { margin: 0; display: flex; flex-direction: column; justify-content: flex-end; }
table + .pair { margin-top: 1.5rem; } figcaption { color: var(--soft); font-size: .9rem; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); }
svg text.name { fill: var(--ink); } .grid { stroke: var(--rule); stroke-width: 1; }
.ring, .front { fill: none; stroke: var(--soft); } .front { stroke-dasharray: 3 4; }
.axis { stroke: var(--soft); } .level { stroke: var(--soft); stroke-dasharray: 4 4; }
.key span { display: inline-block; height: .8em; margin: 0 .3em 0 1em; }
.key .dashes { height: 0; border-top: 2px dashed var(--soft); vertical-align: middle; }
.key span:first-child { margin-left: 0; } .key span { width: 1.2em; }
.bar { height: .8em; display: inline-block; }
"""


def page(made: Comparison, data: dict[str, Any], work: Workload) -> str:
    """The report.

    Args:
        made: the comparison.
        data: what the command prints as JSON.
        work: the history, for the names of accounts.
    """
    colors = {r.name: COLORS[k % len(COLORS)] for k, r in enumerate(made.results)}
    body = [
        f"<h1>Overflow policies on {escape(data['history'].rpartition('/')[2])}</h1>",
        f"<p>{_subtitle(data)}</p>",
        _table(data["policies"], colors),
        '<div class="pair">',
        _front(made, data, colors),
        _hits(data, colors),
        "</div>",
        "<h2>Queue and cloud over time</h2>",
        KEY,
        *_timelines(made, colors),
        _accounts(made, work, colors),
        "<h2>How it was made</h2>",
        f"<p>{_method(data)}</p>",
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>hpcscale burst simulate</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _subtitle(data: dict[str, Any]) -> str:
    text = (
        f"{data['jobs_scored']:,} jobs on {data['nodes']} nodes of {data['gpus_per_node']} GPUs; "
        f"the cloud at ${data['cloud_gpu_hour_usd']:.2f} a GPU-hour; runtimes {data['runtimes']}."
    )
    if data["equal_wait"]:
        text += f" Knobs set to the mean wait of {escape(data['equal_wait'])}"
        text += ", in hindsight." if data["knobs_set_in_hindsight"] else ", on earlier jobs."
    return text


def _table(rows: Sequence[dict[str, Any]], colors: dict[str, str]) -> str:
    head = ("Policy", "Cloud cost", "Mean wait, h", "p90, h", "p99, h", "Deadlines met",
            "Jobs in cloud", "Cluster busy")  # fmt: skip
    lines = ["<table><thead><tr>", *[f"<th>{name}</th>" for name in head], "</tr></thead><tbody>"]
    for row in rows:
        cells = (
            f'<b style="color:{colors[row["policy"]]}">{escape(row["policy"])}</b>',
            f"${row['cloud_cost_usd']:,.2f}",
            f"{row['mean_wait_h']:.4f}",
            f"{row['p90_wait_h']:.3f}",
            f"{row['p99_wait_h']:.3f}",
            f"{row['deadline_hit_rate']:.1%}",
            f"{row['jobs_in_cloud']:,}",
            f"{row['utilisation']:.1%}",
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table>"])


def _figure(svg: str, caption: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _top(values: Sequence[float]) -> float:
    return 1.08 * max([*values, 1e-9])


def _front(made: Comparison, data: dict[str, Any], colors: dict[str, str]) -> str:
    points = {
        row["policy"]: (row["mean_wait_h"], row["cloud_cost_usd"]) for row in data["policies"]
    }
    widest = _top([2 * (made.target_h or 0), *[wait for wait, _ in points.values()]])
    chart = Chart(
        "Cost against mean wait", "mean wait, hours", "cloud cost, $", (0, widest),
        (0, _top([cost for _, cost in points.values()])),
    )  # fmt: skip
    lines = 0
    if made.scored is made.instance:  # else the tries are of other jobs than the dots
        for result in made.results:
            best: list[tuple[float, float]] = []
            for wait, cost in sorted(result.tried):
                if wait <= widest and cost <= chart.y_range[1] and (not best or cost < best[-1][1]):
                    best.append((wait, cost))
            if len(best) > 1:
                xs, ys = zip(*best, strict=True)
                chart.line(xs, ys, colors[result.name], f"{result.name}: best knobs")
                lines += 1
    _dots(chart, points, colors, _on_front(data, "wait"), -1)
    note = f"{DOTS}{KNOBS if lines else ''}{FRONT}. Left and down is better."
    return _figure(chart.svg(), note)


def _hits(data: dict[str, Any], colors: dict[str, str]) -> str:
    points = {
        row["policy"]: (100 * row["deadline_hit_rate"], row["cloud_cost_usd"])
        for row in data["policies"]
    }
    least = min(x for x, _ in points.values())
    chart = Chart(
        "Cost against deadlines met", "deadlines met, %", "cloud cost, $",
        (max(0.0, min(95.0, least - 2)), 100.5), (0, _top([y for _, y in points.values()])),
    )  # fmt: skip
    _dots(chart, points, colors, _on_front(data, "deadlines"), 1)
    return _figure(chart.svg(), f"Dollars against deadlines met{FRONT}. Right and down is better.")


def _on_front(data: dict[str, Any], kind: str) -> set[str]:
    rows = data["policies"]
    return {row["policy"] for row, on in zip(rows, fronts(rows), strict=True) if kind in on}


def _dots(
    chart: Chart,
    points: dict[str, tuple[float, float]],
    colors: dict[str, str],
    ringed: Collection[str],
    better: int,
) -> None:
    """Dots with their names; names that would lie on another or on a dot go elsewhere, on a line.

    Args:
        chart: to draw on.
        points: by policy.
        colors: likewise.
        ringed: those on the front, which dashes join.
        better: 1 where more to the right is better, -1 where less is.
    """
    best = sorted({points[name] for name in ringed}, key=lambda p: better * p[0])
    if len(best) > 1:
        chart.stairs(best, "no policy is below this line")
    dots = [(chart.x(x), chart.y(y)) for x, y in points.values()]
    taken: list[tuple[float, float, float]] = []
    lowest = chart.height - BOTTOM - 4
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        px, py = chart.x(x), chart.y(y)
        side = chart.side(x)
        left, right = sorted((px + 9 * side, px + (9 + 7 * len(name)) * side))  # pixels a letter

        def free(at_y: float, left: float, right: float, own: tuple[float, float]) -> bool:
            clear = all(
                not (left - 8 < dx < right + 8 and abs(at_y - 4 - dy) < 10)
                for dx, dy in dots
                if own != (dx, dy)
            )
            return clear and all(
                end < left or right < begin or abs(at_y - ty) >= 14 for begin, end, ty in taken
            )

        shift = next(
            (
                by
                for by in sorted(range(-chart.height // 7 * 7, chart.height, 7), key=_nearest)
                if TOP + 10 <= py - 7 + by <= lowest and free(py - 7 + by, left, right, (px, py))
            ),
            0,
        )
        taken.append((left, right, py - 7 + shift))
        chart.point(
            x, y, colors[name], name, f"{name}: {x:.4g}, ${y:,.2f}", shift, ring=name in ringed
        )


def _nearest(shift: int) -> tuple[int, int]:
    """Sort key: little is better than much, down than up."""
    return abs(shift), -shift


def _timelines(made: Comparison, colors: dict[str, str]) -> list[str]:
    """Cloud and queue of each policy, all to one scale, one below the other."""
    # a few jobs that last for weeks would squeeze all others to a stripe
    until = max(float(np.quantile(r.outcome.end_h, 0.99)) for r in made.results)
    last = max(float(r.outcome.end_h.max()) for r in made.results)
    until = until if until < SHORT * last else last
    lines = {r.name: timeline(r.outcome, until_h=until) for r in made.results}
    capacity = made.scored.cluster.nodes * made.scored.cluster.gpus_per_node
    used = _top(
        [capacity, *[float((line["here"] + line["away"]).max()) for line in lines.values()]]
    )
    # a long queue asks for many times what the cluster has: it has an axis of its own
    asked = _top([float(line["waiting"].max()) for line in lines.values()] + [1.0])
    note = f"<p>The last 1 % of the ends, up to hour {last:,.0f}, are not shown.</p>"
    figures = [note if until < last else "", '<div class="pair">']
    for result in made.results:
        line = lines[result.name]
        caption = (
            f'<b style="color:{colors[result.name]}">{escape(result.name)}</b>: waiting jobs ask '
            f"for up to {line['waiting'].max():,.0f} GPUs"
        )
        figures.append(
            _figure(_timeline(result, line, used) + _queue(result, line, asked), caption)
        )
    return [*figures, "</div>"]


def _timeline(result: Tuned, line: dict[str, Floats], top: float) -> str:
    hours = line["hours"].tolist()
    here, away = line["here"], line["away"]
    cluster = result.outcome.instance.cluster
    capacity = cluster.nodes * cluster.gpus_per_node
    total = here + away
    chart = Chart(
        f"Cluster and cloud under {result.name}", "", "GPUs in use",
        (hours[0], hours[-1]), (0, top), height=200,
    )  # fmt: skip
    zero = np.zeros_like(here)
    chart.area(hours, zero.tolist(), here.tolist(), HERE, "busy on the cluster")
    chart.area(hours, here.tolist(), total.tolist(), AWAY, "in the cloud")
    chart.level(capacity, f"{capacity} GPUs on the cluster")
    return chart.svg()


def _queue(result: Tuned, line: dict[str, Floats], top: float) -> str:
    hours = line["hours"].tolist()
    chart = Chart(
        f"Queue under {result.name}", "hours since the first job", "asked for",
        (hours[0], hours[-1]), (0, top), height=150,
    )  # fmt: skip
    chart.line(hours, line["waiting"].tolist(), WAITING, "asked for, waiting")
    return chart.svg()


def _accounts(made: Comparison, work: Workload, colors: dict[str, str]) -> str:
    """Dollars by account; by partition or user where the history names no accounts."""
    rows = made.scored.rows
    kind, codes = "account", work.account[rows]
    for column in ("account", "partition", "user"):
        codes = getattr(work, column)[rows]
        kind = column
        if (codes >= 0).any():
            break
    else:
        return "<h2>Money by account</h2><p>The history names no accounts.</p>"
    names = work.names[kind]
    spent: dict[str, np.ndarray[Any, Any]] = {}
    for result in made.results:
        usd = result.outcome.usd
        spent[result.name] = np.bincount(codes + 1, usd, minlength=len(names) + 1)
    total = np.sum(list(spent.values()), axis=0)
    order = np.argsort(-total)
    order = order[total[order] >= 0.005]  # less than a cent is no money
    if not len(order):
        return f"<h2>Money by {kind}</h2><p>No job left.</p>"
    shown = [int(k) for k in order[:ACCOUNTS]]
    most = max(float(usd[shown].max()) for usd in spent.values()) or 1.0
    head = "".join(f"<th>{escape(name)}</th>" for name in spent)
    lines = [
        f"<h2>Money by {kind}</h2><table><thead>",
        f"<tr><th>{kind.capitalize()}</th>{head}</tr></thead><tbody>",
    ]
    for k in shown:
        cells = "".join(
            f'<td>${usd[k]:,.2f}<br><span class="bar" style="background:{colors[name]};'
            f'width:{100 * usd[k] / most:.2f}px"></span></td>'
            for name, usd in spent.items()
        )
        lines.append(f"<tr><td>{escape(names[k - 1] if k else 'none')}</td>{cells}</tr>")
    rest = [int(k) for k in order[ACCOUNTS:]]
    if rest:
        cells = "".join(f"<td>${usd[rest].sum():,.2f}</td>" for usd in spent.values())
        lines.append(f"<tr><td>{len(rest)} more</td>{cells}</tr>")
    return "".join([*lines, "</tbody></table>"])


def _method(data: dict[str, Any]) -> str:
    deadlines = (
        "Deadlines are made up: a share of the jobs wants its results 1.5, 2 or 4 runtimes and an "
        "hour after submission, drawn with the seed."
    )
    out = "; ".join(f"{n:,} jobs left out: {why}" for why, n in data["left_out"].items())
    out = ". ".join([*data["notes"], *([out] if out else [])])
    queue = (
        "The queue is walked in order of arrival and whoever fits starts, best fit; the wait of a "
        "job that leaves is the time it waited before. "
    )
    if data.get("model") == "slurm":
        queue = (
            "The queue is Slurm's: priority by submission, backfill by time limits, on single "
            "nodes. Who leaves is decided by the same code as on a real site; a wait ends when the "
            "job runs, in the cloud after its boot. Money counts boots and runs in vain. "
        )
    return escape(
        f"{data['read']}. {out + '. ' if out else ''}Seed {data['seed']}. {queue}{deadlines}"
    )
