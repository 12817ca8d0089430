"""Write the digests of the images that docker/ names into its files: `name:tag` becomes `name:tag@sha256:...`.

    make images-pin        # or: python docker/pin_images.py; needs docker (buildx) or crane, and network

A tag can be moved to another image, a digest cannot. Images that have a digest get that of today; git shows what has
changed. Our own images (dmray:...) are built here and have none.

Tested by tests/cluster with a docker of its own. Not tested: a real registry.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FILES = ("Dockerfile", "Dockerfile.gpu", "compose.yaml")
_IMAGE = re.compile(
    r"(?m)^(?P<begin>FROM |COPY --from=|\s*image: )"
    r"(?P<name>[\w.-]+(?:/[\w.-]+)*:[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def named(text: str) -> dict[str, str | None]:
    """The images that a file names, except our own, and their digests."""
    found = {image["name"]: image["digest"] for image in _IMAGE.finditer(text)}
    return {name: digest and digest[1:] for name, digest in found.items() if not name.startswith("dmray")}


def pinned(text: str, digest_of: Callable[[str], str]) -> str:
    """`text` with the digest of each image that it names, except our own."""

    def pin(image: re.Match[str]) -> str:
        name = image["name"]
        return image[0] if name.startswith("dmray") else f"{image['begin']}{name}@{digest_of(name)}"

    return _IMAGE.sub(pin, text)


def ask_registry(name: str) -> str:
    """The digest of the image's index, which is for all architectures.

    Raises:
        SystemExit: there is no program that could ask, or the registry does not answer.
    """
    if shutil.which("crane"):
        command = ["crane", "digest", name]
    elif shutil.which("docker"):
        command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", name]
    else:
        raise SystemExit("no docker and no crane here: install one of them, or run this where there is one")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{name}: the registry does not answer within 120 s; try again later") from None
    digest = _DIGEST.fullmatch(done.stdout.strip())
    if done.returncode or digest is None:
        raise SystemExit(f"{name}: no digest: {(done.stderr or done.stdout).strip()[:300]}")
    return digest[0]


def main(folder: Path = Path(__file__).parent) -> int:
    files = {folder / name: (folder / name).read_text() for name in FILES}
    changed = {path: pinned(text, ask_registry) for path, text in files.items()}  # all or none
    for path, text in changed.items():
        path.write_text(text)
        for name, digest in named(text).items():
            print(f"{path.name}: {name}@{digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
