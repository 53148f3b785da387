"""The words that all of Manatee's processes share: positions, cluster state, settings, coordination.

Nothing in this package imports the sitter, the backup server or `manatee-adm`; they import it.
"""

__version__ = "3.0.0"
