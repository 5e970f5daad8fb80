"""A Ray cluster of several nodes in this machine, in a process of its own: ``python cluster.py NODES``.

Its head computes nothing; each node has one processor. It prints the address, and ends the node whose number comes in.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Serve until nothing more comes in."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(wait=False, num_cpus=1) for _ in range(int(sys.argv[1]))]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        (node,) = [node for node in nodes if node.node_id == line.strip()]
        cluster.remove_node(node, allow_graceful=False)
        print("ended", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
