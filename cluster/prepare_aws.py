"""Create what cluster/gpu.yaml needs in an AWS account: a bucket, a security group and instance profiles.

    python cluster/prepare_aws.py --bucket BUCKET --region us-west-2 --ssh-cidr 203.0.113.7/32

It can be run again: existing things are kept, and the address is added to those that may use SSH. The security group is
created here because a group that Ray creates opens SSH to the whole internet, whatever the cluster file says.

Tested by tests/cluster against a mocked AWS, together with `ray up`. Not tested: real AWS.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
from typing import Any

import boto3
from botocore.exceptions import ClientError

GROUP = "dmray"
_EC2_MAY_USE = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--region", required=True)
    parser.add_argument("--ssh-cidr", required=True, type=ipaddress.ip_network, help="addresses that may use SSH")
    options = parser.parse_args()
    print(prepare(options.bucket, options.region, str(options.ssh_cidr)))


def prepare(bucket: str, region: str, ssh_cidr: str) -> str:
    """Create everything. Returns the lines to fill in at the top of cluster/gpu.yaml."""
    session = boto3.Session(region_name=region)
    make_bucket(session.client("s3"), bucket, region)
    group = make_security_group(session.client("ec2"), ssh_cidr)
    iam = session.client("iam")
    account = session.client("sts").get_caller_identity()["Account"]
    make_profile(iam, "dmray-worker", [store_policy(bucket)])
    make_profile(iam, "dmray-head", [store_policy(bucket), autoscaler_policy(account)])
    make_spot_role(iam)
    return (
        f"  region: &region {region}\n"
        f"  security_groups: &security_groups [{group}]\n"
        f"  store: &store echo 'export DMRAY_STORE=s3://{bucket}/dmray' > ~/dmray.env"
    )


def make_bucket(s3: Any, bucket: str, region: str) -> None:
    """Create a private bucket in `region`."""
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    _ignoring("BucketAlreadyOwnedByYou", s3.create_bucket, Bucket=bucket, **where)
    blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True))


def make_security_group(ec2: Any, ssh_cidr: str) -> str:
    """Create a group in the default VPC that allows SSH from `ssh_cidr` and all traffic among its members.

    Returns its id.
    """
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    filters = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    existing = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    group = (
        existing[0]["GroupId"]
        if existing
        else ec2.create_security_group(GroupName=GROUP, Description=GROUP, VpcId=vpc)["GroupId"]
    )
    address = {"CidrIpv6" if ":" in ssh_cidr else "CidrIp": ssh_cidr}
    ranges = "Ipv6Ranges" if ":" in ssh_cidr else "IpRanges"
    for permission in (
        {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, ranges: [address]},
        {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
    ):
        _ignoring(
            "InvalidPermission.Duplicate",
            ec2.authorize_security_group_ingress,
            GroupId=group,
            IpPermissions=[permission],
        )
    return group


def make_profile(iam: Any, name: str, policies: list[dict[str, Any]]) -> None:
    """Create an instance profile with a role of the same name that has the rights in `policies`."""
    _ignoring("EntityAlreadyExists", iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(_EC2_MAY_USE))
    document = {
        "Version": "2012-10-17",
        "Statement": [statement for policy in policies for statement in policy["Statement"]],
    }
    iam.put_role_policy(RoleName=name, PolicyName="dmray", PolicyDocument=json.dumps(document))
    _ignoring("EntityAlreadyExists", iam.create_instance_profile, InstanceProfileName=name)
    _ignoring(
        "LimitExceeded", iam.add_role_to_instance_profile, InstanceProfileName=name, RoleName=name
    )  # a profile has at most one role


def make_spot_role(iam: Any, service: str = "spot.amazonaws.com") -> None:
    """Create the role for spot machines, which an account needs once and which the head may not create."""
    if not iam.list_roles(PathPrefix=f"/aws-service-role/{service}/")["Roles"]:
        iam.create_service_linked_role(AWSServiceName=service)


def store_policy(bucket: str) -> dict[str, Any]:
    """The rights to read and write one bucket."""
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return {
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{bucket}"},
            {"Effect": "Allow", "Action": objects, "Resource": f"arn:aws:s3:::{bucket}/*"},
        ]
    }


def autoscaler_policy(account: str) -> dict[str, Any]:
    """The rights of Ray's autoscaler on the head: start workers, tag them, terminate those of this cluster."""
    ours = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": "dmray"}}
    return {
        "Statement": [
            {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"], "Resource": "*"},
            {"Effect": "Allow", "Action": ["ec2:TerminateInstances"], "Resource": "*", "Condition": ours},
            {"Effect": "Allow", "Action": ["iam:PassRole"], "Resource": f"arn:aws:iam::{account}:role/dmray-worker"},
        ]
    }


def _ignoring(error_code: str, create: Any, **arguments: Any) -> None:
    try:
        create(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != error_code:
            raise


if __name__ == "__main__":
    main()
