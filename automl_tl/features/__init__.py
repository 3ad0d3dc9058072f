"""What is computed once and read many times: prepared samples on disk, outputs of frozen prefixes in memory."""
