"""Sweeps in an object store: trials work on local folders, which are copied to and from the store.

Importing this package does not import fsspec; opening a store does.
"""

from dmray.storage.data_store import StoredFile, entry_of_file, stored_file
from dmray.storage.place import Role, existing_sweep_store, is_url, object_name, open_store, split_url, sweep_folder
from dmray.storage.publisher import Publisher
from dmray.storage.read_only_view import ReadOnlyView
from dmray.storage.store import Store
from dmray.storage.sweep_copy import SweepCopy, fetch_from_store
from dmray.storage.trial_copy import clear_trial, download_trial

__all__ = [
    "Publisher",
    "ReadOnlyView",
    "Role",
    "Store",
    "StoredFile",
    "SweepCopy",
    "clear_trial",
    "download_trial",
    "entry_of_file",
    "existing_sweep_store",
    "fetch_from_store",
    "is_url",
    "object_name",
    "open_store",
    "split_url",
    "stored_file",
    "sweep_folder",
]
