"""Job files, flags and defaults become a spec; what is wrong is told with its place."""

import datetime as dt
import json
from decimal import Decimal

import pytest
from click.testing import CliRunner

from hpcscale.cli import main
from hpcscale.errors import HpcscaleError, InvalidFileError, NotFoundError, UsageError
from hpcscale.jobfile import load_job
from hpcscale.spec import BurstMode, Launcher, SecretSource

NOW = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
FULL = """
name = "digits"
command = ["python", "train.py"]
launcher = "torchrun"
site = "lab-cloud"
partition = "gpu"
constraint = "h100"
software = "torch"
array = "0-3"
after = ["afterok:7"]

[resources]
nodes = 2
gpus_per_node = 4
cpus_per_task = 8
mem = "64G"
time = "1-12"
exclusive = true

[env]
LR = "0.1"

[secrets]
HF_TOKEN = "file:token"

[inputs]
set = "data/set"

[outputs]
result = "out/"

[checkpoint]
dir = "ckpt"
lead = "5m"
max_restarts = 3

[burst]
mode = "auto"
deadline = 2026-12-01T08:00:00Z
max_cost_usd = 39.50

[sbatch]
hint = "nomultithread"
no-kill = true
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """The user stands in tmp_path; the default site is lab-onprem."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCSCALE_DEFAULT_SITE", "lab-onprem")


def load(source=None, **flags):
    command = flags.pop("command", () if source else ("true",))
    return load_job(source, flags=flags, command=command, now=NOW)


def test_a_full_job_file(tmp_path):
    (tmp_path / "job.toml").write_text(FULL)
    spec = load("job.toml")
    assert (spec.name, spec.command, spec.launcher) == (
        "digits", ("python", "train.py"), Launcher.TORCHRUN,
    )  # fmt: skip
    assert spec.site == "lab-cloud"
    want = spec.resources
    assert (want.nodes, want.gpus_per_node, want.cpus_per_task) == (2, 4, 8)
    assert (want.mem_gb, want.time_limit_s, want.exclusive) == (64.0, 36 * 3600, True)
    assert spec.secrets == {"HF_TOKEN": SecretSource(kind="file", name=str(tmp_path / "token"))}
    assert spec.inputs == {"set": str(tmp_path / "data/set")}
    assert spec.outputs == {"result": f"{tmp_path}/out/"}
    assert spec.checkpoint is not None
    assert spec.checkpoint.dir == str(tmp_path / "ckpt")
    assert (spec.checkpoint.lead_s, spec.checkpoint.max_restarts) == (300, 3)
    assert spec.burst.mode is BurstMode.AUTO
    assert spec.burst.deadline == dt.datetime(2026, 12, 1, 8, tzinfo=dt.UTC)
    assert spec.burst.max_cost_usd == Decimal("39.50")
    assert spec.directives == {"hint": "nomultithread", "no-kill": None}
    assert spec.workdir == str(tmp_path)
    assert spec.array_size == 4


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.toml").write_text(
        '[job]\npartition = "user"\nqos = "user"\naccount = "user"\nsoftware = "user"\n'
        '[job.env]\nA = "user"\nB = "user"\n'
    )
    (tmp_path / "hpcscale.toml").write_text(
        '[job]\npartition = "project"\nqos = "project"\naccount = "project"\n'
        '[job.env]\nB = "project"\nC = "project"\n'
    )
    (tmp_path / "job.toml").write_text(
        'command = "x"\npartition = "file"\nqos = "file"\n[env]\nC = "file"\n'
    )
    spec = load("job.toml", partition="flag", env={"D": "flag"})
    assert (spec.partition, spec.qos, spec.account, spec.software) == (
        "flag", "file", "project", "user",
    )  # fmt: skip
    assert spec.env == {"A": "user", "B": "project", "C": "file", "D": "flag"}


