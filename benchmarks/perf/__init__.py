"""Speed, measured against peers: every script prints a table or, with ``--json``, one object."""
