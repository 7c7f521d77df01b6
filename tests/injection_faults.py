"""The faults of an injection: when one strikes, what it does, and how it ends."""

from injection_lab import CLOUD, ONPREM

from hpcscale.burst.moves import Step
from hpcscale.errors import LabError
from hpcscale.lab import faults

SSH = {
    "ssh cut after sbatch": ("after", "sbatch"),
    "ssh cut after ln": ("after", "ln -T"),
    "ssh cut before ln": ("before", "ln -T"),
    "ssh cut after squeue": ("after", "squeue"),
}


def reached(at, phase, job, moves):
    """How far it is, in the lab ``at``."""
    there = at.run_dir(CLOUD, job)
    if phase == "gated":  # fence-first, its command may begin without a wait
        return any((there / "events").glob("*.*ed"))
    if phase == "opened":
        return any(there.glob("decision.*[0-9a-f]"))
    return any(m.step is not Step.FENCING for m in moves)


def arm_ssh(at, fault):
    """Those that wait for a command; True: it is one."""
    if fault not in SSH:
        return False
    mode, match = SSH[fault]
    faults.ssh_cut(at.lab, mode, match=match)
    return True


def strike(at, fault, job):
    """Returns how to end it; None: it has ended by itself."""
    lab = at.lab
    match fault:
        case "onprem ctld killed" | "cloud ctld killed":
            name = ONPREM if fault.startswith("onprem") else CLOUD
            faults.controller(lab, name, "kill")
            return lambda: faults.controller(lab, name, "restart")
        case "onprem ctld stopped" | "cloud ctld stopped":
            name = ONPREM if fault.startswith("onprem") else CLOUD
            faults.controller(lab, name, "stop")
            return lambda: faults.controller(lab, name, "continue")
        case "ssh refused":
            faults.ssh_cut(lab, "refuse")
            return lambda: faults.ssh_cut(lab, "normal")
        case "cloud node crash":
            node = at.cloud_node()
            if node is None:
                return None
            faults.node_crash(lab, node)
            return lambda: faults.node_restart(lab, node)
        case "cloud disk full":
            fill_disk(lab)
            return lambda: faults.disk_free(lab, CLOUD)
        case "onprem clock +120 s":
            faults.clock_skew(lab, ONPREM, 120)
            return lambda: faults.clock_skew(lab, ONPREM, 0)
        case "cloud clock -120 s":
            faults.clock_skew(lab, CLOUD, -120)
            return lambda: faults.clock_skew(lab, CLOUD, 0)
        case "onprem fence lost, nodes free":
            at.onprem("scontrol", "update", f"JobId={job.ref.job_id}", "ExcNodeList=")
            at.free()
        case "user cancels on-prem":
            at.onprem("scancel", str(job.ref.job_id))
        case "user cancels in the cloud":
            at.cloud("scancel", "--user", lab.state.user)
    return None


def fill_disk(lab):
    """A file that is written while the directory is copied may have no room: once more."""
    for attempt in range(5):
        try:
            faults.disk_full(lab, CLOUD, path=lab.site(CLOUD).paths.scratch / "hpcscale-state")
            return
        except LabError:
            if attempt == 4:
                raise
