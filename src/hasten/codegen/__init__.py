"""From a tensor program to C: fuse, schedule, plan memory, emit, build."""
