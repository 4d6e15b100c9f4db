"""What the app of one process has in common with those of others that serve the same clients."""

from dataclasses import dataclass

from server.key_places import KeyPlaces
from server.shared_metrics import MetricsShare


@dataclass(frozen=True, slots=True)
class Siblings:
    """The same for all of them, but for the number in `metrics`."""

    metrics: MetricsShare
    key_places: KeyPlaces
    """Counts the requests of one API key, whichever of them it comes to."""
    started_at: int
    """When the first of them was started, in Unix seconds."""
