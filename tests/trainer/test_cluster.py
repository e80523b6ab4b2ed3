"""Which processes there are, from literal environments of each launcher."""

import dataclasses
import re
from pathlib import Path

import pytest

import galvanax as gx
from galvanax.cli.launch import LaunchCommand, child_environments
from galvanax.trainer.cluster import OWN, Cluster, find_cluster, visible_gpus

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TORCHRUN = {
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "16",
    "RANK": "9",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
}
GALVANAX = {"GALVANAX_COORDINATOR": "node-0:7000", "GALVANAX_NUM_PROCESSES": "4", "GALVANAX_PROCESS_INDEX": "2"}
KUBERNETES = {
    "JOB_COMPLETION_INDEX": "3",
    "GALVANAX_COORDINATOR": "go2-0.go2:7000",
    "GALVANAX_NUM_PROCESSES": "4",
}


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        ({}, None),
        (GALVANAX, Cluster("node-0:7000", 4, 2, "GALVANAX_COORDINATOR")),
        (SLURM, Cluster("gpu003:61587", 6, 5, "SLURM_STEP_NODELIST", 1, 2)),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu7,gpu9"}, Cluster("gpu7:61587", 6, 5, "SLURM_STEP_NODELIST", 1, 2)),
        (SLURM | {"SLURM_GPUS_PER_TASK": "1"}, Cluster("gpu003:61587", 6, 5, "SLURM_STEP_NODELIST")),
        (OPEN_MPI, Cluster("10.96.0.1:64591", 4, 3, "OMPI_COMM_WORLD_RANK", 1, 2)),
        (OPEN_MPI | {"MASTER_ADDR": "h"}, Cluster("h:64591", 4, 3, "OMPI_COMM_WORLD_RANK", 1, 2)),
        (KUBERNETES, Cluster("go2-0.go2:7000", 4, 3, "GALVANAX_COORDINATOR")),
        (TORCHRUN, Cluster("10.0.0.7:29500", 16, 9, "MASTER_ADDR", 1, 8)),
        (TORCHRUN | {"MASTER_ADDR": "fe80::1"}, Cluster("[fe80::1]:29500", 16, 9, "MASTER_ADDR", 1, 8)),
        # torchrun itself listens at its port.
        (
            TORCHRUN | {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            Cluster("10.0.0.7:29501", 16, 9, "MASTER_ADDR", 1, 8),
        ),
        # A node of a cloud: all its GPUs are this process's.
        (
            {name: TORCHRUN[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")},
            Cluster("10.0.0.7:29500", 16, 9, "MASTER_ADDR"),
        ),
    ],
)
def test_finds(environ, cluster):
    assert find_cluster(environ) == cluster


def test_on_one_machine_open_mpi_needs_no_address():
    environ = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "job-7"}
    del environ["OMPI_MCA_orte_hnp_uri"]
    cluster = find_cluster(environ)
    assert cluster.coordinator.startswith("127.0.0.1:")
    assert find_cluster({**environ, "OMPI_COMM_WORLD_RANK": "0"}).coordinator == cluster.coordinator


ONE_NODE = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "6", "SLURM_STEP_NODELIST": "gpu3", "SLURM_NODEID": "0"}
LAUNCH = LaunchCommand(processes=2, coordinator="node-0:7000")


@pytest.mark.parametrize(
    ("environ", "coordinator"),
    [
        (child_environments(LAUNCH, {}, 0)[1], "127.0.0.1:7000"),
        (child_environments(dataclasses.replace(LAUNCH, total=4), {}, 0)[1], "node-0:7000"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "127.0.0.1:64591"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "MASTER_ADDR": "h"}, "127.0.0.1:64591"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16"}, "127.0.0.1:29500"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16", "MASTER_ADDR": "fe80::1"}, "127.0.0.1:29500"),
        (ONE_NODE, "127.0.0.1:61587"),
        (ONE_NODE | {"SLURM_GPUS_PER_TASK": "1"}, "127.0.0.1:61587"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, "127.0.0.1:61587"),
        (SLURM | {"SLURM_NNODES": "1"}, "127.0.0.1:61587"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, "gpu003:61587"),
        (ONE_NODE | {"SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "2"}, "127.0.0.1:61587"),
        (GALVANAX | {"GALVANAX_COORDINATOR": "localhost:7000"}, "127.0.0.1:7000"),
        (GALVANAX | {"GALVANAX_COORDINATOR": "127.0.1.1:7000"}, "127.0.1.1:7000"),
        (GALVANAX | {"GALVANAX_COORDINATOR": "[::1]:7000"}, "[::1]:7000"),
        # What is said explicitly counts.
        (ONE_NODE | {"GALVANAX_COORDINATOR": "node-0:7000"}, "node-0:7000"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16", "GALVANAX_COORDINATOR": "node-0:7000"}, "node-0:7000"),
        # More processes than the launcher knows of.
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16", "GALVANAX_NUM_PROCESSES": "32"}, "10.0.0.7:29500"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16", "GALVANAX_NUM_PROCESSES": "16"}, "127.0.0.1:29500"),
    ],
)
def test_processes_of_one_machine_meet_on_its_loopback(environ, coordinator):
    cluster = find_cluster(environ)
    assert cluster.coordinator == coordinator
    assert cluster.is_local == coordinator.startswith(("127.", "[::1]"))


