"""What goes wrong in a simulation, when chance says so."""

from sim_site import ALIVE, MemorySlurm

from hpcscale.verify import submission_of

ONPREM, CLOUD = "lab-onprem", "lab-cloud"

# how often each may happen in an interleaving that has it at all
FAULTS = {
    "kill": 3,  # a burst process, before or after an act
    "lost_reply": 2,
    "lost_request": 2,
    "onprem_crash": 2,  # slurmctld forgets what it had not saved, and gives ids out again
    "cloud_crash": 2,
    "onprem_silent": 2,
    "cloud_silent": 2,
    "squeue_empty": 2,
    "squeue_fails": 2,
    "onprem_full": 1,
    "cloud_full": 1,
    "ledger_full": 1,
    "clock_jump": 2,
    "site_jump": 1,
    "cloud_node": 2,
    "onprem_free": 1,  # the strangers' job ends: a job that is not fenced starts
    "onprem_requeue": 2,
    "scancel_onprem": 1,
    "scancel_cloud": 1,
    "cancel_run": 1,
    "undo": 1,
    "unfence": 1,  # somebody edits ExcNodeList
    "put_back": 1,  # or the partition
    "reap": 2,
}


class Faults:
    """Acts of the world that nobody asked for; ``World`` is one."""

    def _fault(self):
        choices = [name for name, left in self.left.items() if left and name in self._acts]
        if not choices or self.random.random() >= self.chance:
            return
        name = self.random.choice(choices)
        act = self._acts[name]
        if act(self) is not False:
            self._count(name)

    def _crash(self, name):
        self.sim[name].crash()
        self.sim[name].frozen = True
        self.sim[name].resume()
        self.sim[name].clock.advance(1)  # no controller is back within the second
        self._sync()
        if self.random.random() < 0.5:  # somebody else gets the id
            MemorySlurm.run(
                self.sim[name],
                ["sbatch", "--parsable", "-N1", "--time=1"],
                stdin="#!/bin/sh\nsleep 30\n",
            )

    def _silent(self, name):
        self.silent_until[name] = self.now_s + self.random.choice([1, 5, 30, 120])
        if self.random.random() < 0.5:
            self.sim[name].stop()

    def _full(self, name):
        self.sim[name].files.full = True
        self.full_until[name] = self.now_s + self.random.choice([2, 20, 90])

    def _free(self):
        for filler in self.fillers:
            self.sim[ONPREM].plain(["scancel", filler])

    def _cloud_node(self):
        sim = self.sim[CLOUD]
        live = [j for j in sim.jobs.values() if j.state in {"CONFIGURING", "RUNNING"}]
        if not live:
            return False
        job = self.random.choice(live)
        if self.random.random() < 0.5:
            job.state, job.ends = "NODE_FAIL", sim.now()
            sim.touched()
        else:  # Slurm requeues it
            sim.plain(["scontrol", "requeue", sim.of(job)])
        self._sync()
        return True

    def _onprem_requeue(self):
        running = [j for j in self._origin_records() if j.state == "RUNNING"]
        if not running:
            return False
        sim = self.sim[ONPREM]
        sim.plain(["scontrol", "requeue", sim.of(self.random.choice(running))])
        self._sync()
        return True

    def _scancel_onprem(self):
        alive = [j for j in self._origin_records() if j.state in ALIVE]
        if not alive:
            return False
        self._scancel(ONPREM, alive)
        return True

    def _scancel_cloud(self):
        alive = [
            j
            for j in self.sim[CLOUD].jobs.values()
            if j.state in ALIVE and submission_of(j.comment) is not None
        ]
        if not alive:
            return False
        self._scancel(CLOUD, alive)
        return True

    def _scancel(self, name, alive):
        """Of an array all of it, or one element."""
        job = self.random.choice(alive)
        tasks = job.tasks or [job.task]
        if tasks == [None] or self.random.random() < 0.5:
            self.sim[name].plain(["scancel", str(job.base)])
            self.cancelled_by_user = True
        else:
            task = self.random.choice(tasks)
            self.sim[name].plain(["scancel", f"{job.base}_{task}"])
            self.cancelled_tasks.add(task)

    def _unfence(self):
        for job in self._origin_records():
            if job.state == "PENDING":
                job.exclude = ""
        self.sim[ONPREM].touched()

    def _put_back(self):
        moved = [j for j in self._origin_records() if j.partition != "gpu"]
        if not any(job.state == "PENDING" for job in moved):
            return False
        self.sim[ONPREM].plain(["scontrol", "update", f"JobId={moved[0].base}", "Partition=gpu"])
        return True

    def _site_jump(self):
        sim = self.random.choice(list(self.sim.values()))
        sim.clock.advance(self.random.choice([30, 400, 1500]))
        if not sim.silent:
            sim.tick()

    def _clock_jump(self):
        self.login_offset_s += self.random.choice([-3600, -30, 30, 700, 3600])

    def _call(self, name):
        idle = [p for p in self.processes if not p.busy]
        if not idle:
            return False
        if name == "cancel_run":
            self.cancelled_by_user = True
        self.start(self.random.choice(idle), getattr(self, name))
        return True

    _acts = {  # noqa: RUF012 # a table
        "onprem_crash": lambda w: w._crash(ONPREM),
        "cloud_crash": lambda w: w._crash(CLOUD),
        "onprem_silent": lambda w: w._silent(ONPREM),
        "cloud_silent": lambda w: w._silent(CLOUD),
        "onprem_full": lambda w: w._full(ONPREM),
        "cloud_full": lambda w: w._full(CLOUD),
        "clock_jump": _clock_jump,
        "site_jump": _site_jump,
        "cloud_node": _cloud_node,
        "onprem_free": _free,
        "onprem_requeue": _onprem_requeue,
        "scancel_onprem": _scancel_onprem,
        "scancel_cloud": _scancel_cloud,
        "unfence": _unfence,
        "put_back": _put_back,
        "cancel_run": lambda w: w._call("cancel_run"),
        "undo": lambda w: w._call("undo"),
        "reap": lambda w: w._call("reap"),
    }
