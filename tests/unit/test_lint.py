"""Every rule with a line it must find and lines it must leave alone."""

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner
from render_cases import EFA, IB, ONPREM, site

from hpcscale.cli import main
from hpcscale.lint import Severity, all_rules, lint
from hpcscale.site import Partition

SMALL = site(partitions={"gpu": Partition(max_time="1-00:00:00"), "debug": Partition()})

# rule -> (site, bad script, number of the line it must name, what the fix must hold)
BAD = {
    "HS001": (None, "#SBATCH -N 1\nmodule load x\n#SBATCH --time=10\n", 4, "#SBATCH --time=10"),
    "HS002": (None, "#SBATCH --export=ALL,NCCL_IB_HCA=mlx5_0,mlx5_1\ntrue\n", 2, "export NCCL_IB_HCA="),
    "HS003": (None, "set -x\nexport WANDB_API_KEY=abc\n", 2, "remove"),
    "HS004": (None, "export MASTER_PORT=29500\nsrun ./a\n", 2, "SLURM_JOB_ID % 10000"),
    "HS005": (None, "#SBATCH --gres=gpu:4\n#SBATCH --gpus-per-node=4\ntrue\n", 2, "--gpus-per-node=4"),
    "HS006": (None, "#SBATCH --ntasks-per-node=4 --gpus-per-task=1\nsrun ./a\n", 2, "--gpu-bind=none"),
    "HS007": (None, "#SBATCH --requeue\ntrue\n", 2, "--open-mode=append"),
    "HS008": (None, "#SBATCH --signal=USR1@60\ntrap 'touch stop' USR1\nsrun ./a &\nwait\n", 2,
              "--signal=B:USR1@60"),
    "HS009": (None, "#SBATCH --ntasks-per-node=8\nsrun torchrun --nproc-per-node=8 t.py\n", 3,
              "--ntasks-per-node=1"),
    "HS010": (None, "export NCCL_ASYNC_ERROR_HANDLING=1\n", 2, "TORCH_NCCL_ASYNC_ERROR_HANDLING=1"),
    "HS011": (EFA, "export FI_EFA_USE_DEVICE_RDMA=1\n", 2, "remove"),
    "HS012": (EFA, "export NCCL_IB_HCA=mlx5_0\n", 2, "remove"),
    "HS013": (None, "srun --container-image=x bash -c 'A=$(scontrol show hostnames); ./a'\n", 2,
              "before srun"),
    "HS014": (None, "srun ./a\necho done\n", 2, "exit $rc"),
    "HS015": (SMALL, "#SBATCH --time=2-00:00:00\ntrue\n", 2, "1-00:00:00"),
}  # fmt: skip

# rule -> scripts in which there is nothing to find
GOOD = {
    "HS001": [
        "#SBATCH -N 1\n\n# a comment\n#SBATCH -t 1\ntrue\n",
        "cat > job2.sh <<'E'\n#SBATCH --time=10\nE\n",
        "# example:\n#  #SBATCH --time=10\ntrue\n##SBATCH --time=9\n",
        "echo '\n#SBATCH --time=10\n'\n",
        "#SBATCH-like comment\ntrue\n#SBATCHing\n",
    ],
    "HS002": [
        "#SBATCH --export=NONE\ntrue\n",
        "#SBATCH --export=ALL,A=1,B=2,HOME\nsrun --export=ALL,X=y ./a\n",
        "#SBATCH --export=NODE=node0,http_proxy,NODE1\ntrue\n",
        "grep --export=A=1,2.5 x\n",
        "# srun --export=A=1,2.5 ./a\ntrue\n",
    ],
    "HS003": [
        "set -x\nsrun ./a\n",
        "set -x\necho\nset +x\nexport A_TOKEN=x\n",
        "export A_TOKEN=x\n",
        "# set -x\nexport A_TOKEN=x\n",
        "echo 'set -x'\nexport A_TOKEN=x\n",
    ],
    "HS004": [
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))\n",
        "#SBATCH --exclusive\nexport MASTER_PORT=29500\n",
        "# MASTER_PORT=29500\ntrue\n",
        "torchrun --master-port=$MASTER_PORT t.py\n",
        "python serve.py --port=8080\n",
    ],
    "HS005": ["#SBATCH --gres=gpu:4\ntrue\n", "#SBATCH --gres=tmp:1T --gpus-per-node=4\ntrue\n"],
    "HS006": [
        "#SBATCH --gpus-per-node=4 --ntasks-per-node=4\nsrun ./a\n",
        "#SBATCH --ntasks-per-node=4 --gpus-per-task=1 --gpu-bind=none\nsrun ./a\n",
        "#SBATCH --ntasks=1 --gpus-per-task=1\nsrun ./a\n",
    ],
    "HS007": ["#SBATCH --requeue --open-mode=append\ntrue\n", "#SBATCH --no-requeue\ntrue\n",
              "# scontrol requeue\ntrue\n"],
    "HS008": [
        "#SBATCH --signal=B:USR1@60\ntrap x USR1\n",
        "#SBATCH --signal=USR1@60\nsrun ./handles-it-itself\n",
        "#SBATCH --signal=USR1@60\ntrap 'echo USR1' TERM\n",
    ],
    "HS009": [
        "#SBATCH --ntasks-per-node=1\nsrun torchrun t.py\n",
        "#SBATCH --ntasks-per-node=8\nsrun python t.py\n",
        "#SBATCH --ntasks-per-node=8\nsrun --ntasks-per-node=1 torchrun t.py\n",
        "#SBATCH --ntasks-per-node=8\n# srun torchrun t.py\nsrun ./a\n",
    ],
    "HS010": ["export TORCH_NCCL_ASYNC_ERROR_HANDLING=1\n", "# NCCL_ASYNC_ERROR_HANDLING=1\ntrue\n",
              "echo 'NCCL_ASYNC_ERROR_HANDLING=1'\n"],
    "HS011": ["export FI_EFA_USE_HUGE_PAGE=0\n", "export FI_PROVIDER=cxi\n",
              "unset FI_EFA_USE_DEVICE_RDMA\n"],
    "HS012": ["export FI_EFA_USE_HUGE_PAGE=0 NCCL_DEBUG=INFO\n", "export NCCL_SOCKET_IFNAME=en\n"],
    "HS013": [
        "A=$(scontrol show hostnames | head -n1)\nsrun --container-image=x bash -c './a'\n",
        'srun --container-image=x ./a --hosts "$(scontrol show hostnames)"\n',
        "srun bash -c 'scontrol show job'\n",
    ],
    "HS014": [
        "srun ./a\n",
        "srun ./a\nrc=$?\necho done\nexit $rc\n",
        "set -e\nsrun ./a\necho done\n",
        "srun ./a || exit 1\necho done\n",
        "srun ./a\npython evaluate.py\n",
        "srun ./a && echo fine\n",
    ],
    "HS015": ["#SBATCH --time=10:00:00\ntrue\n", "#SBATCH --time=2-0 -p debug\ntrue\n",
              "#SBATCH --time=UNLIMITED -p unknown\ntrue\n"],
}  # fmt: skip


