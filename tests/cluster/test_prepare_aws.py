"""What cluster/prepare_aws.py makes in an account."""

from __future__ import annotations

import json

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from cluster import prepare_aws
from tests.cluster.conftest import REGION, REPOSITORY, MockedAws

pytestmark = pytest.mark.usefixtures("mocked_aws")


@pytest.fixture(scope="module")
def lines(mocked_aws: MockedAws) -> str:
    return prepare_aws.prepare("a-bucket", REGION, "203.0.113.7/32")


def test_the_lines_it_prints_are_lines_of_the_cluster_file(lines: str) -> None:
    ours = (REPOSITORY / "cluster/gpu.yaml").read_text()
    for line in lines.splitlines():
        assert f"\n{line.split('&')[0]}&" in ours
    store = yaml.safe_load(lines)["store"]
    assert "s3://a-bucket/dmray'" in store


def test_only_the_given_address_reaches_a_machine_and_by_ssh_only(lines: str) -> None:
    ec2 = boto3.client("ec2")
    (group,) = yaml.safe_load(lines)["security_groups"]
    rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    from_outside = [(rule["FromPort"], rule["ToPort"], net["CidrIp"]) for rule in rules for net in rule["IpRanges"]]
    among_members = [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]]
    assert from_outside == [(22, 22, "203.0.113.7/32")]
    assert among_members == [group]


def test_a_second_run_keeps_what_is_there_and_adds_an_address(lines: str) -> None:
    assert prepare_aws.prepare("a-bucket", REGION, "203.0.113.7/32") == lines
    assert prepare_aws.prepare("a-bucket", REGION, "198.51.100.0/24") == lines
    (group,) = boto3.client("ec2").describe_security_groups(GroupNames=[prepare_aws.GROUP])["SecurityGroups"]
    addresses = [net["CidrIp"] for rule in group["IpPermissions"] for net in rule["IpRanges"]]
    assert addresses == ["203.0.113.7/32", "198.51.100.0/24"]
    boto3.client("ec2").revoke_security_group_ingress(
        GroupId=group["GroupId"], IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="198.51.100.0/24"
    )


def test_workers_may_use_the_store_and_nothing_else(lines: str) -> None:
    policy = boto3.client("iam").get_role_policy(RoleName="dmray-worker", PolicyName="dmray")["PolicyDocument"]
    statements = (policy if isinstance(policy, dict) else json.loads(policy))["Statement"]
    assert {action.split(":")[0] for statement in statements for action in statement["Action"]} == {"s3"}
    assert all("a-bucket" in statement["Resource"] for statement in statements)


def test_the_bucket_is_private(lines: str) -> None:
    blocks = boto3.client("s3").get_public_access_block(Bucket="a-bucket")["PublicAccessBlockConfiguration"]
    assert blocks == dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )


def test_somebody_elses_bucket_is_an_error() -> None:
    class Taken:
        def create_bucket(self, **_: object) -> None:
            raise ClientError({"Error": {"Code": "BucketAlreadyExists"}}, "CreateBucket")

    with pytest.raises(ClientError, match="BucketAlreadyExists"):
        prepare_aws.make_bucket(Taken(), "a-bucket", REGION)
