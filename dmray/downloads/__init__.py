"""Downloads: mirrors, resume, retries, and checksums that are pinned at the first download."""

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
