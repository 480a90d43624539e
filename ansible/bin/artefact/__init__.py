"""Release artefacts: built from sources and hashed locks, signed, published in a folder (docs/releases.md)."""


class ReleaseError(Exception):
    """The release cannot be built or published; the message is one sentence that names the fix."""
