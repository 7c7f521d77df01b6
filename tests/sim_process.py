"""A burst process, and a site as it reaches it: each act may be its last before another's."""

from sim_site import MemorySlurm

from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, Completed
from hpcscale.verify import submission_of


class Killed(BaseException):
    """SIGKILL: nothing that the process does afterwards has any effect."""


class Process:
    """One burst process on a ledger; between its calls it is not there."""

    def __init__(self, name, ledger):
        self.name = name
        self.ledger = ledger
        self.task = None  # a greenlet while it is in a call
        self.dead = False
        self.kill_in = None  # acts until it is killed
        self.fenced_at = self.read_at = 0  # acts counted
        self.acts = 0

    @property
    def busy(self):
        return self.task is not None and not self.task.dead


class SimSite(MemorySlurm):
    """A site as burst processes reach it: each act may be the last thing before another's."""

    def __init__(self, world, name, **options):
        super().__init__(**options)
        self.world = world
        self.site_name = name

    def run(self, argv, *, stdin=None, env=None, cwd=None, timeout_s=DEFAULT_TIMEOUT_S):
        world = self.world
        process = world.current()
        if process is None:
            return super().run(argv, stdin=stdin)
        command = argv[0].rpartition("/")[2]
        world.before(process, self)
        if command == "squeue":
            if world.take("squeue_empty"):
                return Completed(tuple(argv), 0, "", "")
            if world.take("squeue_fails"):
                return Completed(tuple(argv), 1, "", "slurm_load_jobs error: Unexpected message\n")
        done = super().run(argv, stdin=stdin)
        world.saw(process, self, command, argv, done)
        world.after(process, self)
        return done

    def _sbatch(self, argv, script):
        done = super()._sbatch(argv, script)
        for job in self.jobs.values():
            if submission_of(job.comment) is not None:
                job.runtime_s = job.limit_s + 1  # its script ends it, or its limit
        return done

    def put_bytes(self, data, remote, *, mode=0o644):
        process = self.world.current()
        if process is None:
            return super().put_bytes(data, remote, mode=mode)
        self.world.before(process, self)
        super().put_bytes(data, remote, mode=mode)
        return self.world.after(process, self)

    def read_bytes(self, remote, *, offset=0, limit=None):
        process = self.world.current()
        if process is None:
            return super().read_bytes(remote, offset=offset, limit=limit)
        self.world.before(process, self)
        data = super().read_bytes(remote, offset=offset, limit=limit)
        self.world.after(process, self)
        return data
