"""WHAT a run is: the schema, its loading and rules, presets, and the kinds a config can name."""
