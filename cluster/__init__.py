"""WHERE it runs: the only place that calls Ray."""
