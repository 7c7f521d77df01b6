"""What only trying shows: a test submission, the state directory, a job on a node."""

import secrets
import time
from collections.abc import Iterator

from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, NotFoundError, RefusedError, UnreachableError
from hpcscale.site import Site, user_file
from hpcscale.slurm.types import SiteFacts
from hpcscale.survey.checks import Check, Verdict, silent

NODE_WAIT_S = 30  # for a free node
FILE_WAIT_S = 15.0  # a file written on a node may reach the login node late (NFS attribute cache)
LINK_ROUNDS = 20

_TEST_SCRIPT = "#!/bin/sh\ntrue\n"

_MAKE_PRIVATE = 'umask 077; mkdir -p -- "$1"'  # mkdir's own -m is not for the parents it makes

# Two processes try to make the same name; exactly one may succeed, whatever the file system.
_LINK_RACE = """
cd "$1" || exit 3
i=0 single=0
while [ "$i" -lt "$2" ]; do
  : > "a.$i" && : > "b.$i" || exit 3
  ln "a.$i" "c.$i" 2>>errors & first=$!
  ln "b.$i" "c.$i" 2>>errors & second=$!
  wins=0
  wait "$first" && wins=$((wins + 1))
  wait "$second" && wins=$((wins + 1))
  [ "$wins" -eq 1 ] && single=$((single + 1))
  i=$((i + 1))
done
echo "$single"
[ "$single" -eq "$2" ] || tail -n 1 errors >&2
"""

# Run on a node: reads what the login node wrote, writes back, and must lose the taken name.
_NODE_PROBE = """
echo "node=${SLURMD_NODENAME:-?}"
echo "epoch=$(date +%s)"
echo "token=$(cat "$1/token" 2>&1)"
echo "$2" > "$1/answer" && echo "wrote=yes"
if ln "$1/answer" "$1/claim" 2>/dev/null; then echo "claim=won"; else echo "claim=lost"; fi
"""


def submit_tests(connection: Connection, facts: SiteFacts) -> Iterator[Check]:
    """``sbatch --test-only`` for one node of each partition, one partition a call."""
    site = connection.site
    if numbers(facts.version) in {(26, 5, 0), (26, 5, 1)}:
        yield Check(
            "test submit",
            Verdict.SKIP,
            f"sbatch --test-only can crash slurmctld {facts.version} (fixed in 26.05.2)",
        )
        return
    names = [name for name in site.partitions if name in facts.partitions] or [
        name for name, live in facts.partitions.items() if live.default
    ]
    for name in names:
        live = facts.partitions[name]
        options = [f"--partition={name}", "--nodes=1", "--time=1", "--chdir=/"]
        options += [f"--account={site.account}"] if site.account else []
        options += [f"--qos={site.qos}"] if site.qos else []
        options += ["--gpus-per-node=1"] if live.gpus_per_node else []
        what = f"test submit {name}"
        try:
            start = connection.client.test_only(_TEST_SCRIPT, options)
        except RefusedError as exc:
            # nodes that are all booting or taken get the same answer as ones that do not exist
            booting = site.burst.target
            yield Check(
                what,
                Verdict.WARN if booting else Verdict.FAIL,
                exc.message,
                "its nodes may all be taken or booting: try again"
                if booting
                else exc.hint or f"sbatch --test-only {' '.join(options)} --wrap true",
            )
        except UnreachableError as exc:
            yield silent(what, exc)
            return
        else:
            when = f"would start at {start:%Y-%m-%d %H:%M:%S} UTC" if start else "would be accepted"
            yield Check(what, Verdict.OK, f"1 node {when}")


def state_directory(
    connection: Connection, facts: SiteFacts, *, probe_job: bool
) -> Iterator[Check]:
    """Writable there, link(2) lets one win, and the nodes see the same files."""
    site, transport = connection.site, connection.transport
    token = secrets.token_hex(8)
    hint = f'write state_dir = "…" (seen by login node and nodes) in {user_file(site.name)}'
    try:
        directory = f"{connection.state_dir}/check-{token}"
        made = transport.run(["sh", "-c", _MAKE_PRIVATE, "sh", directory])
        if made.returncode != 0:
            yield Check("state directory", Verdict.FAIL, made.stderr.strip(), hint)
            return
        try:
            transport.put_bytes(token.encode(), f"{directory}/token")
            if transport.read_bytes(f"{directory}/token") != token.encode():
                yield Check("state directory", Verdict.FAIL, "reads back other than written", hint)
                return
            yield Check("state directory", Verdict.OK, f"{connection.state_dir} is writable")
            yield _link_race(connection, directory, hint)
            if site.transport.cluster:
                yield Check(
                    "seen from the nodes",
                    Verdict.SKIP,
                    f"a step on nodes of {site.transport.cluster} is not started from another "
                    "cluster's login node",
                    f"hpcscale submit --site {site.name} -- true runs a whole job there",
                )
            elif probe_job:
                yield _node_probe(connection, facts, directory, token, hint)
            else:
                yield Check(
                    "seen from the nodes",
                    Verdict.SKIP,
                    "needs a job of some seconds on one node",
                    f"hpcscale site check {site.name} --probe-job",
                )
        finally:
            transport.run(["rm", "-rf", "--", directory])
    except UnreachableError as exc:
        yield silent("state directory", exc)
    except HpcscaleError as exc:
        yield Check("state directory", Verdict.FAIL, str(exc), exc.hint or hint)


