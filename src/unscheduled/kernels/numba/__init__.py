"""The fused kernel for the CPU, compiled by Numba."""
