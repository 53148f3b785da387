"""Hundreds of shards on one ZooKeeper ensemble: `python -m bench.scale`.

Everything is real but PostgreSQL: the ensemble, the sessions, `manatee.coordination`, `sitter.decide`. The peers of one
zone share a process, as they would share a rack: it can be killed.
"""
