"""Looking at a run directory: terminal and HTML. No torch, no ray."""
