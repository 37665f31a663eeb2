"""Why there is no bundle."""


class ExportError(ValueError):
    """The bundle cannot be written; the message says why and what to do."""
