"""What a run on a Ray cluster comes to when a node is killed in the middle: the bytes of a run in one process?

python examples/benchmarks/ray_cluster.py WORK [--nodes 3] [--fetch] [-- OPTIONS OF fit]

For Linux alone.

Trains a run in WORK, a new or empty folder, by the command line: by default the generated data set with the quick
recipe. Then it starts a Ray cluster on this machine, a head without cores and some nodes of one core each, trains the
same run on it, and kills a node that trains, with all its workers (SIGKILL), once a fold has saved a state. Every file
is compared by its hash; but for environment.json and times.csv, which say when and how long, and config.yaml, which
says where. --fetch has the workers train in folders of their own, as if no disk was shared.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# so that all add up in the same order, and the nodes do not give way to other work
os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

from ray.cluster_utils import Cluster

NEVER_THE_SAME = ("environment.json", "times.csv", "config.yaml")
DEFAULT = ["--data", "sample", "--recipe", "quick", "--no-pretrained", "--save-every", "10"]
TASK = "ray::_task"


def fit(out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-m", "fastmask", "fit", *options, "--out", str(out), "--no-report"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"fit failed: {said}")
    return said


def hashes(run: Path) -> dict[str, str]:
    """The SHA-256 of each file of a run that is the same wherever it is trained."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name not in NEVER_THE_SAME]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def children(process: int) -> dict[int, str]:
    """The processes that a process has started, and what they are called."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            called = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            # it has ended
            continue
        if parent == process:
            found[int(folder.name)] = called
    return found


def kill_a_node(cluster: Cluster, run: Path, fold: "subprocess.Popen[str]") -> str:
    """Kill a node that trains, with all its workers, once there is a state; says which, or that it was too late."""
    while fold.poll() is None:
        if any(run.glob("fold*/state.safetensors")):
            for node in cluster.worker_nodes:
                raylet = node.all_processes["raylet"][0].process.pid
                workers = children(raylet)
                if any(called.startswith(TASK) for called in workers.values()):
                    for worker in workers:
                        os.kill(worker, signal.SIGKILL)
                    cluster.remove_node(node, allow_graceful=False)
                    return f"killed raylet {raylet} and its {len(workers)} processes"
        time.sleep(0.05)
    return "killed nothing: the run was faster"


def main() -> int:
    arguments = sys.argv[1:]
    ours, theirs = (arguments, [])
    if "--" in arguments:
        ours, theirs = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a new or empty folder")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of one core each")
    parser.add_argument("--fetch", action="store_true", help="as if no disk was shared")
    given = parser.parse_args(ours)
    options = theirs or DEFAULT
    start = time.monotonic()
    ended(fit(given.work / "local", *options))
    local = time.monotonic() - start
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(given.nodes):
            cluster.add_node(num_cpus=1)
        start = time.monotonic()
        fetch = ["--fetch"] if given.fetch else []
        process = fit(given.work / "ray", *options, "--launcher", "ray", "--address", cluster.address, *fetch)
        killed = kill_a_node(cluster, given.work / "ray", process)
        said = ended(process)
    finally:
        cluster.shutdown()
    far = time.monotonic() - start
    print(said)
    one, other = hashes(given.work / "local"), hashes(given.work / "ray")
    same = [name for name in one if one[name] == other.get(name)]
    for name in sorted(one.keys() | other.keys()):
        print(f"{'same' if name in same else 'DIFFERS'}  {one.get(name, 'not there')[:16]}  {name}")
    whole = len(same) == len(one) == len(other)
    print(f"{killed}; lost folds that continued on another node: {said.count('it continues on another node')}")
    print(f"local {local:.0f} s, Ray {far:.0f} s; identical {len(same)} / {len(one.keys() | other.keys())} files")
    return 0 if whole and "killed raylet" in killed else 1


if __name__ == "__main__":
    sys.exit(main())
