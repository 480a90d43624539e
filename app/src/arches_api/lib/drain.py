"""One switch: this process is going away."""

from .metrics import Metrics


class Drain:
    """Read by readiness (503) and by every answer (`Connection: close`)."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.started = False

    def start(self) -> None:
        """There is no way back."""
        self.started = True
        self._metrics.draining.set(1)
