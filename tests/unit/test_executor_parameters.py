"""Every parameter of submitit's Slurm executor reaches the script or sbatch: none is dropped."""

import pytest

from hpcscale.executor.params import check, to_spec, valid_parameters
from hpcscale.ledger import Ledger
from hpcscale.render import render
from hpcscale.site import load_site
from hpcscale.submit import resolve_dependency, sbatch_options, user_comment

REACHES = {
    "account": ("acc", "#SBATCH --account=acc\n"),
    "additional_parameters": ({"nice": 77}, "#SBATCH --nice=77\n"),
    "comment": ("said", "--comment=said"),
    "constraint": ("fast", "#SBATCH --constraint=fast\n"),
    "cpus_per_gpu": (9, "#SBATCH --cpus-per-gpu=9\n"),
    "cpus_per_task": (6, "#SBATCH --cpus-per-task=6\n"),
    "dependency": ("afterok:123", "--dependency=afterok:123"),
    "env": ({"A": "b c"}, "export A='b c'\n"),
    "exclude": ("node9", "#SBATCH --exclude=node9\n"),
    "exclusive": ("user", "#SBATCH --exclusive=user\n"),
    "gpus_per_node": (3, "#SBATCH --gpus-per-node=3\n"),
    "gpus_per_task": (3, "#SBATCH --gpus-per-task=3\n"),
    "gres": ("scratch:7", "#SBATCH --gres=scratch:7\n"),
    "job_name": ("mine", "#SBATCH --job-name=mine\n"),
    "mail_type": ("END", "#SBATCH --mail-type=END\n"),
    "mail_user": ("me@x", "#SBATCH --mail-user=me@x\n"),
    "mem": ("17GB", "#SBATCH --mem=17408M\n"),
    "mem_per_cpu": ("77M", "#SBATCH --mem-per-cpu=77M\n"),
    "mem_per_gpu": ("78M", "#SBATCH --mem-per-gpu=78M\n"),
    "nodelist": ("node8", "#SBATCH --nodelist=node8\n"),
    "nodes": (2, "#SBATCH --nodes=2\n"),
    "ntasks_per_node": (5, "#SBATCH --ntasks-per-node=5\n"),
    "num_gpus": (2, "#SBATCH --gpus-per-node=2\n"),
    "partition": ("urgent", "#SBATCH --partition=urgent\n"),
    "qos": ("high", "#SBATCH --qos=high\n"),
    "setup": (["begin here"], "\nbegin here\n"),
    "signal_delay_s": (88, "#SBATCH --signal=USR2@88\n"),
    "srun_args": (["--cpu-bind=none"], " --cpu-bind=none "),
    "stderr_to_stdout": (True, '%t_log.out" \\\n'),
    "teardown": (["end here"], "\nend here\n"),
    "time": (77, "#SBATCH --time=01:17:00\n"),
    "use_srun": (False, "_0_log.out"),
    "wckey": ("key", "#SBATCH --wckey=key\n"),
}
# looked at elsewhere: test_executor.py, test_batches.py, test_code.py
ELSEWHERE = {"array_parallelism", "burst", "code", "deadline", "max_cost_usd", "software"}


def test_the_list_is_whole():
    assert REACHES.keys() | ELSEWHERE == valid_parameters()


@pytest.mark.parametrize("name", sorted(REACHES))
def test_a_parameter_reaches_the_script_or_sbatch(tmp_path, name):
    value, words = REACHES[name]
    asked = {"time": 5, name: value}
    check(asked)
    site = load_site("lab-onprem").site
    spec = to_spec(asked, site, "python", tmp_path, tmp_path / "jobs")
    rendered = render(spec, site)
    with Ledger.open() as ledger:
        dependency, _ = resolve_dependency(spec, site.name, ledger)
    options = sbatch_options(rendered, "/run", user_comment(spec) or "", dependency)
    without = render(to_spec({"time": 5}, site, "python", tmp_path, tmp_path / "jobs"), site)
    text = rendered.script + "\n" + "\n".join(options)
    assert words in text
    assert words not in without.script
