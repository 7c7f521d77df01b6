"""No agent of torchrun finds the store gone that the first node's agent holds."""

import os
import socket
import subprocess
import sys

import pytest
from render_cases import ONPREM

from hpcscale.lab.process import patience
from hpcscale.render.launch import launch
from hpcscale.spec import JobSpec, Launcher, Resources

# in the second node's agent, which is the last at the exit barrier: slow between telling that it has
# come and asking whether all have
SLOW = """
import importlib.util, os, sys, time

class Slow:
    def find_spec(self, name, path, target=None):
        if name != "torch.distributed.elastic.utils.store":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def changed(module):
            execute(module)
            tell = module._barrier_nonblocking

            def slowly(**kw):
                key = tell(**kw)
                open("came", "w").close()
                time.sleep(1)
                return key

            module._barrier_nonblocking = slowly

        spec.loader.exec_module = changed
        return spec

if os.environ.get("SLURM_NODEID") == "1" and "RANK" not in os.environ:
    sys.meta_path.insert(0, Slow())
"""
PROGRAM = """
import os, sys, time
while os.environ["GROUP_RANK"] == "1" and not os.path.exists("first"):
    time.sleep(0.05)
open("first", "w").close()
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], sys.argv[1:])
"""


@pytest.mark.timeout(600)
def test_the_agent_with_the_store_leaves_last(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = (sys.executable, "program.py", "--of=mine", "two words")
    spec = JobSpec(
        name="t",
        command=command,
        launcher=Launcher.TORCHRUN,
        resources=Resources(nodes=2, gpus_per_node=1, time_limit_s=60),
    )
    made = launch(spec, ONPREM, [], image=False, container_env=[])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(tmp_path)}
    script = "\n    ".join(made.inner)
    agents = [
        subprocess.Popen(
            ["bash", "-c", f"bash -c '{script}' bash {made.argv}"],
            cwd=tmp_path,
            env={**os.environ, **own, "SLURM_NODEID": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    try:
        said = [agent.communicate(timeout=patience(90))[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    for rank in range(2):
        assert f"rank {rank} of 2 ['--of=mine', 'two words']" in said[rank]
    assert (tmp_path / "came").exists(), "the second agent was not slow: torch has changed"
    assert "Traceback" not in "".join(said)
