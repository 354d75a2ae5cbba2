"""Missing photos: those that a table names and that do not exist, collected to leave them out or to count them."""

from __future__ import annotations

from fastmask.system.errors import DataError, MissingPhotoError


class MissingPhotos:
    """The faults of photos that do not exist, which `note` collects; it raises all other faults."""

    def __init__(self) -> None:
        self.faults: list[MissingPhotoError] = []

    def note(self, fault: DataError) -> None:
        """Collect a fault of a missing photo; as `on_fault` of the readers, which then leave the photo out."""
        if not isinstance(fault, MissingPhotoError):
            raise fault
        self.faults.append(fault)

    def left_out(self, skip: bool, left: int) -> list[tuple[str, str]]:
        """The missing photos, and why; raises MissingPhotoError unless they are to be skipped and some are `left`."""
        if not self.faults or (skip and left):
            return [(fault.photo, str(fault)) for fault in self.faults]
        first, total = self.faults[0], len(self.faults)
        if skip:
            raise MissingPhotoError(f"No photo is left without the {total:,} that are missing; the first: {first}")
        if not left:
            # another folder is meant
            raise first
        what = f"In all {total:,} photos are missing; --on-bad-photo skip leaves them out and lists them."
        raise MissingPhotoError(f"{first} {what if total > 1 else '--on-bad-photo skip leaves it out.'}", first.photo)
