"""Create what cluster/gpu.yaml needs in an AWS account, and write it into that file.

    python cluster/prepare_aws.py --bucket BUCKET --region us-west-2 --ssh-cidr 203.0.113.7/32

Creates a private bucket, a security group and instance profiles, looks up the machine images, and fills in `metadata`
of cluster/gpu.yaml. It can be run again: what exists is kept, images included, and the address is added to those that
may use SSH. The security group is created here because a group that Ray creates opens SSH to the whole internet,
whatever the cluster file says.

Tested by tests/cluster against a mocked AWS, together with `ray up`. Not tested: real AWS.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

GROUP = "dmray"
FILE = Path(__file__).with_name("gpu.yaml")
PLACEHOLDER = "CHANGE-ME"
IMAGES = {  # public SSM parameters with the newest image of each kind
    "cpu_image": "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    "gpu_image": "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
}
FILLED_IN = (*IMAGES, "region", "security_groups", "store", "mount")
QUOTAS = {  # (the family of an instance type, on spot) -> the quota that counts its vCPUs
    ("g", True): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("g", False): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("standard", True): ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"),
    ("standard", False): ("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances"),
}
_STANDARD = ("a", "c", "d", "h", "i", "m", "r", "t", "z")  # the letters of instance types that the quota counts
_EC2_MAY_USE = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}
_EFS_DEADLINE_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, help="its name; no other bucket of AWS may have it")
    parser.add_argument("--region", required=True)
    parser.add_argument("--ssh-cidr", required=True, type=ipaddress.ip_network, help="addresses that may use SSH")
    parser.add_argument("--efs", action="store_true", help="also create a shared file system, and mount it")
    parser.add_argument(
        "--new-images", action="store_true", help="look the images up again; `ray up` then replaces machines"
    )
    parser.add_argument("--file", type=Path, default=FILE, help="the cluster file; default: cluster/gpu.yaml")
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8")
    given = values_in(text)
    session = boto3.Session(region_name=options.region)
    try:
        values = prepare(session, options.bucket, str(options.ssh_cidr), options.efs)
        kept = {} if options.new_images else kept_images(given, options.region)
        filled = fill_in(text, values | find_images(session, kept))
        if filled != text:
            options.file.write_text(filled, encoding="utf-8")
        print(f"{options.file}: {'filled in' if filled != text else 'is filled in already'}")
        quotas = missing_quotas(session, yaml.safe_load(filled))
        print(*quotas, sep="\n", end="\n" if quotas else "")
    except (BotoCoreError, ClientError) as refused:
        sys.exit(f"error: {explained(refused, options.bucket)}")
    print(f"next: {'settle the quotas, then ' if quotas else ''}ray up {options.file}")


def explained(refused: Exception, bucket: str) -> str:
    """What AWS answered in one line, with what to do about it where that is known."""
    code = refused.response["Error"]["Code"] if isinstance(refused, ClientError) else type(refused).__name__
    cures = {
        "NoCredentialsError": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "InvalidClientTokenId": "the access key is not valid: run `aws configure` again",
        "BucketAlreadyExists": f"the bucket '{bucket}' belongs to somebody else: choose another --bucket",
        "ParameterNotFound": "this --region has no such machine image: choose another region",
        **dict.fromkeys(("AccessDenied", "UnauthorizedOperation"), "use the keys of a user with AdministratorAccess"),
    }
    cure = f"; {cures[code]}" if code in cures else ""
    return f"{' '.join(str(refused).split())}{cure}"


def prepare(session: boto3.Session, bucket: str, ssh_cidr: str, efs: bool = False) -> dict[str, str]:
    """Create everything. Returns the values of `metadata` in cluster/gpu.yaml, apart from the images, as YAML."""
    region = session.region_name
    make_bucket(session.client("s3"), bucket, region)
    group = make_security_group(session.client("ec2"), ssh_cidr)
    iam = session.client("iam")
    account = session.client("sts").get_caller_identity()["Account"]
    make_profile(iam, "dmray-worker", [store_policy(bucket)])
    make_profile(iam, "dmray-head", [store_policy(bucket), autoscaler_policy(account)])
    make_spot_role(iam)
    host = f"{make_file_system(session, group)}.efs.{region}.amazonaws.com" if efs else None
    return {
        "region": region,
        "security_groups": f"[{group}]",
        "store": f"echo 'export DMRAY_STORE=s3://{bucket}/dmray AWS_DEFAULT_REGION={region}' > ~/dmray.env",
        "mount": mount_command(host) if host else '"true"',
    }


def mount_command(host: str) -> str:
    """The command that mounts an NFS file system at /mnt/dmray, unless it is mounted there."""
    options = "nfsvers=4.1,hard,timeo=600,retrans=2,noresvport"
    return (
        "mountpoint -q /mnt/dmray || (sudo apt-get install -y nfs-common && sudo mkdir -p /mnt/dmray"
        f" && sudo mount -t nfs4 -o {options} {host}:/ /mnt/dmray && sudo chown ubuntu /mnt/dmray)"
    )


def values_in(text: str) -> dict[str, str]:
    """The values of `metadata` in the cluster file that this program fills in.

    Raises:
        SystemExit: the file has no such line, or several.
    """
    found = {name: _line_of(name).findall(text) for name in FILLED_IN}
    for name, lines in found.items():
        if len(lines) != 1:
            sys.exit(f"error: the cluster file has {len(lines)} lines `  {name}: &{name} ...`; restore it from git")
    return {name: lines[0][1] for name, lines in found.items()}


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """The cluster file with `values` as those of its `metadata`. All other text, comments included, stays as it is."""
    for name, value in values.items():
        text = _line_of(name).sub(lambda match, value=value: f"{match[1]} {value}{match[3]}", text)  # type: ignore[misc]
    return text


def _line_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?m)^(  {name}: &{name}) (.*?)((?:  #.*)?)$")


def kept_images(given: Mapping[str, str], region: str) -> dict[str, str]:
    """The images that the file has already for this region. Ray would replace machines if their image changed."""
    return {name: given[name] for name in IMAGES if given["region"] == region and PLACEHOLDER not in given[name]}


def find_images(session: boto3.Session, kept: Mapping[str, str]) -> dict[str, str]:
    """The newest machine image of each kind that is not in `kept`, by AWS's public parameters."""
    ssm = session.client("ssm")
    return {
        name: kept.get(name) or ssm.get_parameter(Name=parameter)["Parameter"]["Value"]
        for name, parameter in IMAGES.items()
    }


