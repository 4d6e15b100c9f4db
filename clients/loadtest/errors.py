"""What a load test raises; failures of single requests are counted, not raised."""

from clients.errors import ClientError


class LoadTestError(ClientError):
    """The load test cannot be run, or a report cannot be read."""


class OptionError(LoadTestError):
    """What was asked for makes no sense: a usage error."""
