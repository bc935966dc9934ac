"""Hosts made of Linux namespaces: each has its own network, processes, name and changes to files, and an ssh server.

All of them, and the bridge that joins them, live inside namespaces of the process that makes them (see `isolated`):
when that ends, however it ends, the kernel takes everything down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "unshare", "setpriv", "mount", "hostname", "sshd", "ssh", "ssh-keygen", "rsync")
SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Servers and administrators' tools lie where not every PATH looks."""

SCRATCH = Path("/mnt")
"""Covered by memory within the namespaces: whatever is written there, and to `PRIVATE`, is gone afterwards."""
PRIVATE = ("/root", "/tmp", "/etc", "/run")
PATIENCE_SECONDS = 30.0

NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork"),
    *("--kill-child", "--mount-proc", "--propagation=private"),
)
"""With the end of whoever calls this, and with the end of the first process in them, all is ended."""

BOOT = """
set -e
private() {
    mkdir -p "$FILES$1/changes" "$FILES$1/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$FILES$1/changes,workdir=$FILES$1/work" "$1"
}
for folder in $FOLDERS; do private "$folder"; done
mount -t tmpfs tmpfs /dev/shm
hostname "$NAME"
printf '127.0.0.1 localhost\\n%s %s\\n' "$ADDRESS" "$NAME" > /etc/hosts
ip link set lo up
mkdir -p /run/sshd
touch "$FILES/booted"
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
exec "$SSHD" -D -e -f /dev/null -h "$KEYS/host" -o PidFile=none -o UsePAM=no -o StrictModes=no \
    -o PermitRootLogin=prohibit-password -o AuthorizedKeysFile="$KEYS/user.pub" -o MaxStartups=100 2> "$FILES/sshd.log"
"""
"""A host's first process: private files, a name, a network card, and then the ssh server itself."""


def missing() -> str:
    """Why no hosts can be made here, "" if they can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=SEARCHED) is None]
    if not sys.platform.startswith("linux"):
        return f"hosts are made of Linux namespaces, got {sys.platform}; run this on Linux"
    if os.geteuid() != 0:
        return "only root may make namespaces and network cards, got another user; run this as root"
    if lacking:
        return (
            f"hosts need some tools of the system, got no {', no '.join(lacking)}; "
            "install openssh-server, rsync, iproute2 and util-linux"
        )
    return ""


def isolated(command: Sequence[str]) -> list[str]:
    """The command in namespaces of its own, as their first process: with its end all ends that it started there."""
    return [*NAMESPACES, *command]


def make_private(folders: Sequence[str] = PRIVATE) -> None:
    """Within `isolated`: let memory cover SCRATCH, and take every change to some folders."""
    run("mount", "-t", "tmpfs", "tmpfs", str(SCRATCH))
    for folder in folders:
        files = SCRATCH / "laptop" / folder.strip("/")
        changes, work = files / "changes", files / "work"
        for path in (changes, work):
            path.mkdir(parents=True)
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={folder},upperdir={changes},workdir={work}", folder)


def run(*command: str) -> str:
    """What a command of the system prints. Raises CalledProcessError where it fails."""
    return subprocess.run(
        command, check=True, text=True, capture_output=True, env={**os.environ, "PATH": SEARCHED}
    ).stdout


class Network:
    """A bridge with an address of its own, to which hosts are joined; and the keys of all."""

    prefix = "10.77.0."

    def __init__(self) -> None:
        self.keys = SCRATCH / "keys"
        self.gateway = f"{self.prefix}1"
        self.keys.mkdir()
        for name in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.keys / name))
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "hosts", "type", "bridge")
        run("ip", "address", "add", f"{self.gateway}/24", "dev", "hosts")
        run("ip", "link", "set", "hosts", "up")

    def host(self, name: str, number: int) -> Host:
        """A running host whose ssh server answers."""
        address, files = f"{self.prefix}{number}", SCRATCH / name
        files.mkdir()
        environment = {
            **{"PATH": SEARCHED, "NAME": name, "ADDRESS": address, "GATEWAY": self.gateway},
            **{"FILES": str(files), "KEYS": str(self.keys), "FOLDERS": " ".join(PRIVATE)},
            "SSHD": str(shutil.which("sshd", path=SEARCHED)),
        }
        process = subprocess.Popen(isolated(["bash", "-c", BOOT]), env=environment, stdin=subprocess.DEVNULL)
        wait_for((files / "booted").exists, f"{name} to boot")
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        run("ip", "link", "set", name, "master", "hosts", "up")
        host = Host(name=name, address=address, process=process)
        wait_for(lambda: answers(address, self.keys / "user"), f"the ssh server of {name}")
        return host


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine as far as Ray can tell."""

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def processes(self) -> list[str]:
        """Command lines of all processes of this host but its ssh server's."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                mine = os.readlink(folder / "ns" / "net") == os.readlink(f"/proc/{self.process.pid}/ns/net")
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue  # ended between two looks
            if mine and line and "sshd" not in line and not line.startswith("unshare"):
                found.append(line)
        return found

    def power_off(self) -> None:
        """As when the plug is pulled: every process ends at once, nothing is said on the network."""
        self.process.kill()
        self.process.wait()


def answers(address: str, key: Path) -> bool:
    return tell(address, key, "true") == 0


def tell(address: str, key: Path, command: str) -> int:
    """The exit code of a command that a host's shell runs, 255 where no host answers."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=2")
    flags = [part for option in options for part in ("-o", option)]
    return subprocess.run(["ssh", *flags, "-i", str(key), address, command], capture_output=True).returncode


def wait_for(happened: Callable[[], bool], what: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Raises TimeoutError if it does not happen."""
    give_up = time.monotonic() + patience_seconds
    while not happened():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {patience_seconds:g} seconds for {what}")
        time.sleep(0.2)
