"""Downloads: mirrors, resume, retries, and checksums that are pinned at the first download."""

from dmray.downloads.fetching import FetchSettings, RemoteFile, fetch, fetch_pinned, forbidden
from dmray.downloads.manifest import (
    MANIFEST_NAME,
    Manifest,
    ManifestEntry,
    Verification,
    entries_in,
    entry_in,
    now,
    sha256_of,
    verify,
)
from dmray.downloads.progress import Progress, progress_bar, silent
from dmray.downloads.remote import InterruptedDownloadError

__all__ = [
    "MANIFEST_NAME",
    "FetchSettings",
    "InterruptedDownloadError",
    "Manifest",
    "ManifestEntry",
    "Progress",
    "RemoteFile",
    "Verification",
    "entries_in",
    "entry_in",
    "fetch",
    "fetch_pinned",
    "forbidden",
    "now",
    "progress_bar",
    "sha256_of",
    "silent",
    "verify",
]
