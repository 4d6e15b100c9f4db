"""One module per subcommand of `dijiang`. What a command runs is imported inside its function, so
that `dijiang --help` stays quick."""
