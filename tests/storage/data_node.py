"""A node of a cluster for tests: two workers at once open data sets, given as JSON, and draw batches from them.

Each prints one line of JSON: how many times it fetched, and by data set the fingerprint and a digest of the batches.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from pathlib import Path

import torch

from dmray.datasets import WindowSampler
from dmray.fields import Field, Token
from dmray.sources import open_dataset
from dmray.specs import DatasetSpec
from dmray.storage import data_store
from dmray.tasks import task_of


def work(datasets: list[DatasetSpec], barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    fetched, fetch = [], data_store.fetch_pinned
    data_store.fetch_pinned = lambda address, *rest: (fetched.append(address), fetch(address, *rest))  # type: ignore
    seen = {}
    for dataset in datasets:
        episodes = open_dataset(dataset, task_of(dataset), Path("no recordings")).episodes
        sampler = WindowSampler(episodes, [Token(Field.STATE), Token(Field.ACTION)], context_length=4, batch_size=8)
        generator, digest = torch.Generator().manual_seed(3), hashlib.sha256()
        for _ in range(5):
            for tensor in sampler.sample(generator).tokens.values():
                digest.update(tensor.numpy().tobytes())
        seen[dataset.name] = [episodes.fingerprint, digest.hexdigest()]
    print(json.dumps({"fetched": fetched, "seen": seen}), flush=True)


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    given = [DatasetSpec.model_validate(each) for each in json.loads(sys.argv[1])]
    both = context.Barrier(2, timeout=60)
    workers = [context.Process(target=work, args=(given, both)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    sys.exit(max(1 if worker.exitcode is None else abs(worker.exitcode) for worker in workers))