def test_paths_of_a_job_file_are_its_own(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/job.toml").write_text(
        'command = "x"\nworkdir = "w"\n[inputs]\na = "a"\nb = "/b/../c"\n[checkpoint]\ndir = "ck"\n'
    )
    spec = load("sub/job.toml", inputs={"f": "f"})
    assert spec.inputs == {"a": f"{tmp_path}/sub/a", "b": "/c", "f": f"{tmp_path}/f"}
    assert spec.workdir == f"{tmp_path}/sub/w"
    assert spec.checkpoint is not None
    assert spec.checkpoint.dir == f"{tmp_path}/sub/ck"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('"python train.py --lr \'1 2\'"', ("python", "train.py", "--lr", "1 2")),
        ('"python train.py $HPCSCALE_INPUT_A > x"', ("bash", "-c", "python train.py $HPCSCALE_INPUT_A > x")),
        ('["a", "$B"]', ("a", "$B")),
    ],
)  # fmt: skip
def test_commands(tmp_path, text, command):
    (tmp_path / "job.toml").write_text(f"command = {text}\n")
    assert load("job.toml").command == command


def test_a_command_behind_the_dashes_replaces_the_files(tmp_path):
    (tmp_path / "job.toml").write_text('command = ["a", "b", "c"]\n')
    assert load("job.toml", command=("d",)).command == ("d",)


@pytest.mark.parametrize(
    ("command", "name"),
    [(("python3.11", "-u", "src/train.py"), "train"), (("bash", "-c", "echo $X"), "echo"),
     (("./a b",), "a"), (("-x",), "hpcscale"), (("true",), "true")],
)  # fmt: skip
def test_a_name_from_the_command(command, name):
    assert load(command=command).name == name


def test_an_sbatch_script(tmp_path):
    (tmp_path / "s.sbatch").write_text(
        "#!/bin/bash\n#SBATCH -N 2 --gres=gpu:h100:4 -t 90\n#SBATCH -p big\n#SBATCH -J theirs\necho\n"
    )
    spec = load("s.sbatch", resources={"time": "2:00:00"}, command=("a", "b"))
    assert spec.script is not None
    assert spec.script.site == "lab-onprem"
    assert spec.script_args == ("a", "b")
    assert spec.command == ()
    assert (spec.name, spec.partition) == ("theirs", "big")
    assert (spec.resources.nodes, spec.resources.gpus_per_node) == (2, 4)
    assert spec.resources.time_limit_s == 7200
    (tmp_path / "t.sh").write_text("#!/bin/sh\ntrue\n")
    assert load("t.sh").name == "t.sh"


def test_an_output_that_is_a_directory_here_is_one_there(tmp_path):
    (tmp_path / "out").mkdir()
    assert load(outputs={"o": "out", "p": "new"}).outputs == {
        "o": f"{tmp_path}/out/", "p": f"{tmp_path}/new",
    }  # fmt: skip


