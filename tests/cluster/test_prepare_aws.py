"""What cluster/prepare_aws.py makes in an account, and what it writes into cluster/gpu.yaml."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError, NoCredentialsError

from cluster import prepare_aws
from tests.cluster.conftest import REGION, REPOSITORY, MockedAws

pytestmark = pytest.mark.usefixtures("mocked_aws")
OPTIONS = ["--bucket", "a-bucket", "--region", REGION, "--ssh-cidr", "203.0.113.7/32"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(REPOSITORY / "cluster/gpu.yaml", tmp_path_factory.mktemp("aws")))


@pytest.fixture(scope="module")
def filled(mocked_aws: MockedAws, file: Path) -> dict[str, Any]:
    """The cluster file's `metadata` after one run in an empty account."""
    run(file)
    return yaml.safe_load(file.read_text())["metadata"]


class CachedSession:
    """boto3's session for one region. A client takes a second to make, so that each is made once."""

    region_name = REGION

    def __init__(self, region_name: str = REGION) -> None:
        assert region_name == REGION

    @staticmethod
    @cache
    def client(name: str) -> Any:
        return boto3.session.Session(region_name=REGION).client(name)


SESSION: Any = CachedSession()


def run(file: Path, *more: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "Session", CachedSession)
        patch.setattr(sys, "argv", ["prepare_aws.py", *OPTIONS, *more, "--file", str(file)])
        prepare_aws.main()


def test_no_line_of_the_file_is_left_to_be_filled_in_and_nothing_else_changes(
    filled: dict[str, Any], file: Path
) -> None:
    before, after = (REPOSITORY / "cluster/gpu.yaml").read_text(), file.read_text()
    assert "CHANGE-ME" not in "".join(line for line in after.splitlines() if not line.startswith("  - "))
    changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert {new.split(":")[0].strip() for _, new in changed} == {"cpu_image", "gpu_image", "security_groups", "store"}
    assert all(old.partition("  #")[2] == new.partition("  #")[2] for old, new in changed), "comments are kept"
    assert "s3://a-bucket/dmray " in filled["store"]
    assert filled["mount"] == "true", "the bucket is the storage"


def test_the_images_are_the_newest_of_ubuntu_and_of_awss_deep_learning(filled: dict[str, Any]) -> None:
    assert (filled["cpu_image"], filled["gpu_image"]) == ("ami-0000000000000c0de", "ami-0000000000000900d")


def test_a_second_run_changes_no_byte_also_when_there_are_newer_images(
    filled: dict[str, Any], file: Path, mocked_aws: MockedAws
) -> None:
    before = file.read_bytes()
    mocked_aws.set_parameter(prepare_aws.IMAGES["cpu_image"], "ami-11111111111111111")
    run(file)
    assert file.read_bytes() == before
    run(file, "--new-images")
    assert b"ami-11111111111111111" in file.read_bytes()
    mocked_aws.set_parameter(prepare_aws.IMAGES["cpu_image"], "ami-0000000000000c0de")
    run(file, "--new-images")
    assert file.read_bytes() == before


def test_a_shared_file_system_is_made_once_and_mounted_on_every_machine(
    filled: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copy(file, tmp_path))
    run(other, "--efs")
    first = other.read_bytes()
    run(other, "--efs")
    assert other.read_bytes() == first
    (system,) = SESSION.client("efs").describe_file_systems()["FileSystems"]
    assert system["Encrypted"]
    config = yaml.safe_load(first)
    assert config["setup_commands"].count(config["metadata"]["mount"]) == 1
    assert f"{system['FileSystemId']}.efs.{REGION}.amazonaws.com:/ /mnt/dmray" in config["metadata"]["mount"]
    targets = SESSION.client("efs").describe_mount_targets(FileSystemId=system["FileSystemId"])["MountTargets"]
    subnets = SESSION.client("ec2").describe_subnets()["Subnets"]
    assert sorted(each["SubnetId"] for each in targets) == sorted(each["SubnetId"] for each in subnets)


def test_a_file_whose_lines_were_renamed_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "gpu.yaml"
    file.write_text((REPOSITORY / "cluster/gpu.yaml").read_text().replace("&store", "&bucket"))
    with pytest.raises(SystemExit, match="0 lines `  store: &store"):
        run(file)
    assert "&bucket" in file.read_text()
    assert "ami-CHANGE-ME" in file.read_text()


