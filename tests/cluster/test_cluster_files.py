"""cluster/*.yaml as files: Ray's schema, EC2's parameters, Ray's version, and what a sweep finds there."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml

from dmray.on_ray.placement import DRIVER_RESOURCE
from dmray.shipped import shipped_sweeps
from tests.cluster.conftest import REPOSITORY

LAUNCHED = ("gpu", "local")  # by `ray up`


def cluster_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / f"cluster/{name}.yaml").read_text())


def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((REPOSITORY / "cluster/kuberay.yaml").read_text())
    return {document["kind"]: document["spec"] for document in documents}


def pinned(package: str) -> str:
    (line,) = re.findall(rf"(?m)^{re.escape(package)}==(.+)$", (REPOSITORY / "constraints.txt").read_text())
    return line


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy(config))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_it(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(cluster_file(name)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_would_refuse_a_misspelt_field(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared(cluster_file(name)) | {"idle_timeout_minuts": 5})


def unknown_parameters(given: Any, shape: Any, path: str = "") -> list[str]:
    """Keys of `given` that EC2's own description of its request does not have; Ray passes them on unseen."""
    if shape.type_name == "structure":
        wrong = [f"{path}.{key}" for key in given if key not in shape.members]
        known = [(given[key], shape.members[key], f"{path}.{key}") for key in given if key in shape.members]
    elif shape.type_name == "list":
        wrong, known = [], [(item, shape.member, f"{path}[]") for item in given]
    else:
        return []
    return wrong + [key for inner in known for key in unknown_parameters(*inner)]


