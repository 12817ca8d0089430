from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from cluster import prepare_aws
from tests.mlflow_mirror.mlflow_server import free_port

REPOSITORY = Path(__file__).parents[2]
REGION = "us-west-2"
ACCOUNT = "123456789012"  # the mock's


@dataclass(frozen=True)
class MockedAws:
    """A mocked AWS at `endpoint`, and the environment in which boto3, s3fs and `ray` use it."""

    endpoint: str
    environment: dict[str, str]

    def set_parameter(self, name: str, value: str) -> None:
        """Set a public parameter of AWS's, which an account cannot do itself. (The server runs in this process.)"""
        from moto.ssm.models import Parameter, ssm_backends

        parameter = Parameter(ACCOUNT, name, value, "String", None, None, None, datetime.now(UTC), 1, "text")
        ssm_backends[ACCOUNT][REGION]._parameters[name] = [parameter]


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def mocked_aws(_moto: str) -> Iterator[MockedAws]:
    """An empty account, for one module's tests."""
    environment = {
        "AWS_ENDPOINT_URL": _moto,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    urlopen(Request(f"{_moto}/moto-api/reset", method="POST")).close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        aws = MockedAws(_moto, environment)
        for name, image in (("cpu_image", "ami-0000000000000c0de"), ("gpu_image", "ami-0000000000000900d")):
            aws.set_parameter(prepare_aws.IMAGES[name], image)
        yield aws