def rules_of(text, site=None):
    return {f.rule for f in lint(f"#!/bin/bash\n{text}", "job.sh", site)}


def test_every_rule_is_tested_and_documented():
    ids = [rule.id for rule in all_rules()]
    assert ids == sorted(BAD) == sorted(GOOD)
    assert all(rule.title and rule.source for rule in all_rules())
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = runpy.run_path(str(docs / "lint_rules.py"))["page"]()
    written = (docs / "reference/lint.md").read_text(encoding="utf-8")
    assert written == page, "run python docs/lint_rules.py"


@pytest.mark.parametrize("rule", BAD)
def test_rule_finds_it_with_line_reason_and_fix(rule):
    where, text, line, fix = BAD[rule]
    found = [f for f in lint(f"#!/bin/bash\n{text}", "job.sh", where) if f.rule == rule]
    assert [f.line for f in found] == [line]
    assert fix in found[0].fix
    assert len(found[0].why) > 20


@pytest.mark.parametrize(("rule", "text"), [(r, t) for r, texts in GOOD.items() for t in texts])
def test_rule_does_not_cry_wolf(rule, text):
    assert rule not in rules_of(text, BAD[rule][0])


@pytest.mark.parametrize("rule", BAD)
def test_the_bad_line_is_fine_as_a_comment_or_a_here_document(rule):
    where, text, _, _ = BAD[rule]
    commented = "".join(f"# {line}\n" for line in text.splitlines())
    assert rules_of(f"{commented}true\n", where) == set()
    assert rules_of(f"cat > other.sh <<'EOT'\n#!/bin/sh\n{text}EOT\ntrue\n", where) == set()


def test_without_a_site_nothing_is_said_of_fabrics_and_limits():
    assert rules_of("#SBATCH --time=99-0\nexport NCCL_IB_HCA=x NCCL_IB_DISABLE=1\n") == set()
    assert rules_of("export NCCL_IB_HCA=x\n", IB) == set()
    assert rules_of("export NCCL_IB_DISABLE=1\n", IB) == {"HS012"}
    assert rules_of("export FI_PROVIDER=efa FI_EFA_FORK_SAFE=1\n", ONPREM) == {"HS012"}
    assert rules_of("export FI_PROVIDER=efa\n") == {"HS011"}


def test_errors_exit_1_and_warnings_0(tmp_path):
    bad, warned = tmp_path / "bad.sh", tmp_path / "warned.sh"
    bad.write_text("#!/bin/sh\nsrun ./a\necho done\n")
    warned.write_text("#!/bin/sh\n#SBATCH --requeue\nsrun ./a\n")
    runner = CliRunner()
    done = runner.invoke(main, ["lint", str(bad), str(warned)])
    assert done.exit_code == 1
    assert f"{bad}:2: HS014 error:" in done.output
    assert "fix: rc=$?" in done.output
    done = runner.invoke(main, ["lint", "--json", str(warned)])
    assert done.exit_code == 0
    data = json.loads(done.output)["data"]
    assert data["warnings"] == 1
    assert data["findings"][0]["severity"] == Severity.WARNING
    done = runner.invoke(main, ["lint", "-"], input=bad.read_text())
    assert "stdin:2: HS014" in done.output


def test_a_file_that_cannot_be_read(tmp_path):
    from hpcscale.errors import InvalidFileError, NotFoundError

    runner = CliRunner()
    assert isinstance(runner.invoke(main, ["lint", str(tmp_path / "no")]).exception, NotFoundError)
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00")
    for name in ("bin", "."):
        done = runner.invoke(main, ["lint", str(tmp_path / name)])
        assert isinstance(done.exception, InvalidFileError)
