"""The `hasten` command: one function per verb."""
