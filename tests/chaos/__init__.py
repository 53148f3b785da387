"""`make chaos`: a real shard in network namespaces, real faults, clients, and a checker that reads what they saw.

Reading order: `schedule` (what strikes when), `faults` (the table of what can), `topology`, `lab` (the shard in it),
`workloads`, `checker` (the promises), `rounds` (one run), `report`.
"""
