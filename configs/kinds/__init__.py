"""Every kind a config can name, one file per role: options and the place of the code, nothing heavier."""
