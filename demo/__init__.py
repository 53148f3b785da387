"""A whole shard on one machine: what the demo, `make cluster` and the tests share.

Nothing here is installed on a production peer; there the platform's service manager starts the daemons.
"""
