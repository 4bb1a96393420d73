"""From prompts to scored groups: rollouters, the producer, and which groups it samples."""
