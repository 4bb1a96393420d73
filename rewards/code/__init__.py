"""The scorer `code`: programs, their tests, and the sandbox in which both run."""
