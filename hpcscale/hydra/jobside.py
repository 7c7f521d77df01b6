"""What runs in a sweep's job, with Hydra alone: it goes along by value, hpcscale is not there."""

import typing as tp


def run_one(
    context: tp.Any, task: tp.Any, config: tp.Any, resolvers: dict[str, tp.Any], home: bool
) -> tuple[tp.Any, bytes | None]:
    """One job of a sweep: what Hydra returns of it, and its output directory as a tar file.

    Args:
        context: Hydra's, of the sweep.
        task: the user's function.
        config: of this job, with ``hydra``.
        resolvers: OmegaConf's, as the submitting process has them.
        home: whether the job writes where the sweep belongs; its directory is brought back if not.
    """
    import io
    import tarfile
    import tempfile
    from pathlib import Path

    import submitit
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict, read_write
    from omegaconf.basecontainer import BaseContainer

    setup_globals()
    for name, resolver in resolvers.items():
        BaseContainer._resolvers.setdefault(name, resolver)  # noqa: SLF001 # no public way
    if not GlobalHydra.instance().is_initialized():
        HydraConfig.instance().set_config(config)
    with tempfile.TemporaryDirectory(prefix="hydra-") as away:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.id = submitit.JobEnvironment().job_id
            if not home:
                config.hydra.sweep.dir = away
        outcome = run_job(
            hydra_context=context,
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if home:
            return outcome, None
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for path in sorted(Path(away).iterdir()):
                # links stay: what they name is not here, and nothing else is taken there
                tar.add(path, path.name, filter=lambda m: m if m.isfile() or m.isdir() else None)
    return outcome, packed.getvalue()
