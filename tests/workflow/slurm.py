"""A real Slurm on this machine, of a configuration of its own, for the tests of `profiles/slurm`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import require

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

# Whatever another Slurm of this machine uses is left alone: key, socket, ports, folders and spool are the test's own.
# Jobs above their memory are killed, as cgroups do elsewhere. A requeued job waits as long as its credential lives.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
KillWait=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=1,sched_interval=5
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Slurm's daemons in a folder, and what the tests ask of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        # Within a job the executor takes SLURM_CONF away from srun.
        (folder / "bin" / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {require("srun")} "$@"\n')
        (folder / "bin" / "srun").chmod(0o755)
        (folder / "plugstack.conf").touch()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                host=self.host,
                controller=free_port(),
                daemon=free_port(),
                cpus=2
                * (
                    os.cpu_count() or 1
                ),  # that it believes to have, as with the memory: a job waits for files most of its life
                memory=2**20,  # MiB
            ),
            encoding="utf-8",
        )

    def start(self) -> None:
        """Start munged, slurmctld and slurmd, and wait for the node."""
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.ask("munged", *(f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()))
        self.ask("slurmctld")
        self.start_node()

    def start_node(self) -> None:
        """Start slurmd, and wait until jobs can run."""
        self.ask("slurmd")
        wait_for(lambda: self.ask("sinfo", "--noheader", "--format=%t") in ("idle", "mix", "alloc"), "the node")

    def lose_node(self) -> None:
        """Kill slurmd and every process of its jobs at once, as a power cut would, and tell the controller."""
        kill([process for process in self.processes() if process.name() == "slurmd" or of_job(process)])
        self.ask("scontrol", "update", f"nodename={self.host}", "state=down", "reason=test")

    def stop(self) -> None:
        """End every daemon and every process of a job."""
        kill(self.processes())

    def ask(self, *command: str) -> str:
        """Return what a command of Slurm's says."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def jobs(self, *states: str) -> list[str]:
        """List the jobs in the queue, or those that are or were in some states, in the order of their submission."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return sorted(self.ask("squeue", "--noheader", "--format=%A", *chosen).split(), key=int)

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self.of(job, "JobState")

    def of(self, job: str, key: str) -> str:
        """Return one of the many things that Slurm knows of a job."""
        known = dict(word.partition("=")[::2] for word in self.ask("scontrol", "show", "job", job).split())
        return known[key]

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in self.folder.glob("*.log"))

    def processes(self) -> list[psutil.Process]:
        """List the processes of the daemons and of their jobs, which all name this folder or stand in it."""
        mine = str(self.folder)
        found = []
        for process in psutil.process_iter():
            try:
                named = [*process.cmdline(), process.environ().get("SLURM_CONF", ""), process.cwd()]
                started = process.name().startswith(("munged", "slurm")) or of_job(process)
            except psutil.Error:  # gone, or of another user
                continue
            if started and any(mine in name for name in named):
                found.append(process)
        return found


def of_job(process: psutil.Process) -> bool:
    """Tell whether a process runs in a job or watches one."""
    try:
        return process.name() == "slurmstepd" or "SLURM_JOB_ID" in process.environ()
    except psutil.Error:
        return False


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def wait_for(met: Callable[[], object], what: str, *, seconds: float = 60) -> None:
    """Wait until a condition is met, or fail."""
    ends = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < ends, f"waited {seconds:.0f} s for {what} in vain"
        time.sleep(0.1)


def free_port() -> int:
    """Find a port of loopback that nobody uses."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def running_slurm() -> Iterator[Slurm]:
    """Run Slurm until the block ends, however it ends; skip where it cannot run."""
    for tool in TOOLS:
        require(tool)
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started by root alone here")
    try:
        socket.gethostbyname(socket.gethostname().split(".")[0])
    except OSError:
        pytest.skip(
            f"the name of this machine ({socket.gethostname()}) is not in /etc/hosts; Slurm needs it for 127.0.0.1"
        )
    folder = Path(tempfile.mkdtemp(prefix="jointdiff-slurm-"))  # short: a socket's path has at most 107 characters
    folder.chmod(0o755)
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder)
