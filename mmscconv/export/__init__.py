"""Files that run without this package: ONNX and torch.export, compared with PyTorch on real images."""
