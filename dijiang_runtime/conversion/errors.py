"""What conversion and training raise.

* DiJiangError
  x ConversionError      a parent that cannot be converted, and why
  x DataError            a text file or tokenizer that cannot be used
  x TrainingError        a training that cannot start, go on, or be resumed
"""

from dijiang_runtime.errors import DiJiangError


class ConversionError(DiJiangError):
    """The parent cannot be converted. The message says what is missing or not implemented."""


class DataError(DiJiangError):
    """A text file or a tokenizer cannot be used."""


class TrainingError(DiJiangError):
    """A training cannot start, go on, or be resumed from what lies in its folder."""
