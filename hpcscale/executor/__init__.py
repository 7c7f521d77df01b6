"""The submitit plugin: ``HpcscaleExecutor`` runs functions and scripts on any site.

It keeps submitit's folder, ``Job``, watcher and job side; what differs is who is asked: the site's
own Slurm through its transport, in place of a local ``sbatch``, ``sacct`` and ``scancel``, with
scripts from our renderer. No slurmdbd is needed, and no file system that both sides see. submitit
finds it by its entry points, under the name ``hpcscale``.
"""

import os
import typing as tp
from pathlib import Path

from submitit.auto import auto
from submitit.core import core, utils
from submitit.slurm import slurm

from hpcscale import batches
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, UnreachableError, UsageError
from hpcscale.executor.hints import hints_in_python
from hpcscale.executor.job import HpcscaleJob
from hpcscale.executor.jobside import HpcscaleJobEnvironment
from hpcscale.executor.known import site_file, there_of
from hpcscale.executor.notice import warn
from hpcscale.executor.params import (
    ParameterError,
    check,
    may_burst,
    num_tasks,
    time_limit_min,
    to_spec,
    valid_parameters,
)
from hpcscale.executor.pickles import outside_modules, write_pickles
from hpcscale.executor.probe import default_python, require_same_python
from hpcscale.executor.watch import HpcscaleInfoWatcher, own_ledger, watcher_of
from hpcscale.ledger import Attempt, Ledger, Role, Run
from hpcscale.prepare import prepare
from hpcscale.render import RenderedJob
from hpcscale.render.places import is_below
from hpcscale.settings import choose_site
from hpcscale.spec import JobSpec
from hpcscale.submit import Submission, submit

__all__ = [
    "HpcscaleExecutor",
    "HpcscaleInfoWatcher",
    "HpcscaleJob",
    "HpcscaleJobEnvironment",
]