def test_only_the_given_address_reaches_a_machine_and_by_ssh_only(filled: dict[str, Any]) -> None:
    ec2 = SESSION.client("ec2")
    (group,) = filled["security_groups"]
    rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    from_outside = [(rule["FromPort"], rule["ToPort"], net["CidrIp"]) for rule in rules for net in rule["IpRanges"]]
    among_members = [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]]
    assert from_outside == [(22, 22, "203.0.113.7/32")]
    assert among_members == [group]


def test_a_second_run_keeps_what_is_there_and_adds_an_address(filled: dict[str, Any]) -> None:
    values = prepare_aws.prepare(SESSION, "a-bucket", "203.0.113.7/32")
    assert prepare_aws.prepare(SESSION, "a-bucket", "198.51.100.0/24") == values
    (group,) = SESSION.client("ec2").describe_security_groups(GroupNames=[prepare_aws.GROUP])["SecurityGroups"]
    addresses = [net["CidrIp"] for rule in group["IpPermissions"] for net in rule["IpRanges"]]
    assert addresses == ["203.0.113.7/32", "198.51.100.0/24"]
    SESSION.client("ec2").revoke_security_group_ingress(
        GroupId=group["GroupId"], IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="198.51.100.0/24"
    )


def test_workers_may_use_the_store_and_nothing_else(filled: dict[str, Any]) -> None:
    policy = SESSION.client("iam").get_role_policy(RoleName="dmray-worker", PolicyName="dmray")["PolicyDocument"]
    statements = (policy if isinstance(policy, dict) else json.loads(policy))["Statement"]
    assert {action.split(":")[0] for statement in statements for action in statement["Action"]} == {"s3"}
    assert all("a-bucket" in statement["Resource"] for statement in statements)


def test_the_bucket_is_private(filled: dict[str, Any]) -> None:
    blocks = SESSION.client("s3").get_public_access_block(Bucket="a-bucket")["PublicAccessBlockConfiguration"]
    assert blocks == dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )


def test_machines_are_counted_by_the_quota_that_they_fall_under() -> None:
    config = yaml.safe_load((REPOSITORY / "cluster/gpu.yaml").read_text())
    needed = prepare_aws.needed_vcpus(config, {"m6i.4xlarge": 16, "g5.2xlarge": 8, "c6i.4xlarge": 16})
    assert needed == {("standard", False): 16, ("g", True): 64, ("standard", True): 32}
    assert set(needed) <= set(prepare_aws.QUOTAS)
    config["available_node_types"]["gpu"]["node_config"]["InstanceType"] = "trn1.2xlarge"
    needed = prepare_aws.needed_vcpus(config, {"m6i.4xlarge": 16, "trn1.2xlarge": 8, "c6i.4xlarge": 16})
    assert ("trn1.2xlarge", True) in needed, "it falls under a quota that is not listed"


@pytest.mark.parametrize(
    ("has", "said"),
    [(0.0, "--quota-code L-3819A6DF --desired-value 64"), (64.0, None), (None, "cannot be read (no rights)")],
)
def test_a_quota_that_is_too_small_is_named_with_the_command_that_asks_for_more(
    has: float | None, said: str | None
) -> None:
    config = yaml.safe_load((REPOSITORY / "cluster/gpu.yaml").read_text())
    config["available_node_types"] = {"gpu": config["available_node_types"]["gpu"]}

    def quota(**_: str) -> dict[str, Any]:
        if has is None:
            raise NoRights
        return {"Quota": {"Value": has}}

    class NoRights(ClientError):
        def __init__(self) -> None:
            Exception.__init__(self, "no rights")

    clients = {"ec2": SESSION.client("ec2"), "service-quotas": SimpleNamespace(get_service_quota=quota)}
    session: Any = SimpleNamespace(client=clients.get, region_name=REGION)
    lines = prepare_aws.missing_quotas(session, config)
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_somebody_elses_bucket_is_an_error() -> None:
    class Taken:
        def create_bucket(self, **_: object) -> None:
            raise ClientError({"Error": {"Code": "BucketAlreadyExists"}}, "CreateBucket")

    with pytest.raises(ClientError, match="BucketAlreadyExists") as taken:
        prepare_aws.make_bucket(Taken(), "a-bucket", REGION)
    assert "choose another --bucket" in prepare_aws.explained(taken.value, "a-bucket")


def test_an_account_without_keys_is_one_line_with_the_cure(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoCredentialsError

    monkeypatch.setattr(prepare_aws, "make_bucket", refuse)
    with pytest.raises(SystemExit, match="run `aws configure`") as ended:
        run(file)
    assert "\n" not in str(ended.value.code)
