"""`python -m polyphony`: the command line of `polyphony.cli`."""

from polyphony.cli import main

raise SystemExit(main())
