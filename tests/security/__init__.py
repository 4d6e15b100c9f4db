"""The security cases S01-S40 and the reliability cases R01-R27, by id."""