class HpcscaleExecutor(slurm.SlurmExecutor):
    """Submits to a site.

    ``submitit.AutoExecutor(folder, cluster="hpcscale", hpcscale_site="lab-onprem")`` makes one too.
    Besides the parameters of submitit's Slurm executor it takes ``software`` (a ``[software.NAME]``
    of the site's profile), ``code`` (a directory that goes along, is imported from and started in),
    ``env``, ``burst``, ``max_cost_usd`` and ``deadline``.

    Args:
        folder: submitit's folder, on this machine; the site need not see it.
        max_num_timeout: as in submitit.
        max_pickle_size_gb: as in submitit.
        python: as in submitit: the interpreter that runs a function, on the site, as shell words.
            Default: the named software's, else this one on a local site, else ``python3``.
        site: the site's name; default as for `hpcscale submit`.
        software, code, burst: parameters that may be given here too.
        connection: to that site; made when needed.
        ledger: default the user's own.
    """

    job_class = HpcscaleJob

    def __init__(
        self,
        folder: str | Path,
        max_num_timeout: int = 3,
        max_pickle_size_gb: float = 1.0,
        python: str | None = None,
        *,
        site: str | None = None,
        software: str | None = None,
        code: str | Path | None = None,
        burst: str | None = None,
        connection: Connection | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        if python is not None and ("\n" in python or "\0" in python):
            raise UsageError("python= is one line of shell words")
        super().__init__(folder, max_num_timeout, max_pickle_size_gb, python)
        self._asked_python = python
        with hints_in_python():
            self.site = connection.site.name if connection else choose_site(site)
        self._ledger = ledger
        if connection is not None:
            watcher_of(self.site).use(connection)
        own = {"software": software, "code": code, "burst": burst}
        self._internal_update_parameters(**{k: v for k, v in own.items() if v is not None})
        _honour_slurm_parameters()

    @classmethod
    def affinity(cls) -> int:
        """Available everywhere, never chosen over submitit's own ``slurm``."""
        return 1

    @property
    def connection(self) -> Connection:
        """To the site, shared with its watcher."""
        return watcher_of(self.site).connection

    def submit_rendered(
        self, rendered: RenderedJob, *, run: Run | None = None, role: Role = Role.ONPREM
    ) -> HpcscaleJob[dict[str, tp.Any]]:
        """Submit a rendered script; its outcome is its exit code.

        Args:
            rendered: rendered for this executor's site.
            run: the run that this is a further attempt of.
            role: why this attempt exists.

        Raises:
            What ``hpcscale.submit.submit`` raises.
        """
        if rendered.site != self.site:
            raise UsageError(
                f"the script was rendered for {rendered.site}, this executor submits to {self.site}"
            )
        submission = submit(
            rendered, self.connection.site, self.connection, self._book(), run=run, role=role
        )
        job: HpcscaleJob[dict[str, tp.Any]] = HpcscaleJob(
            self.folder,
            str(submission.ref.job_id),
            site=self.site,
            submission_id=submission.submission_id,
            run_dir=submission.run_dir,
            rendered=True,
        )
        self._keep_script(job, submission)
        return job

    def _keep_script(self, job: HpcscaleJob[tp.Any], submission: Submission) -> None:
        """One file per job for whoever looks into submitit's folder."""
        job.paths.folder.mkdir(parents=True, exist_ok=True)
        job.paths.submission_file.write_text(submission.script, encoding="utf-8")

    def _book(self) -> Ledger:
        return self._ledger or own_ledger()

    # --- functions ---------------------------------------------------------------------------

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        return valid_parameters()

    def _internal_update_parameters(self, **kwargs: tp.Any) -> None:
        # submitit's common names (timeout_min, mem_gb, name), which AutoExecutor has translated
        own = self._valid_parameters()
        common = {k: v for k, v in kwargs.items() if k in self._equivalence_dict() and k not in own}
        kwargs = {k: v for k, v in kwargs.items() if k not in common}
        kwargs |= self._convert_parameters(common)
        unknown = sorted(set(kwargs) - own)
        if unknown:
            bare = [name.partition("_")[2] for name in unknown]  # hpcscale_partition, slurm_time
            raise ParameterError(
                f"no such parameters: {', '.join(unknown)}",
                hint=f"without the prefix: {', '.join(f'{name}=…' for name in bare)}"
                if own.issuperset(bare)
                else f"one of {', '.join(sorted(own))}",
            )
        check(kwargs)
        self.parameters.update(kwargs)

    def _num_tasks(self) -> int:
        return num_tasks(self.parameters)

    def _internal_process_submissions(
        self, delayed_submissions: list[utils.DelayedSubmission]
    ) -> list[core.Job[tp.Any]]:
        with hints_in_python():
            return self._send(list(delayed_submissions))

    def _send(self, submissions: list[utils.DelayedSubmission]) -> list[core.Job[tp.Any]]:
        for submission in submissions:
            if not callable(submission.function):
                raise ParameterError(
                    f"{submission.function!r} cannot be called",
                    hint="executor.submit(function, argument, …)",
                )
        site = self.connection.site
        software = self.parameters.get("software")
        python = self._asked_python or default_python(site, software)
        require_same_python(self.connection, python, software)
        self._tell_what_stays(submissions)
        folder = self._own_folder()
        pickles = write_pickles(
            folder,
            submissions,
            timeout_min=time_limit_min(self.parameters),
            max_num_timeout=self.max_num_timeout,
            max_size_gb=self.max_pickle_size_gb,
        )
        spec = to_spec(self.parameters, site, python, pickles, folder)
        if len(submissions) == 1:
            return [self._send_one(spec, pickles)]
        return self._send_many(spec, len(submissions))

    def _send_one(self, spec: JobSpec, pickles: Path) -> core.Job[tp.Any]:
        site = self.connection.site
        submission = submit(prepare(spec, site), site, self.connection, self._book())
        job = self._job(submission.submission_id, str(submission.ref.job_id))
        self._keep_script(job, submission)
        batches.link(pickles / "0.pkl", job.paths.submitted_pickle)
        _tell(submission.notices)
        return job

    def _send_many(self, spec: JobSpec, size: int) -> list[core.Job[tp.Any]]:
        """Note the whole batch, send what the site takes; the rest is sent when it has room."""
        parallel = max(1, int(self.parameters.get("array_parallelism") or 256))
        ledger = self._book()
        run_id = batches.store(ledger, spec, self.site, size, parallel).run.run_id
        try:
            batch = batches.send(ledger, self.connection, run_id)
        except HpcscaleError as exc:
            batch = batches.read(ledger, run_id)
            passes = isinstance(exc, UnreachableError) and batch.parts
            if not passes:
                batches.drop(ledger, run_id, exc.message)
            if not batch.parts:
                raise  # nothing was sent: as if it had not been called
            warn(f"{self.site} took a part only: {exc}")
            batch = batches.read(ledger, run_id)
        if batch.unsent:
            warn(
                f"{self.site} took {size - batch.unsent} of {size} tasks"
                + (f" ({batch.blocked})" if batch.blocked else "")
                + "; the rest is sent when there is room, by a live result() or `hpcscale tend`"
            )
        return self._jobs_of(batch, Path(spec.inputs["submitit"]))

    def _jobs_of(self, batch: batches.Batch, pickles: Path) -> list[core.Job[tp.Any]]:
        """One job for each task; there may be very many, so what a part shares is asked once."""
        folder = self._folder_here()
        jobs: dict[int, core.Job[tp.Any]] = {}
        for part in batch.parts:
            if part.attempt is None or part.attempt.job_id is None:
                continue
            make = self._maker(part.attempt, folder)
            base, made, first = part.attempt.job_id.base, set[str](), True
            pattern = str(utils.JobPaths(folder).submitted_pickle)
            for task in range(part.start, part.stop):
                number = part.number(task)
                if number is None:
                    continue
                job = jobs[task] = make(f"{base}_{number}")
                target = pattern.replace("%j", job.job_id)
                if "%" in target:
                    target = str(job.paths.submitted_pickle)
                directory = os.path.dirname(target)  # noqa: PTH120 # 10,000 times
                if directory not in made:
                    made.add(directory)
                    Path(directory).mkdir(parents=True, exist_ok=True)
                batches.link(f"{pickles}/{task}.pkl", target)
                if first:
                    job.paths.submission_file.write_text(part.attempt.script, encoding="utf-8")
                    first = False
        run_id = batch.run.run_id
        return [jobs.get(task) or self._waiting(run_id, task, folder) for task in range(batch.size)]

    def _job(self, submission_id: str, job_id: str) -> HpcscaleJob[tp.Any]:
        return self._maker(self._book().attempt(submission_id), self._folder_here())(job_id)

    def _maker(self, attempt: Attempt, folder: Path) -> tp.Callable[[str], HpcscaleJob[tp.Any]]:
        """Makes jobs of one attempt."""
        tasks, there = range(self._num_tasks()), there_of(attempt)

        def make(job_id: str) -> HpcscaleJob[tp.Any]:
            return HpcscaleJob(
                folder,
                job_id,
                tasks,
                site=self.site,
                submission_id=attempt.submission_id,
                run_dir=attempt.run_dir,
                there=there,
            )

        return make

    def _waiting(self, run_id: str, task: int, folder: Path) -> HpcscaleJob[tp.Any]:
        return HpcscaleJob(
            folder,
            f"{run_id}_{task}",
            range(self._num_tasks()),
            site=self.site,
            batch=(run_id, task),
        )

    def _own_folder(self) -> Path:
        """Submitit's folder without ids in it."""
        return utils.JobPaths.get_first_id_independent_folder(self._folder_here())

    def _folder_here(self) -> Path:
        """Submitit's folder; a second site has one of its own below it.

        Job ids of two sites may be the same, and submitit names its files by them.
        """
        whole = utils.JobPaths.get_first_id_independent_folder(self.folder)
        owner = site_file(self.folder)
        owner.parent.mkdir(parents=True, exist_ok=True)
        try:
            with owner.open("x", encoding="utf-8") as file:
                file.write(self.site)
        except FileExistsError:
            pass
        if owner.read_text(encoding="utf-8").strip() in {self.site, ""}:
            return Path(self.folder)
        return whole / self.site / self.folder.relative_to(whole)

    def _tell_what_stays(self, submissions: list[utils.DelayedSubmission]) -> None:
        """A function of a module that is installed nowhere is not found on another machine."""
        burst = may_burst(self.parameters)
        if burst and not self.parameters.get("software"):
            warn(
                "hpcscale_burst: it can move only where its Python has a name: "
                "hpcscale_software=NAME of a [software.NAME] at both sites"
            )
        if self.parameters.get("code"):
            return
        outside = outside_modules(submissions)
        local = self.connection.transport.is_local
        if local and not burst:  # what the nodes see is used in place
            site = self.connection.site.profile_of(self.parameters.get("partition"))
            outside = {
                name: root
                for name, root in outside.items()
                if not is_below(root, site.shared_dirs)
                and not is_below(os.path.realpath(root), site.shared_dirs)
            }
            why = f"below none of the shared_dirs of {self.site}, so its nodes"
        else:
            why = f"installed nowhere, so {'another site' if local else self.site}"
        if outside:
            roots = sorted(set(outside.values()))
            code = roots[0] if len(roots) == 1 else "DIRECTORY"
            warn(
                f"{', '.join(outside)}: {why} may not have it; "
                f"hpcscale_code={code!r} makes it go along"
            )


def _tell(notices: tp.Sequence[str]) -> None:
    for notice in notices:
        warn(notice)


def _honour_slurm_parameters() -> None:
    """``slurm_*`` parameters of an ``AutoExecutor`` for us count as ``hpcscale_*``, with a notice.

    submitit drops parameters of other executors without a word, and there is no hook: its one
    method that sees them all is wrapped, once.
    """
    theirs = auto.AutoExecutor._internal_update_parameters  # noqa: SLF001 # see above
    if getattr(theirs, "hpcscale", False):
        return

    def update(self: auto.AutoExecutor, **kwargs: tp.Any) -> None:
        if self.cluster == HpcscaleExecutor.name():
            moved = [k for k in kwargs if k.startswith("slurm_") and kwargs[k] is not None]
            for name in moved:
                kwargs.setdefault("hpcscale_" + name.removeprefix("slurm_"), kwargs[name])
                del kwargs[name]
            if moved:
                told = (f"{n} as hpcscale_{n.removeprefix('slurm_')}" for n in sorted(moved))
                warn(f"hpcscale uses {', '.join(told)}: write it so")
        theirs(self, **kwargs)

    update.hpcscale = True  # type: ignore[attr-defined] # how a second call knows it
    auto.AutoExecutor._internal_update_parameters = update  # type: ignore[method-assign] # see above # noqa: SLF001
