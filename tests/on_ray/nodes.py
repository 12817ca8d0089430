"""A Ray cluster of three raylets on this machine, with logical GPUs, for tests; a process of its own.

Prints the cluster's address. A line on standard input takes a GPU node away without notice; its end ends the cluster.
"""

from __future__ import annotations

import os
import sys

from ray.cluster_utils import Cluster

from dmray.on_ray.cluster import ENVIRONMENT
from dmray.on_ray.placement import DRIVER_RESOURCE
from tests.mlflow_mirror.mlflow_server import free_port


def main() -> None:
    os.environ |= ENVIRONMENT | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    head = {"num_cpus": 2, "num_gpus": 0, "resources": {DRIVER_RESOURCE: 10}, "include_dashboard": False}
    head |= {"dashboard_port": free_port()}  # of its API server; another Ray of this machine may have the usual one
    cluster = Cluster(initialize_head=True, head_node_args=head)
    gpu_nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(gpu_nodes.pop(), allow_graceful=False)
        print("gone", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
