"""Questions that code asks of an nn.Conv2d, asked of every layer: plain PyTorch's numbers, or a refusal in words."""
