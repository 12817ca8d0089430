"""Sweeps whose storage is an object store: files are worked on here and kept there. Light: fsspec loads when opened."""

from dmray.storage.place import Role, begun_sweep, is_url, object_name, split_url, store_of, sweep_folder
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
    "SweepCopy",
    "begun_sweep",
    "clear_trial",
    "download_trial",
    "fetch_from_store",
    "is_url",
    "object_name",
    "split_url",
    "store_of",
    "sweep_folder",
]
