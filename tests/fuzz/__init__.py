"""Malformed requests by kind and by the hundred thousand, and targets for a fuzzer."""
