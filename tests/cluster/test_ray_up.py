"""`ray up`, `get-head-ip`, `down` of cluster/gpu.yaml against a mocked EC2; ssh and rsync write down what they hear.

Workers are started by the autoscaler on the head, which has no real machine here: their launch is done by the code that
it runs, Ray's node provider.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from cluster import prepare_aws
from dmray.on_ray.placement import DRIVER_RESOURCE, Machines, place_trials
from dmray.specs import load_sweep
from tests.cluster.conftest import REPOSITORY, MockedAws

pytestmark = pytest.mark.slow
RECORDER = '#!/bin/sh\necho "$(basename "$0") $*" >> "$COMMANDS"\n'
STAND_INS = {  # for programs of the document's commands
    **dict.fromkeys(("ssh", "rsync", "scp"), RECORDER),
    "aws": "#!/bin/sh\necho 123456789012\n",  # its only use: the account's number
    "curl": "#!/bin/sh\necho 203.0.113.7\n",  # and here: this machine's address
    "python": f'#!/bin/sh\nif [ "$1 $2" = "-m pip" ]; then {RECORDER[10:-1]}; else exec {sys.executable} "$@"; fi\n',
}


@dataclass(frozen=True)
class Launch:
    """A cluster that is up: what was sent to its head, and how to reach it."""

    folder: Path
    environment: dict[str, str]

    @property
    def file(self) -> Path:
        return self.folder / "checkout/cluster/gpu.yaml"

    @property
    def commands(self) -> str:
        return (self.folder / "commands").read_text()

    def ray(self, *words: str) -> str:
        ray = Path(sys.executable).parent / "ray"
        return _run([str(ray), *words], self)

    def completed(self) -> dict[str, Any]:
        """The file as `ray up` completed it, with subnets, keys and each instance type's resources; it keeps that."""
        (cache,) = self.folder.glob("ray-config-*")
        return json.loads(cache.read_text())["config"]


