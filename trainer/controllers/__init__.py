"""What changes from step to step: settings, the reference of the KL anchor, the learning rate."""