# --- what is wrong


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ('comand = "x"', 1, ["unknown key 'comand'", "did you mean 'command'"]),
        ('command = "x"\n[resources]\nnode = 2', 3, ["'node'", "did you mean 'nodes'"]),
        ('command = "x"\n[resources]\nnodes = "2"', 3, ["a whole number"]),
        ('command = "x"\n[resources]\nnodes = 0', 3, ["must be a number from 1"]),
        ('command = "x"\n[resources]\ntime = "soon"', 3, ["no duration"]),
        ('command = "x"\n[resources]\nmem = "lots"', 3, ["no memory size"]),
        ('command = "x"\nlauncher = "torchun"', 2, ["did you mean 'torchrun'"]),
        ('command = "x"\narray = "a-b"', 2, ["no array"]),
        ('command = "x"\n[env]\nA = 1', 3, ["text in quotes"]),
        ('command = "x"\n[env]\n"A B" = "1"', 3, ["variable's name"]),
        ('command = "x"\n[env]\nHPCSCALE_SITE = "1"', 3, ["hpcscale's own"]),
        ('command = "x"\n[env]\nHF_TOKEN = "1"', 3, ["looks like a secret", "--secret HF_TOKEN"]),
        ('command = "x"\n[secrets]\nX = "abc"', 3, ["file:PATH"]),
        ('command = "x"\n[inputs]\n"1" = "abc"', 3, ["no name for a path"]),
        ('command = "x"\n[inputs]\na-b = "x"\nA_b = "y"', 4, ["one variable"]),
        ('command = "x"\n[burst]\nmode = "always"', 3, ["never, auto, only"]),
        ('command = "x"\n[burst]\ndeadline = "2020-01-01"', 3, ["has passed"]),
        ('command = "x"\n[burst]\ndeadline = 5', 3, ["no deadline"]),
        ('command = "x"\n[burst]\nmax_cost_usd = "much"', 3, ["no amount"]),
        ('command = "x"\n[burst]\nmax_cost_usd = true', 3, ["amount"]),
        ('command = "x"\n[burst]\ndata = ["H IPAA"]', 3, ["no tag of data", "eu-only"]),
        ('command = "x"\n[burst]\ndata = "hipaa"', 3, ["a list"]),
        ('command = "x"\n[checkpoint]\nlead = 5', 2, ["not named"]),
        ('command = "x"\n[resources]\ntime = 1\n[checkpoint]\ndir = "c"', 3, ["longer --time"]),
        ('command = "x"\n[checkpoint]\ndir = "c"\nlead = 10\nstop_wait = 20', 5, ["below lead"]),
        ('command = "x"\n[sbatch]\nnodes = 2', 3, ["write resources.nodes"]),
        ('command = "x"\n[sbatch]\noutput = "x"', 3, ["hpcscale logs"]),
        ('command = "x"\n[sbatch]\n"--de adline" = "x"', 3, ["no sbatch option"]),
        ('command = "x"\n[sbatch]\nhint = 1.5', 3, ["must be text"]),
        ('command = "x"\nname = ""', 2, ["1 to 512"]),
        ("command = = 1", 1, ["not valid TOML"]),
    ],
)
def test_a_wrong_job_file_is_told_by_line(tmp_path, text, line, parts):
    (tmp_path / "job.toml").write_text(text + "\n")
    with pytest.raises(InvalidFileError) as caught:
        load("job.toml")
    error = caught.value
    assert (error.where or "").split(" ")[0].rstrip(":") in {
        f"{tmp_path}/job.toml:{line}", f"{tmp_path}/job.toml:{line}:"[:-1],
    }, error.where  # fmt: skip
    said = f"{error.message} {error.hint}"
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    "name",
    ["TOKEN", "HF_TOKEN", "hf_token", "DB_PASSWORD", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY",
     "GOOGLE_APPLICATION_CREDENTIALS", "X_APIKEY", "SECRET_SAUCE"],
)  # fmt: skip
def test_secrets_are_not_taken_as_environment(name):
    with pytest.raises(HpcscaleError, match="looks like a secret"):
        load(env={name: "x"})


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEY", "KEYBOARD", "PATH"]
)
def test_other_variables_are(name):
    assert load(env={name: "x"}).env == {name: "x"}


def test_a_flag_is_named_in_its_error():
    with pytest.raises(UsageError) as caught:
        load_job(
            flags={"resources": {"time": "soon"}}, flag_names={"resources.time": "--time"},
            command=["x"],
        )  # fmt: skip
    assert caught.value.where == "--time"


def test_nothing_to_run_and_no_site(monkeypatch):
    with pytest.raises(UsageError, match="nothing to run"):
        load(command=())
    monkeypatch.delenv("HPCSCALE_DEFAULT_SITE")
    with pytest.raises(UsageError, match="no site"):
        load()


