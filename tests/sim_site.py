"""A site for deterministic simulation: ``FakeSlurm`` with files in memory, and scripts that run.

The controller is ``FakeSlurm``'s own, which the contract suite holds to what real Slurm does. Files
are a dictionary with links that are counted; ``tests/unit/test_sim_site.py`` compares them with the
real commands. Nothing here starts a process, so a site answers in microseconds.
"""

import fnmatch
import math
import operator

from hpcscale.errors import HpcscaleError, NotFoundError
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, Completed
from hpcscale.testing import FakeSlurm
from hpcscale.testing.controller import SAVE_PERIOD_S

ALIVE = {"PENDING", "CONFIGURING", "RUNNING"}
FULL = "No space left on device"


class MemoryFiles:
    """The few commands on files that hpcscale uses at a site, on a dictionary.

    A name leads to a list ``[content, links]``, shared by all names of one file.
    """

    def __init__(self):
        self.files = {}
        self.dirs = {"/"}
        self.full = False

    def copy(self):
        other = MemoryFiles()
        known = {}
        for path, node in self.files.items():
            other.files[path] = known.setdefault(id(node), list(node))
        other.dirs = set(self.dirs)
        return other

    # ---- as a script does it ----

    def mkdir(self, path):
        """``mkdir -p``; False on a full disk."""
        new = []
        while path not in self.dirs:
            new.append(path)
            path = path.rpartition("/")[0] or "/"
        if new and self.full:
            return False
        self.dirs.update(new)
        return True

    def write(self, path, data):
        """A redirection; on a full disk the name is there and the content is not."""
        if path.rpartition("/")[0] not in self.dirs:
            return False
        node = self.files.setdefault(path, [b"", 1])
        node[0] = b"" if self.full else data
        return not self.full

    def read(self, path):
        node = self.files.get(path)
        return None if node is None else node[0]

    def link(self, old, new):
        """``ln -T``: makes the name once, whole."""
        node = self.files.get(old)
        if node is None or new in self.files or new in self.dirs or self.full:
            return False
        self.files[new] = node
        node[1] += 1
        return True

    def same(self, one, other):
        """``-ef``."""
        node = self.files.get(one)
        return node is not None and node is self.files.get(other)

    def move(self, old, new):
        node = self.files.pop(old, None)
        if node is None:
            return False
        self.remove(new)
        self.files[new] = node
        return True

    def remove(self, path):
        node = self.files.pop(path, None)
        if node is not None:
            node[1] -= 1

    # ---- as a Transport ----

    def run(self, argv, *, stdin=None, env=None, cwd=None, timeout_s=DEFAULT_TIMEOUT_S):
        code, out, err = getattr(self, f"_{argv[0].rpartition('/')[2]}")(list(argv[1:]))
        return Completed(tuple(argv), code, out, err)

    def put_bytes(self, data, remote, *, mode=0o600):
        if remote.rpartition("/")[0] not in self.dirs:
            raise NotFoundError(f"No such file or directory: {remote}")
        if not self.write(remote, data):
            raise HpcscaleError(FULL, where=remote)

    def put_file(self, local, remote, *, mode=None):
        self.put_bytes(local.read_bytes(), remote)

    def read_bytes(self, remote, *, offset=0, limit=None):
        data = self.read(remote)
        if data is None:
            raise NotFoundError(f"No such file or directory: {remote}")
        return data[offset:] if limit is None else data[offset : offset + limit]

    def get_file(self, remote, local):
        local.write_bytes(self.read_bytes(remote))

    def close(self):
        pass

    def _names(self, words):
        return [w for w in words if not w.startswith("-")]

    def _mkdir(self, words):
        done = [self.mkdir(path) for path in self._names(words)]
        return (0, "", "") if all(done) else (1, "", f"mkdir: {FULL}\n")

    def _install(self, words):
        return self._mkdir([w for w in words if not w.isdigit()])

    def _sh(self, words):
        """Of small scripts that one, which makes a run's directories for its owner alone."""
        script, _, *paths = words[1:]
        if not script.startswith('umask 077; mkdir -p -- "$@"'):
            raise NotImplementedError(script)
        return self._mkdir(paths)

    def _rm(self, words):
        for path in self._names(words):
            self.remove(path)
            if "-rf" in words:
                below = path + "/"
                for name in [n for n in self.files if n.startswith(below)]:
                    self.remove(name)
                self.dirs = {d for d in self.dirs if d != path and not d.startswith(below)}
        return 0, "", ""

    def _ln(self, words):
        old, new = self._names(words)
        if self.link(old, new):
            return 0, "", ""
        if new in self.files or new in self.dirs:
            return 1, "", f"ln: failed to create hard link '{new}': File exists\n"
        if old not in self.files:
            return 1, "", f"ln: failed to access '{old}': No such file or directory\n"
        return 1, "", f"ln: failed to create hard link '{new}': {FULL}\n"

    def _stat(self, words):
        path = self._names(words)[0]
        if path in self.files:
            return 0, (str(self.files[path][1]) if "-c%h" in words else "regular file") + "\n", ""
        if path in self.dirs:
            return 0, "directory\n", ""
        return 1, "", f"stat: cannot statx '{path}': No such file or directory\n"

    def _grep(self, words):
        pattern = next(w for w in words if w.startswith("--include=")).partition("=")[2]
        tops = tuple(path + "/" for path in words[words.index("--") + 1 :])
        out = ""
        for path, node in self.files.items():
            if path.startswith(tops) and fnmatch.fnmatchcase(path.rpartition("/")[2], pattern):
                out += "".join(f"{path}\0{line}\n" for line in node[0].decode().splitlines())
        return (0 if out else 1), out, ""

    def _find(self, words):
        top = self._names(words)[0]
        if "-name" not in words:  # a listing of results: there are none
            return (0, "", "") if top in self.dirs else (1, "", "No such file or directory\n")
        pattern = words[words.index("-name") + 1]
        out = ""
        for path, node in self.files.items():
            rest = path.removeprefix(top + "/")
            if rest != path and rest.count("/") == 1:
                name = rest.partition("/")[2]
                if fnmatch.fnmatchcase(name, pattern):
                    out += "".join(f"{path}:{line}\n" for line in node[0].decode().splitlines())
        return 0, out, ""

    def _id(self, words):
        return 0, "root\n", ""


