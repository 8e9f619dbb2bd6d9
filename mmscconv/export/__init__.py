"""Files that run without this package, compared with PyTorch on real images: ONNX, torch.export, OpenVINO, ncnn."""
