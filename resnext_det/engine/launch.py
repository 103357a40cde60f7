"""Start the processes of a run: one, several on this machine, or the ones that torchrun or Slurm already started.

Every process that trains belongs to a torch.distributed group: NCCL on GPUs, gloo on CPUs.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fvcore.common.config import CfgNode

from .. import compat
from ..errors import RunFailed, UserError
from .causes import cause_of
from .determinism import make_deterministic
from .exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_TERMINATED, EXIT_USER_ERROR, exit_code
from .run import RunOptions
from .signals import Stopped, Terminated, cleaning_up_on_sigterm, die_with_parent, on_stopping_signals

TIMEOUT = timedelta(minutes=30)
MEETING = 600.0
"""Seconds in which all processes of a run must have come."""
NOTICE = 5.0
"""Seconds between two reports of the processes that one waits for."""
GRACE = 10.0
"""Seconds that processes get to end by themselves once one has failed, and again after SIGTERM."""
LEAVING = 600.0
"""Seconds that processes get once one has left with :data:`EXIT_STOPPED`: the others are saving, or only slow."""


@dataclass(frozen=True)
class Place:
    """Where one process stands in a run."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def launch(
    main: Callable[..., object],
    args: tuple,
    *,
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
    device: str = "cpu",
) -> object:
    """Call ``main(*args)`` in every process of the run.

    Args:
        main: a module-level function (it is pickled when processes are started).
        processes: on this machine. Ignored under torchrun and Slurm, which have started them already.
        machines, machine_rank, url: for a run over several machines started by hand.
        device: "cuda" for one GPU per process, "cpu" for gloo.

    Returns:
        The value of ``main`` in a process that was already running; None when processes were started here.

    Raises:
        UserError: fewer GPUs than processes, or no meeting point for several machines.
        RunFailed: a process that was started here was killed, or failed.
        Stopped: they have saved their state after a signal.
    """
    place = _place_from_torchrun(os.environ) or _place_from_slurm(os.environ)
    if place is not None:
        return _join(_checked(place), device, main, args)
    world_size = processes * machines
    if world_size <= 1:
        return main(*args)
    if url == "auto":
        if machines > 1:
            raise UserError(f"--num-machines {machines} needs --dist-url tcp://HOST:PORT of the machine with rank 0")
        url = f"tcp://127.0.0.1:{free_port()}"
    elif not re.fullmatch(r"tcp://.+:\d+|file:///.+", url) or _port_of(url) not in PORTS:
        raise UserError(
            f"--dist-url {url}: give tcp://HOST:PORT of the machine with rank 0 (a port is from 1 to 65535), or "
            "file:///PATH they share"
        )
    if device.startswith("cuda") and processes > torch.cuda.device_count():
        raise UserError(f"--num-gpus {processes}: this machine has {torch.cuda.device_count()}")
    places = [Place(machine_rank * processes + local, world_size, local, processes, url) for local in range(processes)]
    # The tracker of shared memory would warn of a killed process's leftovers, below the line with the cause.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    with tempfile.TemporaryDirectory(prefix="resnext_det_") as last_words:
        started = mp.start_processes(
            _worker, nprocs=processes, args=(places, device, main, args, last_words), start_method="spawn", join=False
        )
        codes, passed_on = _supervise(started.processes)
        if any(code != 0 for code in codes):
            raise _cause(codes, Path(last_words), passed_on)
    return None


def start_training(
    args: Namespace,
    cfg: CfgNode,
    run: Callable[[CfgNode, RunOptions], object],
    replay: Callable[[CfgNode, str], object],
) -> None:
    """Do what the flags of :func:`.cli.parse_training_arguments` ask for.

    Args:
        run: called with cfg and the flags, in every process of the run.
        replay: called with cfg and the dump.
    """
    if args.replay:
        make_deterministic(cfg.DETERMINISTIC, cfg.SEED)
        replay(cfg, args.replay)
        return
    flags = {"resume": args.resume, "eval_only": args.eval_only, "trust_pickle": args.trust_pickle}
    launch(
        run,
        (cfg, RunOptions(**flags, given=tuple(args.opts[::2]))),
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
        device=cfg.MODEL.DEVICE,
    )


