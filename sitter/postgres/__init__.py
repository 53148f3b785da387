"""PostgreSQL as the sitter's child: the process, its files and settings, and the questions put to it.

Each module is one primitive and keeps no memory of its own; what is wanted of PostgreSQL is reconciled with what is in
`sitter.postgres.server`, on top of them.
"""