@pytest.fixture(scope="module")
def launch(mocked_aws: MockedAws, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """The commands of docs/cluster.md from an empty account to a cluster, as they are written there."""
    folder = tmp_path_factory.mktemp("launch")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("dmray", "sweeps", "examples", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (checkout / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "cluster", checkout / "cluster")
    up = Launch(folder, _environment(folder, mocked_aws))
    _run(["bash", "-euo", "pipefail", "-c", "\n".join(documented("From an empty account to a cluster"))], up)
    return up


def documented(section: str) -> list[str]:
    """The commands of a section of docs/cluster.md."""
    text = (REPOSITORY / "docs/cluster.md").read_text()
    (body,) = re.findall(rf"(?ms)^##+ {section}\n(.*?)(?=^##)", text)
    return re.findall(r"(?m)^    (.*)$", body)


def _environment(folder: Path, aws: MockedAws) -> dict[str, str]:
    tools, home = folder / "bin", folder / "home"
    tools.mkdir()
    home.mkdir()
    for name, script in STAND_INS.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    ours = {
        "HOME": str(home),
        "TMPDIR": str(folder),
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COMMANDS": str(folder / "commands"),
    }
    return (
        dict(os.environ) | aws.environment | ours | {"RAY_UP_enable_autoscaler_v2": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    )


def _run(command: list[str], up: Launch) -> str:
    where, questions = up.folder / "checkout", "y\n" * 5
    done = subprocess.run(
        command, env=up.environment, cwd=where, capture_output=True, text=True, input=questions, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _instances(*states: str) -> list[dict[str, Any]]:
    filters = [{"Name": "instance-state-name", "Values": list(states)}]
    reservations = boto3.client("ec2").describe_instances(Filters=filters)["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def _tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def test_the_head_is_one_machine_on_demand_with_its_role_and_group(launch: Launch) -> None:
    (head,) = _instances("running")
    assert head["InstanceType"] == "m6i.4xlarge"
    assert "InstanceLifecycle" not in head  # "spot" otherwise
    assert head["IamInstanceProfile"]["Arn"].endswith("/dmray-head")
    assert [group["GroupName"] for group in head["SecurityGroups"]] == [prepare_aws.GROUP]
    tags = _tags(head)
    assert (tags["ray-cluster-name"], tags["ray-node-type"], tags["ray-user-node-type"]) == ("dmray", "head", "head")


def test_its_first_boot_installs_what_set_up_needs(launch: Launch) -> None:
    (head,) = _instances("running")
    attribute = boto3.client("ec2").describe_instance_attribute(InstanceId=head["InstanceId"], Attribute="userData")
    user_data = base64.b64decode(attribute["UserData"]["Value"]).decode()
    assert user_data.startswith("#cloud-config\n")
    assert "python3-venv" in yaml.safe_load(user_data)["packages"]


def test_ray_opens_no_port_beyond_those_prepared(launch: Launch) -> None:
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    assert sorted(group["GroupName"] for group in groups if not group["GroupName"].startswith("default")) == ["dmray"]
    rules = [rule for group in groups if group["GroupName"] == "dmray" for rule in group["IpPermissions"]]
    assert [(rule["FromPort"], net["CidrIp"]) for rule in rules for net in rule["IpRanges"]] == [(22, "203.0.113.7/32")]


def test_the_project_and_the_token_are_copied_to_the_head(launch: Launch) -> None:
    copies = [line for line in launch.commands.splitlines() if line.startswith("rsync ")]
    for name in ("dmray/dmray/", "examples/", "sweeps/", "constraints.txt", "pyproject.toml", ".ray/auth_token"):
        assert any(f"/home/ubuntu/{name}" in line or f"/home/ubuntu/dmray/{name}" in line for line in copies), name
    assert "ray_bootstrap_config.yaml" in launch.commands


def test_set_up_installs_pinned_versions_before_ray_starts(launch: Launch) -> None:
    steps = [
        "DMRAY_STORE=s3://dmray-123456789012/dmray",
        "uv==0.13.9",
        "--torch-backend=auto -c constraints.txt",
        "install_kernels.py --uv",
        "ray stop",
        "mlflow_server.py --store",
        "ray start",
    ]
    found = [launch.commands.index(step) for step in steps]
    assert found == sorted(found)


def test_ray_starts_with_token_loopback_dashboard_and_driver_slots(launch: Launch) -> None:
    (start,) = [line for line in launch.commands.splitlines() if "ray start" in line]
    assert "--head" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token" in start
    assert "--autoscaling-config" in start
    assert f'"{DRIVER_RESOURCE}":32' in start.replace("\\", "").replace(" ", "")
    token = (launch.folder / "home/.ray/auth_token").read_text().strip()
    assert token
    assert token not in launch.commands  # it travels as a file


def test_get_head_ip_prints_the_heads_address(launch: Launch) -> None:
    (head,) = _instances("running")
    assert launch.ray("get-head-ip", str(launch.file)).split()[-1] == head["PublicIpAddress"]


@pytest.fixture(scope="module")
def workers(launch: Launch) -> list[dict[str, Any]]:
    """The fleet, launched by Ray's node provider from the file as `ray up` completes it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = launch.completed()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name in ("gpu", "evaluation"):
        node_type = config["available_node_types"][name]
        tags = {
            "ray-node-type": "worker",
            "ray-user-node-type": name,
            "ray-launch-config": "0",
            "ray-node-status": "up",
        }
        for _ in range(node_type["min_workers"]):  # one by one: the mock starts one machine a request
            provider.create_node(node_type["node_config"], tags, 1)
    return [one for one in _instances("running") if _tags(one)["ray-user-node-type"] != "head"]


def test_the_fleet_is_spot_machines_in_the_same_group(workers: list[dict[str, Any]]) -> None:
    kinds = sorted((_tags(one)["ray-user-node-type"], one["InstanceType"]) for one in workers)
    assert kinds == [("evaluation", "c6i.4xlarge")] * 2 + [("gpu", "g5.2xlarge")] * 8
    for one in workers:
        assert one["InstanceLifecycle"] == "spot"
        assert one["IamInstanceProfile"]["Arn"].endswith("/dmray-worker")
        assert [group["GroupName"] for group in one["SecurityGroups"]] == [prepare_aws.GROUP]


def test_the_full_benchmark_fills_the_fleet(launch: Launch) -> None:
    """Four trials a GPU beside all evaluation actors, each with a driver's slot on the head: no machine is idle."""
    types = launch.completed()["available_node_types"]
    count = {name: types[name]["min_workers"] for name in types} | {"head": 1}
    total = {
        kind: sum(types[name]["resources"].get(kind, 0) * count[name] for name in types)
        for kind in ("CPU", "GPU", DRIVER_RESOURCE)
    }
    resources = load_sweep(REPOSITORY / "sweeps/full_benchmark.yaml").resources
    layout = place_trials(resources, Machines(total["CPU"], total["GPU"], total[DRIVER_RESOURCE]), num_trials=540)
    assert layout.concurrent_trials == 32 == total[DRIVER_RESOURCE]
    assert total["CPU"] == 32 * resources.cpus_per_trial + resources.evaluation_actors


@pytest.mark.usefixtures("workers")
def test_down_terminates_everything(launch: Launch) -> None:
    assert len(_instances("running", "pending")) == 11
    launch.ray("down", "--yes", str(launch.file))
    assert _instances("running", "pending", "stopping", "stopped") == []