def _supervise(processes: Sequence[BaseProcess]) -> tuple[list[int | None], set[int]]:
    """Wait for the processes, pass stopping signals on to them, and end all when one fails.

    torch's own waiting hangs on a process that stays in a collective operation and so ignores SIGTERM.

    Returns:
        Their exit codes, None for one that had to be ended; and the signals that were passed on.
    """
    passed_on: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        passed_on.add(number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    with on_stopping_signals(pass_on):
        try:
            _wait(processes, None, while_codes=(0,))
            _wait(processes, LEAVING, while_codes=(0, EXIT_STOPPED))
            _wait(processes, GRACE)  # the others notice by themselves
            codes = [process.exitcode for process in processes]
        finally:
            for end in ("terminate", "kill"):
                for process in processes:
                    if process.is_alive():
                        getattr(process, end)()
                _wait(processes, GRACE)
    return codes, passed_on


def _wait(processes: Sequence[BaseProcess], seconds: float | None, while_codes: Collection[int] | None = None) -> None:
    """Wait until all have ended, or one with a code that is not among ``while_codes``, at most ``seconds``."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        codes = [process.exitcode for process in processes]
        running = [process.sentinel for process, code in zip(processes, codes, strict=True) if code is None]
        left = None if end is None else end - time.monotonic()
        strange = while_codes is not None and any(code is not None and code not in while_codes for code in codes)
        if not running or strange or (left is not None and left <= 0):
            return
        connection.wait(running, left)


def _cause(codes: Sequence[int | None], last_words: Path, passed_on: Collection[int] = ()) -> BaseException:
    """The end of the run: a killed process before a user's mistake, and that before its effects on the others."""
    codes = [-signal.SIGTERM if code == EXIT_TERMINATED else code for code in codes]
    asked = signal.SIGTERM in passed_on
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and not (asked and code == -signal.SIGTERM):
            hint = "; too little memory is the usual cause" if code == -signal.SIGKILL else ""
            return RunFailed(
                f"process {rank} of {len(codes)} was ended by {signal.Signals(-code).name}{hint}; the others were "
                "ended; continue with --resume"
            )
    if -signal.SIGTERM in codes and EXIT_STOPPED not in codes:
        return Terminated("ended by SIGTERM")
    if None in codes and set(codes) <= {None, 0, EXIT_STOPPED}:  # it may have been the one that saves
        return RunFailed(
            f"process {codes.index(None)} of {len(codes)} was still there {LEAVING:.0f} s after another had "
            "stopped, and was ended; continue with --resume"
        )
    for code, kind in ((EXIT_USER_ERROR, UserError), (EXIT_STOPPED, Stopped), (EXIT_FAILED, RunFailed)):
        ranks = [rank for rank in range(len(codes)) if codes[rank] == code]
        for path in (last_words / str(rank) for rank in ranks):
            if path.exists():
                return kind(path.read_text(encoding="utf-8"))
        if ranks:
            return kind(f"process {ranks[0]} of {len(codes)} failed; its message stands above")
    return KeyboardInterrupt() if EXIT_INTERRUPTED in codes else SystemExit(max(code or 0 for code in codes))


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _worker(local_rank: int, places: list[Place], device: str, main: Callable, args: tuple, last_words: str) -> None:
    die_with_parent()
    try:
        with cleaning_up_on_sigterm():
            _join(places[local_rank], device, main, args)
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            traceback.print_exc()
            sys.exit(EXIT_FAILED)
        try:
            (Path(last_words) / str(local_rank)).write_text(str(error), encoding="utf-8")
        except OSError:  # the same full disk, perhaps
            print(error, file=sys.stderr, flush=True)
        sys.exit(code)


def _join(place: Place, device: str, main: Callable, args: tuple) -> object:
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=_meet(place),
        world_size=place.world_size,
        rank=place.rank,
        timeout=TIMEOUT,
    )
    try:
        compat.create_local_process_group(place.local_size)
        dist.barrier()
        return main(*args)
    except Exception as error:  # its cause is known only while the group is there
        cause = cause_of(error)
        if cause is error:
            raise
        raise cause from error
    finally:
        dist.destroy_process_group()
        compat.forget_local_process_group()


PORTS = range(1, 65536)


def _port_of(url: str) -> int:
    """The port of tcp://HOST:PORT; 1 for a file."""
    return int(url.rpartition(":")[2]) if url.startswith("tcp://") else 1


def _checked(place: Place) -> Place:
    """Raises UserError where another program's variables contradict each other."""
    if place.world_size < 1 or not 0 <= place.rank < place.world_size:
        raise UserError(
            f"this process is number {place.rank} of {place.world_size}, counted from 0 (RANK and WORLD_SIZE, or "
            "SLURM_PROCID and SLURM_NTASKS): start the run with torchrun or srun, or unset them"
        )
    if not 0 <= place.local_rank < place.local_size:
        raise UserError(
            f"this process is number {place.local_rank} of {place.local_size} on its machine, counted from 0 "
            "(LOCAL_RANK and LOCAL_WORLD_SIZE, or SLURM_LOCALID): start the run with torchrun or srun, or unset them"
        )
    return place


