"""A plain lab: both sites work, and they share nothing but the software directory."""


def test_all_nodes_are_usable(lab):
    status = lab.status()
    assert status["up"]
    assert set(status["sites"]["lab-onprem"]["nodes"].values()) == {"idle"}


def test_gpus_are_given_out_by_index(lab):
    done = lab.site("lab-onprem").exec(
        ["srun", "-N2", "--gpus-per-node=2", "sh", "-c", "echo $(hostname):$CUDA_VISIBLE_DEVICES"]
    )
    assert sorted(done.stdout.split()) == ["onprem1:0,1", "onprem2:0,1"]
