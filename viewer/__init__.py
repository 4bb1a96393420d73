"""Output about runs: lines in the terminal, and the HTML report. Imports no torch and no ray."""
