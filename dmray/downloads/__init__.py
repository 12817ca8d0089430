"""Files from elsewhere, whole or not at all: mirrors, resume, retries, checksums that are pinned when first seen."""

from dmray.downloads.fetching import FetchSettings, RemoteFile, fetch
from dmray.downloads.manifest import MANIFEST_NAME, Manifest, ManifestEntry, Verification, verify
from dmray.downloads.progress import Progress, progress_bar, silent

__all__ = [
    "MANIFEST_NAME",
    "FetchSettings",
    "Manifest",
    "ManifestEntry",
    "Progress",
    "RemoteFile",
    "Verification",
    "fetch",
    "progress_bar",
    "silent",
    "verify",
]