@pytest.mark.parametrize("node_type", ["head", "gpu", "evaluation"])
def test_every_key_of_a_node_is_one_of_run_instances(node_type: str) -> None:
    run_instances = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    config = cluster_file("gpu")["available_node_types"][node_type]["node_config"]
    assert unknown_parameters(config, run_instances) == []
    assert unknown_parameters(config | {"Ebs": 1}, run_instances) == [".Ebs"]  # the check can fail


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_is_started_with_a_token_and_its_dashboard_on_loopback(name: str) -> None:
    config = cluster_file(name)
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert any(remote.endswith(".ray/auth_token") for remote in config["file_mounts"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_start_flag_is_one_that_ray_knows(name: str) -> None:
    from ray.scripts.scripts import start

    known = {flag for option in start.params for flag in option.opts}
    config = cluster_file(name)
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in line:
            assert set(re.findall(r"--[a-z-]+", line)) <= known


@pytest.mark.parametrize("name", LAUNCHED)
def test_machines_install_the_pinned_versions_of_what_is_copied_to_them(name: str) -> None:
    config = cluster_file(name)
    (install,) = [line for line in config["setup_commands"] if "pip install" in line and "torch-backend" in line]
    assert "-c constraints.txt" in install
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (REPOSITORY / local).exists()
    assert {"dmray", "constraints.txt", "pyproject.toml", "README.md"} <= set(config["file_mounts"].values())


def test_an_unfilled_file_lets_nobody_in() -> None:
    """What is to be filled in is no valid value of AWS's, so that `ray up` fails instead of opening a door."""
    text = (REPOSITORY / "cluster/gpu.yaml").read_text()
    assert "0.0.0.0" not in text
    for word in ("&cpu_image ami-", "&gpu_image ami-", "&security_groups [sg-", "DMRAY_STORE=s3://"):
        assert f"{word}CHANGE-ME" in text
    for node_type in cluster_file("gpu")["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"] == ["sg-CHANGE-ME"]


def test_only_the_head_drives_and_only_workers_work() -> None:
    types = cluster_file("gpu")["available_node_types"]
    head = types.pop("head")
    assert head["resources"] == {"CPU": 0, "GPU": 0, DRIVER_RESOURCE: 32}
    assert "InstanceMarketOptions" not in head["node_config"]  # on demand
    for worker in types.values():
        assert DRIVER_RESOURCE not in worker["resources"]
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_kubernetes_runs_the_pinned_ray_with_a_token() -> None:
    cluster = kubernetes()["RayCluster"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}


def test_kubernetes_heads_drive_and_workers_ask_for_what_they_may_use() -> None:
    cluster = kubernetes()["RayCluster"]
    start = cluster["headGroupSpec"]["rayStartParams"]
    assert (start["num-cpus"], start["num-gpus"]) == ("0", "0")
    assert yaml.safe_load(yaml.safe_load(start["resources"])) == {DRIVER_RESOURCE: 32}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    (gpu,) = groups["gpu"]["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["image"].startswith("REGISTRY/dmray-gpu:")
    (cpu,) = groups["evaluation"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]


def test_each_cluster_says_where_the_data_are() -> None:
    (head,) = [line for line in cluster_file("gpu")["head_start_ray_commands"] if "ray start" in line]
    assert "export DMRAY_DATASETS=$DMRAY_STORE/data " in head
    (container,) = kubernetes()["RayCluster"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "DMRAY_DATASETS", "value": "/runs/data"} in container["env"]
    compose = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())
    assert compose["services"]["head"]["environment"]["DMRAY_DATASETS"] == "s3://dmray/data"


def test_no_pod_runs_as_root() -> None:
    cluster = kubernetes()["RayCluster"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()


def documents(name: str, *changes: tuple[str, str]) -> list[dict[str, Any]]:
    text = (REPOSITORY / f"cluster/{name}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return list(yaml.safe_load_all(text))


def test_the_kubernetes_job_runs_a_sweep_of_the_image_in_the_volume_with_mlflow() -> None:
    job, cluster = kubernetes()["RayJob"], kubernetes()["RayCluster"]
    assert job["clusterSelector"] == {"ray.io/cluster": documents("kuberay")[0]["metadata"]["name"]}
    words = job["entrypoint"].split()
    assert words[:3] == ["python", "-m", "dmray.sweep"]
    assert words[3] in shipped_sweeps()
    assert "--resume" in words
    options = dict(pairwise(words))
    (mount,) = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert options["--storage"] == mount["mountPath"], "the sweep's name is added to it once"
    (service,) = [each for each in documents("kuberay_storage") if each["kind"] == "Service"]
    (port,) = service["spec"]["ports"]
    assert options["--mlflow-uri"] == f"http://{service['metadata']['name']}:{port['port']}"


def test_every_volume_of_the_kubernetes_cluster_is_claimed_in_the_other_file() -> None:
    claims = {
        each["metadata"]["name"]: each["spec"] for each in documents("kuberay_storage") if "Claim" in each["kind"]
    }
    cluster = kubernetes()["RayCluster"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (volume,) = group["template"]["spec"]["volumes"]
        claim = claims[volume["persistentVolumeClaim"]["claimName"]]
        assert claim["accessModes"] == ["ReadWriteMany"], "pods of many machines write to it"


def test_mlflow_on_kubernetes_takes_the_names_that_it_is_called_by_and_lets_only_ray_in() -> None:
    kinds = {each["kind"]: each["spec"] for each in documents("kuberay_storage")}
    pod = kinds["Deployment"]["template"]
    (container,) = pod["spec"]["containers"]
    options = dict(pairwise(container["command"]))
    elsewhere = "".join((REPOSITORY / name).read_text() for name in ("docker/compose.yaml", "cluster/mlflow_server.py"))
    assert all(word in elsewhere for word in container["command"] if word.startswith("--")), (
        "flags that are tried there"
    )
    assert {"dmray-mlflow:5000", "127.0.0.1:5000"} <= set(options["--allowed-hosts"].split(","))
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert kinds["Service"]["selector"] == pod["metadata"]["labels"] == kinds["Deployment"]["selector"]["matchLabels"]
    (rule,) = kinds["NetworkPolicy"]["ingress"]
    cluster = documents("kuberay")[0]["metadata"]["name"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"ray.io/cluster": cluster}}}]


def test_the_documents_variant_with_a_bucket_needs_no_volume() -> None:
    text = (REPOSITORY / "docs/cluster.md").read_text()
    changes = re.findall(r"""-e ['"]s\|([^|]+)\|([^|]+)\|['"]""", text)
    cluster, job = documents("kuberay", *(each for each in changes if each[0] != "STORAGE_CLASS"))
    assert cluster["spec"]["headGroupSpec"]["template"]["spec"]["volumes"] == [{"name": "runs", "emptyDir": {}}]
    assert "--storage s3://my-sweeps/dmray/runs " in job["spec"]["entrypoint"]


@pytest.mark.parametrize(
    "path", sorted([*REPOSITORY.glob("cluster/*.*"), *REPOSITORY.glob("docker/[cD]*")]), ids=lambda p: p.name
)
def test_each_file_says_how_it_was_tested(path: Path) -> None:
    if path.name == "compose.env.example":  # a list of names
        return
    top = " ".join(path.read_text().split("\n")[:22])
    assert "Tested by tests/cluster" in top
