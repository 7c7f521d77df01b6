"""The nodes of a site: who holds which, and Slurm's passes over the queue on them."""

from itertools import chain

import numpy as np

from hpcscale.simulate import site_kernel, site_slurm_kernel
from hpcscale.simulate.site_types import Ints, Jobs, SiteModel


class Floor:
    """Nodes, filled one by one.

    Attributes:
        units: of each node.
        kind: its class.
        free: units of it that nobody has.
        idle: CPUs likewise.
        each: CPUs of each job on each of its nodes.
        pieces: nodes of each job that holds some; of -1 - N when node N is in repair.
        due: when each gives them back at the latest.
    """

    def __init__(self, jobs: Jobs, model: SiteModel) -> None:
        self.jobs, self.model = jobs, model
        units = [c.units for c in model.classes for _ in range(c.nodes)]
        self.units = np.array(units, dtype=np.int64)
        kinds = [k for k, c in enumerate(model.classes) for _ in range(c.nodes)]
        self.kind = np.array(kinds, dtype=np.int64)
        self.free = self.units.copy()
        self.each = jobs.need if jobs.cpus is None else jobs.cpus
        self.idle = np.array(
            [c.cpus or c.units for c in model.classes for _ in range(c.nodes)], dtype=np.int64
        )
        self.pieces: dict[int, list[int]] = {}
        self.due: dict[int, int] = {}
        self._blocked = np.zeros(int(jobs.part.max(initial=0)) + 1, dtype=np.int64)

    def start(self, now: int, waiting: list[int], *, backfill: bool) -> list[int]:
        """Make a pass; those of ``waiting`` (in priority order) that start."""
        order = np.array(waiting, dtype=np.int64)
        if self.model.bf_first_window_s:
            start, ptr, where = self._as_slurm(now, order, backfill=backfill)
        else:
            start, ptr, where = self._exact(now, order, self.free, self.jobs.limit_s, backfill)
        started = []
        for q, j in enumerate(waiting):
            if start[q] == now and ptr[q] >= 0:
                self.pieces[j] = where[ptr[q] : ptr[q] + self.jobs.count[j]].tolist()
                self.due[j] = now + int(self.jobs.limit_s[j])
                started.append(j)
                if not self.model.bf_first_window_s:
                    self.idle[self.pieces[j]] -= self.each[j]
        return started

    def plan(
        self, now: int, waiting: list[int], lasts: Ints, due: dict[int, int]
    ) -> dict[int, int]:
        """Start of each waiting job if they run so long and those that run end then; exact."""
        order = np.array(waiting, dtype=np.int64)
        start, _, _ = self._exact(
            now, order, self.free.copy(), lasts, True, due=due, main=False, most=len(order)
        )
        return dict(zip(waiting, start.tolist(), strict=True))

    def release(self, job: int) -> None:
        """Give back what a job, or a repair, holds."""
        need = int(self.jobs.need[job]) if job >= 0 else 0
        for n in self.pieces.pop(job):
            self.free[n] += need if job >= 0 else self.units[n]
            self.idle[n] += self.each[job] if job >= 0 else 0
        del self.due[job]

    def repair(self, node: int, until: int) -> None:
        """Take a node that nobody holds any more out of use."""
        self.free[node] -= self.units[node]
        self.pieces[-1 - node] = [node]
        self.due[-1 - node] = until

    def _filled(self, order: Ints) -> tuple[Ints, Ints, Ints]:
        size = len(order)
        where = np.empty(int(self.jobs.count[order].sum()) + 1, np.int64)
        return np.empty(size, np.int64), np.empty(size, np.int64), where

    def _exact(
        self, now: int, order: Ints, free: Ints, limit: Ints, backfill: bool, *,
        due: dict[int, int] | None = None, main: bool = True, most: int | None = None,
    ) -> tuple[Ints, Ints, Ints]:  # fmt: skip
        """One pass by ``site_kernel``; ``free`` is changed."""
        jobs, model = self.jobs, self.model
        at = self.due if due is None else due
        sizes = np.array([len(nodes) for nodes in self.pieces.values()], dtype=np.int64)
        each = [
            int(jobs.need[j]) if j >= 0 else int(self.units[nodes[0]])
            for j, nodes in self.pieces.items()
        ]
        ends = np.repeat(np.array([at[j] for j in self.pieces], dtype=np.int64), sizes)
        units = np.repeat(np.array(each, dtype=np.int64), sizes)
        taken = np.fromiter(chain.from_iterable(self.pieces.values()), np.int64, len(ends))
        start, ptr, where = self._filled(order)
        site_kernel.schedule(
            now, free, self.kind, len(ends), ends, taken, units,
            order, len(order), jobs.need, jobs.count, jobs.mask, jobs.part, limit,
            main, backfill, model.bf_resolution_s, model.bf_window_s,
            most or model.bf_max_job_test, model.bf_whole_nodes, self._blocked, start, ptr, where,
        )  # fmt: skip
        return start, ptr, where

    def _as_slurm(self, now: int, order: Ints, *, backfill: bool) -> tuple[Ints, Ints, Ints]:
        """One pass by ``site_slurm_kernel``."""
        jobs, model = self.jobs, self.model
        down = np.zeros(len(self.units), dtype=np.bool_)
        held: list[tuple[int, int, int, int]] = []
        for j in sorted(self.pieces, key=self.due.__getitem__):
            if j < 0:
                down[self.pieces[j]] = True
            else:
                need = int(jobs.need[j])
                held += [(self.due[j], n, need, j) for n in self.pieces[j]]
        start, ptr, where = self._filled(order)
        columns = np.zeros((4, len(held) + len(where)), dtype=np.int64)
        if held:
            columns[:, : len(held)] = np.array(held, dtype=np.int64).T
        site_slurm_kernel.slurm_pass(
            now, self.free, self.idle, self.units, self.kind, down, len(held),
            columns[0], columns[1], columns[2], columns[3],
            order, jobs.need, self.each, jobs.count, jobs.mask, jobs.part, jobs.limit_s,
            backfill, model.bf_resolution_s, model.bf_window_s, model.bf_max_job_test,
            model.bf_first_window_s, self._blocked, start, ptr, where,
        )  # fmt: skip
        return start, ptr, where
