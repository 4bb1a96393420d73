"""Values that change during a run: controlled settings, the KL reference and the learning rate."""
