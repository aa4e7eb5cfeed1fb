"""The loop IR: expressions, tensor definitions, loop nests; verified, simplified and interpreted."""
