"""Why there is no proof."""


class NotProven(Exception):
    """Why there is no proof: one sentence."""


class StoreAway(NotProven):
    """The store cannot be reached."""
