"""A cluster's whole life on one machine: up, a study as a job, a node lost in the middle of it, down, and no trace.

    sudo .venv/bin/python clusters/rehearse.py

Hosts are Linux namespaces (clusters/hosts.py); the file is clusters/ssh.yaml with the names of these hosts, and without
the installation, since all hosts share this machine's environment. Everything else is what a cluster of machines does:
ssh and rsync, Ray's autoscaler, token, job server, Train over the network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clusters.hosts import SCRATCH, SEARCHED, Host, Network, isolated, make_private, missing, tell, wait_for

PROJECT = Path(__file__).resolve().parents[1]
FILE = SCRATCH / "cluster.yaml"
RESULTS = SCRATCH / "shared" / "results"
WORKERS = ("worker-1", "worker-2", "worker-3")
"""One more than the study uses, to stand in for the one that is lost."""
STUDY = (
    *("studies/budget_split.py", "--target", "gmm4", "--workers", "2", "--output", str(RESULTS)),
    *("--hidden", "8", "--layers", "2", "--train-samples", "128", "--evaluation-samples", "32"),
    *("--fm-batch", "32", "--pg-batch", "16", "--solver-steps", "2", "--checkpoint-seconds", "0.5"),
    *("--budget", "3e6flop", "--budgets", "2", "--splits", "2", "--seeds", "1"),
)
LOST_AFTER_SEGMENTS = 1
NODE_SECONDS = 600.0
STUDY_SECONDS = 900.0
ONE_CORE = "--num-cpus=1 --object-store-memory=100000000"
NOT_LAST = "RAY_worker_niceness=0"
"""Many hosts share few cores here, and Ray's workers would come after everything else on them."""
NO_CORE = "--num-cpus=0 --object-store-memory=100000000"


@dataclass
class Diary:
    """Says each step, with the seconds since the beginning."""

    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)


# the laptop's side


