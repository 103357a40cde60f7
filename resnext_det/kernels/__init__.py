"""GPU kernels in Triton. Optional: without Triton everything runs on PyTorch's own."""