def test_the_innermost_launcher_counts():
    inner = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}
    assert find_cluster(SLURM | inner).source == "MASTER_ADDR"
    assert find_cluster(SLURM | TORCHRUN).source == "SLURM_STEP_NODELIST"
    assert find_cluster(SLURM | OPEN_MPI).source == "OMPI_COMM_WORLD_RANK"
    assert find_cluster(SLURM | GALVANAX).process_index == 2


@pytest.mark.parametrize(
    "environ",
    [
        {"JOB_COMPLETION_INDEX": "0"},  # a Job whose pods have nothing to do with each other
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, outside of srun
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"},
        SLURM | {"GALVANAX_NUM_PROCESSES": "1"},  # a sweep of runs
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
    ],
)
def test_one_process_is_no_cluster(environ):
    assert find_cluster(environ) is None


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"GALVANAX_COORDINATOR": "a:1"}, "GALVANAX_NUM_PROCESSES and GALVANAX_PROCESS_INDEX"),
        (GALVANAX | {"GALVANAX_PROCESS_INDEX": "4"}, "process 4 of 4"),
        (GALVANAX | {"GALVANAX_NUM_PROCESSES": "four"}, "GALVANAX_NUM_PROCESSES is 'four'"),
        (GALVANAX | {"GALVANAX_COORDINATOR": "node-0"}, "'node-0': expected host:port"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "not MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "MASTER_PORT is not set"),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "?"}, "mpirun -x MASTER_ADDR"),
    ],
)
def test_says_what_is_wrong(environ, says):
    with pytest.raises(gx.ConfigError) as caught:
        find_cluster(environ)
    assert says in str(caught.value)


def test_a_process_takes_its_share_of_the_gpus():
    shares = [Cluster("h:1", 4, index, "RANK", index, 4).local_gpus(8) for index in range(4)]
    assert shares == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert Cluster("h:1", 4, 3, "RANK", 1, 2).local_gpus(2) == [1]
    assert Cluster("h:1", 2, 1, "RANK", 0, 1).local_gpus(8) is None  # the only process of its machine
    assert Cluster("h:1", 4, 3, "RANK", 3, 4).local_gpus(1) is None  # the launcher has chosen
    assert Cluster("h:1", 4, 3, "RANK").local_gpus(8) is None
    with pytest.raises(gx.ConfigError, match="4 processes on this machine share 2 GPUs"):
        Cluster("h:1", 4, 3, "RANK", 3, 4).local_gpus(2)


def test_visible_gpus():
    assert visible_gpus({}, 2) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,1"}, 8) == ["3", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, 8) == []
    assert visible_gpus({"JAX_PLATFORMS": "cpu"}, 8) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}, 0) == []


def test_the_kubernetes_job_of_the_docs():
    yaml = pytest.importorskip("yaml")
    text = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    service, job = yaml.safe_load_all(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    pods = job["spec"]["template"]["spec"]
    environ = {entry["name"]: entry["value"] for entry in pods["containers"][0]["env"]}
    last = job["spec"]["completions"] - 1
    found = find_cluster(environ | {"JOB_COMPLETION_INDEX": str(last)})
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"  # as Kubernetes calls pods of an indexed Job
    assert found == Cluster(f"{host}:61000", last + 1, last, OWN[0])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pods["subdomain"] == service["metadata"]["name"]
    assert {mount["name"] for mount in pods["containers"][0]["volumeMounts"]} == {
        one["name"] for one in pods["volumes"]
    }
    assert environ["XDG_CACHE_HOME"].startswith("/shared/")