def cluster_file(head: Host, workers: list[Host], key: Path) -> dict[str, Any]:
    """clusters/ssh.yaml for these hosts: a worker has one core, the head none, so that two workers are two nodes."""
    value: dict[str, Any] = yaml.safe_load((PROJECT / "clusters" / "ssh.yaml").read_text())
    value["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    value["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    link = f"ln -sfn {shlex.quote(sys.prefix)} ~/boltzmann-budget/.venv"
    value["setup_commands"] = [link, value["setup_commands"][-1]]
    for commands, cores in (("head_start_ray_commands", NO_CORE), ("worker_start_ray_commands", ONE_CORE)):
        value[commands][-1] = value[commands][-1].replace("ray start", f"{NOT_LAST} ray start {cores}")
    return value


def environment() -> dict[str, str]:
    """Of a user who sets up a cluster: Ray's command is found, and no cluster is known yet."""
    path = f"{Path(sys.prefix) / 'bin'}:{SEARCHED}"
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**known, "PATH": path, "RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def ray(*command: str, patience_seconds: float = 300.0) -> str:
    """What a command of Ray prints; its last lines are shown where it fails."""
    done = subprocess.run(
        ["ray", *command],
        env=environment(),
        cwd=PROJECT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=patience_seconds,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise RuntimeError(f"ray {' '.join(command)} must succeed, got exit code {done.returncode}:\n{tail}")
    return done.stdout


def on_head(command: str) -> str:
    return ray("exec", str(FILE), command)


def nodes() -> set[str]:
    """Addresses of the nodes that Ray holds for alive."""
    script = "import ray; ray.init('auto', logging_level='ERROR'); "
    script += "print('ALIVE', *[node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']])"
    lines = on_head(f"python -c {shlex.quote(script)}").splitlines()
    return {address for line in lines if line.startswith("ALIVE") for address in line.split()[1:]}


def runs_ray(host: Host) -> bool:
    return any("raylet/raylet" in line for line in host.processes())


# the study's files, which all hosts share


def groups() -> list[list[str]]:
    """Hosts of each group of workers that introduced itself, in order of rank."""
    files = list(RESULTS.glob("budget_split/*/workers.json"))
    known = json.loads(files[0].read_text()) if files else []
    return [[text.split()[0] for key, text in sorted(one.items()) if key.startswith("rank_")] for one in known]


def study_lines(text: str) -> str:
    """What a job's log says without the lines of Ray's command line, which name their place in its source."""
    return "\n".join(line for line in text.splitlines() if not re.search(r"\.py:\d+ -- ", line))


def segments() -> int:
    return len(list(RESULTS.glob("store/segments/*.json")))


def wait_for_study(happened: Callable[[], bool], what: str, job: subprocess.Popen[str]) -> None:
    def happened_or_ended() -> bool:
        if job.poll() is not None and not happened():
            raise RuntimeError(f"the study must still run at {what}, but it ended with {job.returncode}")
        return happened()

    wait_for(happened_or_ended, what, STUDY_SECONDS)


def lose_a_node(diary: Diary, hosts: dict[str, Host], job: subprocess.Popen[str]) -> str:
    """Pull the plug of a node that is training; its name."""
    wait_for_study(lambda: len(groups()) > 0 and segments() >= LOST_AFTER_SEGMENTS, "the training", job)
    at_work = groups()[-1]
    victim = hosts[at_work[-1]]
    diary.say(f"training on {' and '.join(at_work)}, {segments()} segments done: pulling the plug of {victim.name}")
    known = len(groups())
    victim.power_off()
    wait_for_study(lambda: len(groups()) > known, "a new group of workers", job)
    diary.say(f"the study goes on, on {' and '.join(groups()[-1])}")
    assert victim.name not in groups()[-1]
    assert len(set(groups()[-1])) == 2, "each worker must be on a node of its own"
    return victim.name


def rehearse(diary: Diary) -> None:
    """From nothing to a finished study and back. Raises where something does not come as it must."""
    make_private()
    network = Network()
    hosts = {name: network.host(name, 10 + number) for number, name in enumerate(("head", *WORKERS))}
    diary.say(f"hosts that answer over ssh: {', '.join(f'{h.name} {h.address}' for h in hosts.values())}")
    key = network.keys / "user"
    FILE.write_text(yaml.safe_dump(cluster_file(hosts["head"], [hosts[name] for name in WORKERS], key)))
    RESULTS.parent.mkdir()
    (Path.home() / ".ray" / "auth_token").unlink(missing_ok=True)
    ray("get-auth-token", "--generate")
    ray("up", "--yes", str(FILE))
    diary.say("ray up: the head runs, and asks for the token")
    everyone = {host.address for host in hosts.values()}
    wait_for(lambda: all(map(runs_ray, hosts.values())), "Ray on every host", NODE_SECONDS)
    wait_for(lambda: nodes() == everyone, "all nodes to join", NODE_SECONDS)
    diary.say(f"{len(everyone)} nodes have joined: the head started Ray on {', '.join(WORKERS)} over ssh")
    submit = f"boltzmann-budget/clusters/submit {' '.join(STUDY)}"
    log = (SCRATCH / "study.log").open("w+")
    job = subprocess.Popen(
        ["ray", "exec", str(FILE), submit],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )
    diary.say(f"submitted as a job: {' '.join(STUDY[:5])} ...")
    try:
        victim = lose_a_node(diary, hosts, job)
        code = job.wait(STUDY_SECONDS)
    finally:
        print(study_lines(Path(log.name).read_text()), flush=True)
    assert code == 0, f"the study must finish, got exit code {code}"
    answer = list(RESULTS.glob("budget_split/*/answer.json"))
    assert len(answer) == 1, "a finished study must have its answer"
    diary.say(f"the study has finished: {segments()} segments, groups of workers {groups()}")
    take_down(diary, [host for host in hosts.values() if host.name != victim], key)


def take_down(diary: Diary, hosts: list[Host], key: Path) -> None:
    """`ray down` stops the head of machines of one's own; workers are told to stop one by one."""
    ray("down", "--yes", str(FILE))
    diary.say("ray down: the head has stopped")
    for host in hosts[1:]:
        tell(host.address, key, "bash --login -i -c 'ray stop'")
    wait_for(lambda: not any(map(ray_processes, hosts)), f"the end of {leftovers(hosts)}", NODE_SECONDS)
    diary.say("ray stop on each worker: no process of Ray is left on any host")


def ray_processes(host: Host) -> list[str]:
    return [line for line in host.processes() if "ray" in line]


def leftovers(hosts: list[Host]) -> str:
    return ", ".join(f"{len(ray_processes(host))} processes on {host.name}" for host in hosts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().inside:
        rehearse(Diary())
        return 0
    reason = unready()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    command = isolated([sys.executable, __file__, "--inside"])
    try:
        return subprocess.run(command, env=environment(), start_new_session=True).returncode
    except KeyboardInterrupt:
        print("stopped; all hosts are gone", file=sys.stderr)
        return 130


def unready() -> str:
    """Why this cannot run here, "" if it can."""
    if importlib.util.find_spec("opencensus") is None:
        return (
            "a cluster needs Ray with its job server, got an environment without it; "
            "write pip install -c constraints.txt -e '.[cluster]'"
        )
    return missing()


if __name__ == "__main__":
    raise SystemExit(main())
