"""The command line: main parses and dispatches; a command is a file or a folder of its own."""
