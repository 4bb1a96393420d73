"""Join a Ray cluster, or start a private one on this machine. The driver needs no GPU."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import ray

from cluster.secrets import hidden

_ADDRESS: Final = "RAY_ADDRESS"
_JOB_MARKS: Final = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_ID")
_CLIENT_PORT: Final = 10001
_REACH_LIMIT_S: Final = 5.0
_JOIN_LIMIT_S: Final = 60.0
"""Limit for joining. Ray itself tries for minutes if something answers that is not a cluster."""
_LOST_AFTER_S: Final = 40.0
"""After 60 s Ray ends a driver whose cluster is gone with its own message; ours must come first."""
_WATCH_EVERY_S: Final = 5.0
BAD_INPUT: Final = 2
LOST: Final = 1


def connect(secrets: Collection[str] = ()) -> bool:
    """Connect this driver; returns True if it joined a running cluster, False if it started a local one.

    It joins the cluster that RAY_ADDRESS names (``host:port``, ``ray://host:port`` or ``auto``), or, inside a
    Ray job, the job's cluster. A local cluster has the address 127.0.0.1, no dashboard and Ray's token
    authentication (Ray listens on all interfaces nevertheless), collects no usage statistics, does not get
    the environment variables `secrets`, and ends with the driver.

    Raises:
        ValueError: RAY_ADDRESS cannot be reached or joined, or a local cluster does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would hide equal lines of different actors, which look alike by design.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # By default Ray runs workers at a low priority (nice 15); here they do the main work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray must not change CUDA_VISIBLE_DEVICES of actors without GPUs: `host_environment` sets it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get(_ADDRESS, "")
    joins = address not in ("", "local") or any(mark in os.environ for mark in _JOB_MARKS)
    if joins:
        _join(address)
    else:
        _start(secrets)
    if not address.startswith("ray://"):  # Ray's client has no connection of its own to watch
        _watch()
    return joins


def _start(secrets: Collection[str]) -> None:
    """Start a local cluster."""
    try:
        # Ray's processes inherit the environment and the signal mask of this process.
        with _hidden_from(signal.SIGTERM), hidden(secrets):
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
    except Exception as error:  # Ray raises plain ones, mostly because a busy machine is too slow
        raise ValueError(
            f"Ray could not start on this machine: {' '.join(str(error).split())} Nothing was started: run "
            "the same command again, later if the machine is busy"
        ) from error


def pick_device(asked: str) -> str:
    """The device of `cluster.device`; for "auto", "cuda" if the cluster has a GPU, else "cpu"."""
    if asked != "auto":
        return asked
    return "cuda" if ray.cluster_resources().get("GPU", 0.0) > 0 else "cpu"


def check_reachable(address: str) -> None:
    """Check that something listens at the address of a cluster (as in RAY_ADDRESS).

    Ray would print warnings for minutes before it gives up. ``auto`` is left to Ray, which searches only this
    machine.

    Raises:
        ValueError: it is not an address, or no connection is made within 5 s.
    """
    if address in ("", "auto"):
        return
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=_REACH_LIMIT_S).close()
    except OSError as error:
        raise ValueError(
            f"{_ADDRESS} must name a running Ray cluster, got {address!r}: no connection to {host} port "
            f"{port} ({error}). Start one (ray start --head), correct the address, or unset {_ADDRESS} to "
            "run on this machine alone"
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"gcs://{address}")
        port = parts.port or (_CLIENT_PORT if parts.scheme == "ray" else 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("gcs", "ray") or not parts.hostname or not port:
        raise ValueError(f"{_ADDRESS} must be host:port, ray://host:port, auto or local, got {address!r}")
    return parts.hostname, port


def _join(address: str) -> None:
    check_reachable(address)
    where = f"the Ray cluster at {address}" if address else "the Ray cluster of this job"
    # `ray.init` cannot be interrupted, so the timer exits the process. Nothing has been started yet that an
    # exit would leave behind.
    timer = threading.Timer(
        _JOIN_LIMIT_S,
        _end,
        (
            f"{where} did not let this driver join within {_JOIN_LIMIT_S:g} s: {_ADDRESS} may name another "
            "service, or the cluster may run another version of Ray or be broken (ray status)",
            BAD_INPUT,
        ),
    )
    # It must not keep this process alive once the driver has ended.
    timer.daemon = True
    timer.start()
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types here: no cluster, another version, no local node
        raise ValueError(f"{where} cannot be joined: {' '.join(str(error).split())}") from error
    finally:
        timer.cancel()


@contextmanager
def _hidden_from(number: signal.Signals) -> Iterator[None]:
    """Block a signal for the processes that are started in the block, and for all their children.

    Slurm, systemd, ``timeout`` and a container's init send SIGTERM to all processes of a job at once. Ray's
    processes would end on it, before this driver has finished and saved its step. A blocked signal mask is
    inherited, and survives exec.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch() -> None:
    """Watch the cluster on a thread. If it is lost, print a message and end this process before Ray does."""
    address = ray.get_runtime_context().gcs_address

    def is_there() -> bool:
        try:
            socket.create_connection(_host_and_port(address), timeout=_REACH_LIMIT_S).close()
        except OSError:
            return False
        return True

    def watch() -> None:
        if lost_for(is_there, ray.is_initialized, _LOST_AFTER_S, _WATCH_EVERY_S):
            _end(
                f"the Ray cluster at {address} has been gone for {_LOST_AFTER_S:g} s, and its actors too. "
                "Finished steps are intact: the same command resumes the run",
                LOST,
            )

    threading.Thread(target=watch, name="cluster-watch", daemon=True).start()


def lost_for(
    is_there: Callable[[], bool], is_used: Callable[[], bool], limit_s: float, every_s: float
) -> bool:
    """Poll every `every_s` seconds; True once `is_there` has failed for `limit_s`, False once not used."""
    seen = time.monotonic()
    while is_used():
        if is_there():
            seen = time.monotonic()
        elif time.monotonic() - seen >= limit_s:
            return is_used()
        time.sleep(every_s)
    return False


def _end(message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"polyphony: {message}", file=sys.stderr, flush=True)
    os._exit(code)  # sys.exit would end only this thread, and Ray's own exit handlers would hang
