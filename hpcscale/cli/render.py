"""`hpcscale render`: the script that `submit` would send."""

import click

from hpcscale.cli._job_options import JobArguments, JobCommand, job_options
from hpcscale.cli._output import emit_json, json_option, notice


@click.command(cls=JobCommand, context_settings={"help_option_names": ["-h", "--help"]})
@job_options
@json_option
def command(job: JobArguments, as_json: bool) -> None:
    """Print the sbatch script of a job; nothing is submitted.

    \b
      hpcscale render --nodes 2 --gpus-per-node 4 --launcher torchrun -- train.py --epochs 3
      hpcscale render JOB.toml --time 2:00:00 > job.sh
      hpcscale render SCRIPT.sbatch -- arguments of the script

    The script alone goes to standard output; it runs with plain sbatch, where hpcscale is not
    installed. A JOB.toml holds the same as the flags, and flags win.
    """  # noqa: D301  # click's mark for text that is not rewrapped
    from hpcscale.prepare import prepare
    from hpcscale.site import load_site

    spec = job.load()
    assert spec.site is not None  # load() chose one
    rendered = prepare(spec, load_site(spec.site).site, sending=False)
    for text in rendered.notices:
        notice(text)
    if as_json:
        emit_json(
            {
                "script": rendered.script,
                "site": rendered.site,
                "options": list(rendered.options),
                "spec_hash": rendered.spec_hash,
                "sha256": rendered.sha256,
                "notices": list(rendered.notices),
            }
        )
    else:
        click.echo(rendered.script, nl=False)
        if rendered.options:
            names = " ".join(option.partition("=")[0] for option in rendered.options)
            notice(f"`hpcscale submit` gives sbatch besides, exactly as you wrote it: {names}")
