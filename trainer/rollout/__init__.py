"""From prompts to scored groups: the producer and what decides which groups it samples."""