def needed_vcpus(config: Mapping[str, Any], vcpus: Mapping[str, int]) -> dict[tuple[str, bool], int]:
    """vCPUs that the machines of a cluster file need of each quota in `QUOTAS`. `vcpus`: by instance type."""
    needed: dict[tuple[str, bool], int] = {}
    for name, node_type in config["available_node_types"].items():
        instance = node_type["node_config"]["InstanceType"]
        count = 1 if name == config["head_node_type"] else node_type["min_workers"]
        letters = re.split(r"\d", instance)[0]
        family = {"g": "g", "vt": "g"}.get(letters, "standard" if letters in _STANDARD else instance)
        quota = (family, "InstanceMarketOptions" in node_type["node_config"])
        needed[quota] = needed.get(quota, 0) + count * vcpus[instance]
    return needed


def missing_quotas(session: boto3.Session, config: Mapping[str, Any]) -> list[str]:
    """A line for each quota that is too small for the machines of a cluster file, or that cannot be read."""
    types = sorted({each["node_config"]["InstanceType"] for each in config["available_node_types"].values()})
    answer = session.client("ec2").describe_instance_types(InstanceTypes=types)
    vcpus = {each["InstanceType"]: each["VCpuInfo"]["DefaultVCpus"] for each in answer["InstanceTypes"]}
    quotas = session.client("service-quotas")
    lines = []
    for quota, needed in needed_vcpus(config, vcpus).items():
        if quota not in QUOTAS:
            lines.append(
                f"quota of {quota[0]}: not known here; look it up in Service Quotas, EC2: {needed} vCPUs are needed"
            )
            continue
        code, title = QUOTAS[quota]
        try:
            has = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except (BotoCoreError, ClientError) as refused:
            lines.append(
                f"quota '{title}': cannot be read ({' '.join(str(refused).split())}); {needed} vCPUs are needed"
            )
            continue
        if has < needed:
            lines.append(
                f"quota '{title}': {has:g} vCPUs, but {needed} are needed; ask for more, and wait for the answer: "
                f"aws service-quotas request-service-quota-increase --region {session.region_name} --service-code ec2 "
                f"--quota-code {code} --desired-value {needed}"
            )
    return lines


def make_bucket(s3: Any, bucket: str, region: str) -> None:
    """Create a private bucket in `region`."""
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    _ignoring("BucketAlreadyOwnedByYou", s3.create_bucket, Bucket=bucket, **where)
    blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True))


def default_vpc(ec2: Any) -> str:
    """The id of the account's default network in the region; it is created if it was deleted."""
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    vpc: str = (found[0] if found else ec2.create_default_vpc()["Vpc"])["VpcId"]
    return vpc


def make_security_group(ec2: Any, ssh_cidr: str) -> str:
    """Create a group in the default VPC that allows SSH from `ssh_cidr` and all traffic among its members.

    Returns its id.
    """
    vpc = default_vpc(ec2)
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


def make_file_system(session: boto3.Session, group: str) -> str:
    """Create an encrypted EFS that the machines of the security group `group` can mount in each zone. Returns its id.

    Raises:
        SystemExit: it is not ready after two minutes.
    """
    ec2, efs = session.client("ec2"), session.client("efs")
    found = efs.describe_file_systems(CreationToken=GROUP)["FileSystems"]
    system = found[0] if found else efs.create_file_system(CreationToken=GROUP, Encrypted=True)
    name: str = system["FileSystemId"]
    deadline = time.monotonic() + _EFS_DEADLINE_S
    while efs.describe_file_systems(FileSystemId=name)["FileSystems"][0]["LifeCycleState"] != "available":
        if time.monotonic() > deadline:
            sys.exit(f"error: the file system {name} is not ready after {_EFS_DEADLINE_S:g} s; run the command again")
        time.sleep(2.0)
    there = {target["SubnetId"] for target in efs.describe_mount_targets(FileSystemId=name)["MountTargets"]}
    for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [default_vpc(ec2)]}])["Subnets"]:
        if subnet["SubnetId"] not in there:
            efs.create_mount_target(FileSystemId=name, SubnetId=subnet["SubnetId"], SecurityGroups=[group])
    return name


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
