"""Why there is no bundle."""

from vfm_runtime.errors import VfmError


class ExportError(VfmError, ValueError):
    """The bundle cannot be written; the message says why and what to do."""