def _meet(place: Place) -> dist.Store:
    """The store through which the processes of the run find each other, once all have come.

    Raises:
        UserError: the port is taken, two processes have one number, or some did not come within :data:`MEETING`.
    """
    if place.url.startswith("file://"):
        where, store = place.url, dist.FileStore(place.url.removeprefix("file://"), place.world_size)
    elif "TORCHELASTIC_RUN_ID" in os.environ:  # its agents have met already, and own the store
        return next(dist.rendezvous("env://", place.rank, place.world_size, timeout=timedelta(seconds=MEETING)))[0]
    else:
        where, store = _tcp_store(place)
    begun, spoken = time.monotonic(), 0.0
    if store.add(f"resnext_det/rank_{place.rank}", 1) > 1:
        raise UserError(f"process {place.rank} of {place.world_size} came twice to {where}: give each its own number")
    store.add("resnext_det/here", 1)
    while (here := store.add("resnext_det/here", 0)) < place.world_size:
        waited = time.monotonic() - begun
        missing = f"{place.world_size - here} of {place.world_size} processes"
        if waited > MEETING:
            raise UserError(
                f"{missing} did not come to {where} within {MEETING:.0f} s: start them, or correct the number"
            )
        if waited - spoken > NOTICE:
            spoken = waited
            print(f"waiting for {missing} at {where}", file=sys.stderr, flush=True)
        time.sleep(0.1)
    return dist.PrefixStore("resnext_det/group", store)


def _tcp_store(place: Place) -> tuple[str, dist.Store]:
    if place.url == "env://":
        host, port = os.environ["MASTER_ADDR"], _number(os.environ, "MASTER_PORT")
    else:
        host, _, text = place.url.removeprefix("tcp://").rpartition(":")
        port = int(text)
    where = f"{host}:{port}"
    if port not in PORTS:
        raise UserError(f"{where}: a port is from 1 to 65535; correct MASTER_PORT")
    came = threading.Event()

    def tell() -> None:
        while not came.wait(NOTICE):
            print(f"waiting for process 0 of {place.world_size} at {where}", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        patience = timedelta(seconds=MEETING)
        store = dist.TCPStore(host, port, place.world_size, place.rank == 0, patience, wait_for_workers=False)
        store.set_timeout(TIMEOUT)
        return where, store
    except RuntimeError as error:  # torch.distributed's own kinds are of this one
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise UserError(f"{where}: the port is taken by another program, or another run; choose another") from error
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: process {place.rank} of {place.world_size} cannot meet the others ({text})"
        ) from error
    finally:
        came.set()


def _place_from_torchrun(environment: Mapping[str, str]) -> Place | None:
    if "TORCHELASTIC_RUN_ID" not in environment and not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(environment):
        return None
    _number(environment, "MASTER_PORT")
    return Place(
        rank=_number(environment, "RANK"),
        world_size=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_size=_number(environment, "LOCAL_WORLD_SIZE", max(1, _number(environment, "LOCAL_RANK", 0) + 1)),
        url="env://",
    )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """An environment variable; without a ``default`` it must be there."""
    value = environment.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        state = "is not set" if value is None else f"is {value!r}, not a number"
        raise UserError(
            f"environment variable {name} {state}: start the run with torchrun or srun, or unset it"
        ) from None


def _place_from_slurm(environment: Mapping[str, str]) -> Place | None:
    """The place of a task that ``srun`` started; None outside Slurm, for one task, and in an interactive shell."""
    tasks = _number(environment, "SLURM_NTASKS", 1)
    if tasks < 2 or "SLURM_PROCID" not in environment or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(environment):
        raise UserError(
            f"SLURM_NTASKS is {tasks}, and srun has not started this process: put srun before the command, or unset "
            "SLURM_NTASKS for a run of its own"
        )
    nodes = _number(environment, "SLURM_NNODES", 1)
    if nodes < 1 or tasks % nodes:
        raise UserError(f"SLURM_NTASKS {tasks} on SLURM_NNODES {nodes}: give every node as many tasks")
    # Every task computes the same port from the job, out of the range for which no service is registered.
    port = 49152 + _number(environment, "SLURM_JOB_ID", 0) % 16384
    return Place(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=tasks,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_size=tasks // nodes,
        url=f"tcp://{_first_slurm_host(environment)}:{port}",
    )


def _first_slurm_host(environment: Mapping[str, str]) -> str:
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError(
            "environment variable SLURM_JOB_NODELIST is not set: start the run with srun, or set MASTER_ADDR"
        )
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:  # a compressed list such as node[3-6]: Slurm's own tool knows the grammar
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot read Slurm's node list {nodes!r}: set MASTER_ADDR to the first node") from error
    return (hosts.stdout.split() or [nodes])[0]
