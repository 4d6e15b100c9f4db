"""Tool calls: how models write them, read back from a growing answer, and held to by grammars."""