_OF_A_JOB = operator.attrgetter(
    "number", "base", "task", "name", "user", "comment", "partition", "nodes_wanted",
    "gpus_per_node", "exclude", "limit_s", "submitted", "eligible", "throttle", "state", "reason",
    "started", "ends", "status", "restarts", "held", "dependency",
)  # fmt: skip
_MANY = 20_000


class MemorySlurm(FakeSlurm):
    """``FakeSlurm`` whose files are in memory; a test may take over its jobs' ends."""

    is_local = False
    remembers = False  # what squeue said of the same jobs, and that nothing is due
    _said = {}  # noqa: RUF012 # shared by all sites

    def __init__(self, **options):
        self._as_it_is = self._at = None
        self._until = None  # with nodes that register or not: nothing is due until ``_due``
        self._due = 0
        self._kept = False  # what was saved last is what it has
        self._answers = {}  # of squeue, as long as nothing happens
        self.frozen = False  # nodes have not registered with a controller that came up
        super().__init__(**options)
        self.files = MemoryFiles()

    @property
    def _files(self):
        return self.files

    @property
    def silent(self):
        return self.down or self.hanging

    def as_it_stands(self):
        """All of it, to be put back in another."""
        when, number, jobs = self._saved
        clock = self.clock.now()
        return (
            clock,
            self._next,
            self._copied(),
            (when, number, self._copied(jobs)),
            self.files.copy(),
        )

    def put_back(self, state):
        now, self._next, jobs, (when, number, saved), files = state
        self.clock._now = now
        self.jobs, self._saved = self._copied(jobs), (when, number, self._copied(saved))
        self.files = files.copy()
        self.touched()

    def now(self):
        at = self.clock._now
        if at is not self._at:
            self._at, self._seconds = at, int(at.timestamp())
        return self._seconds

    def touched(self):
        """Jobs are no longer what they were: also to be called by who changes one himself."""
        self._as_it_is = self._until = None
        self._kept = False
        self._answers.clear()

    def as_it_is(self):
        """All that its jobs are."""
        if self._as_it_is is None:
            jobs = self.jobs.values()
            self._as_it_is = tuple([(*_OF_A_JOB(j), *j.nodes, *j.tasks) for j in jobs])
        return self._as_it_is

    def run(self, argv, *, stdin=None, env=None, cwd=None, timeout_s=DEFAULT_TIMEOUT_S):
        asks = self.remembers and argv[0].endswith("squeue") and not self.silent
        if asks and self._at_rest():
            self.tick()
            if done := self._answers.get(tuple(argv)):
                return done
        done = super().run(argv, stdin=stdin)
        if asks and self._until is not None:  # nothing has happened since
            self._answers[tuple(argv)] = done
        return done

    def _at_rest(self):
        """Whether nothing is due: nothing was a moment ago, and the next thing is later."""
        return self._until == self.frozen and self.now() < self._due

    def tick(self):
        if not self.remembers:
            super().tick()
            return
        now = self.now()
        if self._at_rest():
            if now - self._saved[0] >= SAVE_PERIOD_S:
                jobs = self._saved[2] if self._kept else self._copied()
                self._saved, self._kept = (now, self._next, jobs), True
            return
        before = self.as_it_is()
        super().tick()
        self._as_it_is = None
        if self.as_it_is() != before:
            self.touched()  # and perhaps more is due
            return
        self._until, self._due = self.frozen, math.inf
        for job in self.jobs.values():
            due = {"CONFIGURING": job.started, "RUNNING": job.ends, "PENDING": job.eligible}
            at = due.get(job.state)
            if at is not None and now < at < self._due:
                self._due = at

    def crash(self):
        super().crash()
        self.touched()

    def _sbatch(self, argv, script):
        self.touched()
        return super()._sbatch(argv, script)

    def _scancel(self, argv, script):
        self.touched()
        return super()._scancel(argv, script)

    def _scontrol(self, argv, script):
        if "show" not in argv:
            self.touched()
        return super()._scontrol(argv, script)

    def _squeue(self, argv, script):
        if not self.remembers:
            return super()._squeue(argv, script)
        key = (tuple(argv), self.user, self.as_it_is())
        if key not in self._said:
            if len(self._said) >= _MANY:
                self._said.clear()
            self._said[key] = super()._squeue(argv, script)
        return self._said[key]

    def _schedule(self, now):
        if not self.frozen:
            super()._schedule(now)

    def of(self, job):
        """An id that names this record, to commands."""
        return str(job.base) if job.task is None else f"{job.base}_{job.task}"

    def plain(self, argv):
        """A command as a script or a stranger gives it: no fault is in its way."""
        return FakeSlurm.run(self, argv)
