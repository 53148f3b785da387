"""The driver for ZFS: a snapshot of the dataset is sent, whole or as the difference from one that both ends have.

`storage.dataset` is mounted at `storage.directory` and holds `data/`; a restore is received beside it and takes its
name by rename. `docs/storage.md` is for operators; `names.py` says what is touched, `place.py` in which order.
"""

from manatee.storage.zfs.driver import Zfs

__all__ = ["Zfs"]