@pytest.mark.parametrize("name", ["no.toml", "no.sbatch"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(NotFoundError, match="no file"):
        load(name)


def test_files_that_are_no_scripts(tmp_path):
    (tmp_path / "bin").write_bytes(b"\xff\x00")
    (tmp_path / "big.sh").write_text("#!/bin/sh\n" + "#" * (4 * 1024**2))
    for name in ("bin", ".", "big.sh"):
        with pytest.raises(InvalidFileError):
            load(name)


def test_a_project_cannot_send_the_job_elsewhere(tmp_path):
    (tmp_path / "hpcscale.toml").write_text('[job]\nsite = "lab-cloud"\n')
    with pytest.raises(InvalidFileError, match=r"job\.site"):
        load()


def test_wrong_keys_of_a_project_are_told_in_its_file(tmp_path):
    (tmp_path / "hpcscale.toml").write_text("[job]\nqos = 'x'\n[job.resources]\nnodes = 'two'\n")
    with pytest.raises(InvalidFileError) as caught:
        load()
    assert f"{tmp_path}/hpcscale.toml:4" in (caught.value.where or "")


# --- the command line


def run(*argv, code=0):
    done = CliRunner().invoke(main, ["render", *argv])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_render_prints_the_script_alone():
    done = run("--nodes", "2", "--env", "A=b=c", "--no-code", "--", "echo", "--nodes", "-h")
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=2\n" in done.stdout
    assert "export A='b=c'\n" in done.stdout
    assert "\necho --nodes -h &\n" in done.stdout
    assert done.stdout.endswith('exit "$rc"\n')


def test_render_json():
    name = 'x "y"\n$(z)'
    data = json.loads(run("--json", "--name", name, "--", "true").stdout)["data"]
    assert set(data) == {"script", "site", "options", "spec_hash", "sha256", "notices"}
    assert data["options"] == [f"--job-name={name}"]
    assert data["site"] == "lab-onprem"


def test_every_flag_reaches_the_spec():
    done = run(
        "--json", "--site", "lab-cloud", "--gpus-per-node", "2", "--tasks-per-node", "2",
        "--cpus-per-task", "3", "--mem", "1G", "--time", "30", "--exclusive", "--partition", "p",
        "--account", "a", "--qos", "q", "--constraint", "c", "--launcher", "srun", "--secret", "S",
        "--input", "i=x", "--output", "o=y/", "--checkpoint-dir", "ck", "--checkpoint-lead", "60",
        "--max-restarts", "2", "--deadline", "+6h", "--max-cost", "5", "--burst", "auto", "--array",
        "0-1", "--sbatch", "hint=x", "--sbatch", "no-kill", "--workdir", ".", "--code", ".",
        "--", "true",
    )  # fmt: skip
    script = json.loads(done.stdout)["data"]["script"]
    for line in (
        "--gpus-per-node=2", "--ntasks-per-node=2", "--cpus-per-task=3", "--mem=1024M",
        "--time=00:30:00", "--exclusive", "--partition=p", "--account=a", "--qos=q",
        "--constraint=c", "--signal=B:USR1@60", "--array=0-1", "--hint=x", "--no-kill",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    for word in ("HPCSCALE_INPUT_I=", "HPCSCALE_OUTPUT_O=", '/S")', "-lt 2 ]"):
        assert word in script
    assert "deadline" not in script


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--env", "A", "--", "x"], "has no value"),
        (["--env", "=b", "--", "x"], "names nothing"),
        (["a.toml", "b"], "one file at most"),
        (["--code", "x", "--no-code", "--", "x"], "together"),
        (["--nodes", "0", "--", "x"], "from 1 on"),
        ([], "nothing to run"),
    ],
)
def test_flags_that_make_no_sense(argv, error):
    done = run(*argv, code=1)
    assert isinstance(done.exception, UsageError)
    assert error in str(done.exception)


@pytest.mark.parametrize(
    ("flag", "value", "hint"),
    [
        ("--deadline", "yesterday", "--deadline +6h"),
        ("--max-cost", "abc", "--max-cost 40"),
        ("--mem", "much", "--mem 64G"),
        ("--time", "long", "--time 4:00:00"),
    ],
)
def test_a_flag_that_says_nothing_comes_with_an_example(flag, value, hint):
    done = run("--site", "lab-onprem", flag, value, "--", "true", code=1)
    assert isinstance(done.exception, UsageError)
    assert done.exception.hint == hint
