"""`lab up --accounting`: slurmdbd on MariaDB for both sites."""

import pytest
from lab_helpers import Stopwatch, sbatch, until

from hpcscale.lab import faults


def test_accounting_on_both_sites(lab_factory):
    watch = Stopwatch()
    lab = lab_factory(nodes=1, accounting=True)
    assert watch.idle_machine_s(lab) < 20
    ids = {}
    for name, site in lab.sites.items():
        ids[name] = sbatch(site, "--gpus-per-node=2", "-o", "/dev/null", script="true")
    for name, site in lab.sites.items():
        listing = [
            "sacct",
            "-n",
            "-P",
            "-X",
            "-j",
            ids[name],
            "-o",
            "state,account,cluster,alloctres",
        ]

        def done(site=site, listing=listing):
            out = site.exec(listing, check=True).stdout
            return out if out.startswith("COMPLETED") else ""

        row = until(done, 60, f"sacct of {name} knows the job").strip().split("|")
        assert row[:3] == ["COMPLETED", "research", name]
        assert "gres/gpu:h100=2" in row[3].split(",")

    # limits are enforced
    onprem = lab.site("lab-onprem")
    refused = onprem.exec(["sbatch", "-A", "nobodys", "--wrap", "true"])
    assert refused.returncode != 0
    assert "Invalid account" in refused.stderr
    # the sites do not know each other
    assert "lab-cloud" not in onprem.exec(["sacctmgr", "-n", "show", "cluster"], check=True).stdout

    faults.slurmdbd(lab, "stop")
    assert {f["fault"] for f in faults.active(lab)} == {"slurmdbd"}
    assert onprem.exec(["sacct"], timeout_s=30).returncode != 0
    # the controller goes on without it
    assert onprem.exec(["srun", "hostname"]).stdout == "onprem1\n"
    faults.clear(lab)
    assert onprem.exec(["sacct"], timeout_s=30).returncode == 0
    assert not faults.active(lab)


@pytest.mark.parametrize("name", ["lab-onprem", "lab-cloud"])
def test_without_accounting_sacct_says_so(lab, name):
    done = lab.site(name).exec(["sacct"])
    assert done.returncode == 1
    assert "accounting storage is disabled" in done.stderr
