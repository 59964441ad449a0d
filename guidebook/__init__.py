"""The face of the library: the command line, the demo, runs and their inspection."""
