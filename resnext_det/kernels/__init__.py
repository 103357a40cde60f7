"""GPU kernels in Triton. Optional: without Triton everything runs on PyTorch's own."""

MODES = ("torch", "triton", "auto")
"""Of grouped convolutions: PyTorch's; the kernel wherever it can run; what measures fastest."""
