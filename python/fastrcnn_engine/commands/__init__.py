"""What each command does. Imported by the command line once a command has been chosen."""