def _link_race(connection: Connection, directory: str, hint: str) -> Check:
    race = connection.transport.run(
        ["sh", "-c", _LINK_RACE, "sh", directory, str(LINK_ROUNDS)], timeout_s=60
    )
    single = race.stdout.strip()
    if single == str(LINK_ROUNDS):
        return Check("atomic link", Verdict.OK, f"one winner in each of {LINK_ROUNDS} races")
    return Check(
        "atomic link",
        Verdict.FAIL,
        f"one winner in {single or 'none'} of {LINK_ROUNDS} races: {race.stderr.strip()}",
        "a claim is made by link(2): " + hint,
    )


def probe_partition(site: Site, facts: SiteFacts) -> str | None:
    """Where the probe disturbs least: a preemptible partition, since it can push nobody out."""
    usable = [name for name, live in facts.partitions.items() if live.up and live.total_nodes]
    for name, known in site.partitions.items():
        if known.preemptible and name in usable:
            return name
    if site.default_partition in usable:
        return site.default_partition
    return next((name for name in usable if facts.partitions[name].default), None)


def probe_argv(site: Site, facts: SiteFacts) -> tuple[list[str], dict[str, str] | None, float]:
    """The srun that runs a few seconds on one node, its environment and how long to wait for it."""
    argv = [
        f"{site.transport.slurm_bin}/srun" if site.transport.slurm_bin else "srun",
        "--nodes=1",
        "--ntasks=1",
        "--time=2",
        f"--immediate={NODE_WAIT_S}",
        "--job-name=hpcscale-site-check",
        "--chdir=/",
        "--export=NONE",
        "--mpi=none",
        "--input=none",
    ]
    partition = probe_partition(site, facts)
    argv += [f"--partition={partition}"] if partition else []
    argv += [f"--account={site.account}"] if site.account else []
    argv += [f"--qos={site.qos}"] if site.qos else []
    argv += [f"--constraint={c}"] if (c := site.directives.get("constraint")) else []
    wait_s = NODE_WAIT_S + 60 + (site.burst.boot_timeout_s if site.burst.target else 0)
    conf = site.transport.slurm_conf
    return argv, {"SLURM_CONF": conf} if conf else None, wait_s


def _node_probe(
    connection: Connection, facts: SiteFacts, directory: str, token: str, hint: str
) -> Check:
    """A job of some seconds, by srun: it holds no state to lose, so it needs no ledger row."""
    what = "seen from the nodes"
    site, transport = connection.site, connection.transport
    taken = transport.run(["ln", "--", f"{directory}/token", f"{directory}/claim"])
    if taken.returncode != 0:
        return Check(what, Verdict.FAIL, taken.stderr.strip(), hint)
    argv, env, wait_s = probe_argv(site, facts)
    try:
        ran = transport.run(
            [*argv, "/bin/sh", "-c", _NODE_PROBE, "sh", directory, token],
            env=env,
            timeout_s=wait_s,
        )
    except UnreachableError as exc:
        return silent(what, exc)
    told = dict(line.partition("=")[::2] for line in ran.stdout.splitlines())
    if "node" not in told:
        reason = ran.stderr.strip().splitlines()[-1:] or ["srun gave no output"]
        busy = "allocate resources" in ran.stderr
        return Check(
            what,
            Verdict.WARN if busy else Verdict.FAIL,
            f"no node ran the probe within {NODE_WAIT_S} s: {reason[0]}",
            f"try again when a node is free, or: {' '.join(argv)} hostname",
        )
    node = told["node"]
    if told.get("token") != token or told.get("wrote") != "yes":
        return Check(
            what,
            Verdict.FAIL,
            f"node {node} does not see {connection.state_dir}: {told.get('token', '')}",
            hint,
        )
    if told.get("claim") != "lost":
        return Check(
            what, Verdict.FAIL, f"node {node} took a name that was taken: link(2) is not safe", hint
        )
    if not _comes_back(connection, f"{directory}/answer", token):
        return Check(
            what,
            Verdict.FAIL,
            f"what node {node} wrote is not seen here after {FILE_WAIT_S:.0f} s",
            hint,
        )
    return Check(what, Verdict.OK, f"node {node} read, wrote, and lost a taken name, as it must")


def _comes_back(connection: Connection, path: str, token: str) -> bool:
    """Whether a node's file appears on the login node before the deadline."""
    deadline = time.monotonic() + FILE_WAIT_S
    while True:
        try:
            if connection.transport.read_bytes(path).decode().strip() == token:
                return True
        except NotFoundError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def numbers(version: str) -> tuple[int, ...]:
    """``22.05.8`` as (22, 5, 8)."""
    return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())
