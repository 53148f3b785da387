"""SIGHUP: a daemon reads its settings file again. A file that cannot be used changes nothing, and the log says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from manatee.config import BadConfiguration, Settings, load
from manatee.log import Logger


def reread(
    settings: Settings, path: Path | str, log: Logger, check: Callable[[Settings], object] = lambda _: None
) -> bool:
    """Take the settings in the file up into `settings`, which all parts of the daemon share; whether that was done.

    What only a start can take up stays as it is, and is named. `check` raises BadConfiguration for what else is wrong.
    """
    try:
        newer = load(path)
        check(newer)
    except BadConfiguration as error:
        log.error("the settings file cannot be used: all settings stay as they are", error=str(error))
        return False
    changes = settings.take_over(newer)
    log.info("read the settings again", changed=list(changes.made))
    if changes.need_restart:
        log.warning("changed settings that need a restart of this daemon", settings=list(changes.need_restart))
    return True
