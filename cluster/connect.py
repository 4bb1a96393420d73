"""Joining a Ray cluster, or starting a private one here. The driver needs no GPU."""

from __future__ import annotations

import logging
import os

import ray

_JOB_MARKS = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_ID")


def connect() -> bool:
    """Connect this driver; True if it joined a running cluster, False if it started a local one.

    A local one listens on loopback, has no dashboard, collects no usage statistics, and ends with the driver.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # By default Ray gives workers a lower priority than any other process; here they do the main work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray must not change CUDA_VISIBLE_DEVICES of actors without GPUs: `host_environment` sets it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if any(mark in os.environ for mark in _JOB_MARKS):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return True
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    return False


def pick_device(asked: str) -> str:
    """The device asked for, "cuda" or "cpu"; for "auto" the one that the cluster has."""
    if asked != "auto":
        return asked
    return "cuda" if ray.cluster_resources().get("GPU", 0.0) > 0 else "cpu"
