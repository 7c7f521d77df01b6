"""A Hydra launcher: ``python app.py --multirun hydra/launcher=hpcscale hydra.launcher.site=NAME``.

Each batch of a sweep is one array of functions of our submitit executor. Hydra imports this at
every start, so nothing heavy is imported here. On a site that does not see the sweep's directory
each job writes into a directory of its own, which comes back with its result.
"""

import io
import logging
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    filter_overrides,
    setup_globals,
)
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from hpcscale.errors import HpcscaleError

if TYPE_CHECKING:
    from hpcscale.executor import HpcscaleExecutor

log = logging.getLogger(__name__)


@dataclass
class HpcscaleLauncherConf:
    """``hydra.launcher``: the executor's parameters, under submitit's names.

    Attributes:
        site: default as for `hpcscale submit`.
        submitit_folder: pickles, logs and scripts.
        software, python, code, burst, max_cost_usd, deadline: as for the executor.
        additional_parameters: other sbatch options.
    """

    _target_: str = "hydra_plugins.hpcscale_launcher.HpcscaleLauncher"
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    site: str | None = None
    software: str | None = None
    python: str | None = None
    code: str | None = None
    burst: str | None = None
    max_cost_usd: str | None = None
    deadline: str | None = None
    name: str = "${hydra.job.name}"
    timeout_min: int = 60
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    setup: list[str] | None = None
    teardown: list[str] | None = None
    env: dict[str, str] | None = None
    signal_delay_s: int = 120
    max_num_timeout: int = 0
    array_parallelism: int = 256
    additional_parameters: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/launcher", name="hpcscale", node=HpcscaleLauncherConf, provider="hpcscale"
)


class HpcscaleLauncher(Launcher):
    """Runs the jobs of a sweep at a site; the arguments are ``HpcscaleLauncherConf``'s fields."""

    def __init__(self, submitit_folder: str, **parameters: Any) -> None:
        self.folder = submitit_folder
        self.parameters: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in parameters.items()
            if value is not None
        }
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives for the whole sweep."""
        self.config, self.task_function = config, task_function
        self.hydra_context = hydra_context

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """One batch of a sweep: an array of functions; waits for all of them.

        A job that was lost is a failed one: the results of the others still come.
        """
        import cloudpickle
        from submitit.core.utils import FailedJobError, UncompletedJobError

        from hpcscale.hydra import jobside

        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep_dir = Path(str(self.config.hydra.sweep.dir)).absolute()
        sweep_dir.mkdir(parents=True, exist_ok=True)
        executor = self._executor()
        home = self._sees(executor, sweep_dir)
        calls = [
            self._call(overrides, initial_job_idx + n, sweep_dir, executor.site, home=home)
            for n, overrides in enumerate(job_overrides)
        ]
        cloudpickle.register_pickle_by_value(jobside)  # hpcscale is not at the site
        try:
            jobs = executor.map_array(jobside.run_one, *zip(*calls, strict=True))
        finally:
            cloudpickle.unregister_pickle_by_value(jobside)
        returned: list[JobReturn] = []
        for job, call in zip(jobs, calls, strict=True):
            try:
                outcome, packed = job.results()[0]
            except (FailedJobError, UncompletedJobError, HpcscaleError) as exc:
                outcome, packed = JobReturn(cfg=call[2], status=JobStatus.FAILED), None
                outcome.return_value = exc
            if packed is not None:
                _unpack(packed, sweep_dir)
            returned.append(outcome)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returned

    def _executor(self) -> "HpcscaleExecutor":
        from hpcscale.executor import HpcscaleExecutor

        given = dict(self.parameters)
        own: dict[str, Any] = {
            k: given.pop(k) for k in ("site", "python", "max_num_timeout") if k in given
        }
        executor = HpcscaleExecutor(Path(self.folder).absolute(), **own)
        executor.update_parameters(**executor._convert_parameters(given))  # noqa: SLF001 # as AutoExecutor does
        return executor

    def _sees(self, executor: "HpcscaleExecutor", sweep_dir: Path) -> bool:
        site = executor.connection.site
        return site.transport.kind == "local" and any(
            root and sweep_dir.is_relative_to(root) for root in site.shared_dirs
        )

    def _call(
        self, overrides: Sequence[str], number: int, sweep_dir: Path, site: str, *, home: bool
    ) -> tuple[Any, ...]:
        """Arguments of one job."""
        assert self.config is not None
        assert self.hydra_context is not None
        log.info("#%d at %s: %s", number, site, " ".join(filter_overrides(overrides)))
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            config.hydra.sweep.dir = str(sweep_dir)
            # else its type goes along, which the job cannot import
            plain = OmegaConf.to_container(config.hydra.launcher, resolve=False)
            config.hydra.launcher = OmegaConf.create(plain)
        resolvers = dict(BaseContainer._resolvers)  # noqa: SLF001 # there is no public list
        # its loader keeps every configuration that it has read, of our own types too
        context = HydraContext(
            config_loader=cast(ConfigLoader, None), callbacks=self.hydra_context.callbacks
        )
        return context, self.task_function, config, resolvers, home


def _unpack(packed: bytes, directory: Path) -> None:
    """A job's output directory: regular files and directories, below ours, and nothing else."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        members = tar.getmembers()
        for member in members:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise HpcscaleError(
                    f"a job sent back {member.name!r}: only files and directories below its own",
                    where=str(directory),
                    hint="the other results are there; let the job write no links into its output",
                )
        # by hand: the filters of tarfile came with Python 3.11.4, Debian 12 has 3.11.2
        directory.mkdir(parents=True, exist_ok=True)
        root = directory.resolve()
        for member in members:
            target = root / member.name
            if not target.parent.resolve().is_relative_to(root):
                raise HpcscaleError(f"a link here leads out: {member.name!r}", where=str(directory))
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source := tar.extractfile(member)) is not None:
                target.unlink(missing_ok=True)
                with target.open("xb") as out:
                    shutil.copyfileobj(source, out)
                target.chmod(0o644 | member.mode & 0o111)
