"""A bundle of a task that was never saved."""

from vfm.bundle import ExportOptions
from vfm.bundle.export import write_bundle
from vfm.tasks.checkpoint import Checkpoint


def export_task(task, paths, out, *, origin, results, **options):
    """Write a bundle, compared on some files; gives the comparison."""
    chosen = ExportOptions(images=paths[0].parent, out=out, **options)
    return write_bundle({"": Checkpoint(task, origin, results)}, chosen, paths)
