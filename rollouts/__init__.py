"""WHAT a rollout is: records, the Arrow row contract, the journal and the committed Parquet store."""
