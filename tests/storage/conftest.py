from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.mlflow_mirror.mlflow_server import free_port


@dataclass
class S3:
    """A mocked S3 with one bucket; it can be gone for a while without forgetting."""

    port: int

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def make_bucket(self) -> None:
        """Make the bucket, which other tests of this process may have removed with all of the mocked AWS."""
        import s3fs

        s3fs.S3FileSystem().makedirs("sweeps", exist_ok=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    import s3fs

    port = free_port()
    server = S3(port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()  # of other tests' servers
        yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3_url(s3: S3) -> str:
    """A storage of its own in the mocked S3."""
    s3.make_bucket()
    return f"s3://sweeps/{uuid4().hex[:8]}"


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of its own in each kind of store."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return f"memory://{uuid4().hex[:8]}/runs" if request.param == "memory" else f"file://{tmp_path}/store"


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Working folders that nothing was ever in."""
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "another"))
