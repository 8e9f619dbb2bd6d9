"""What code does with an nn.Conv2d, asked of every layer of this package: the same numbers as plain PyTorch, or a refusal."""
