"""Triton kernels for what stands between a block's large matmuls on a GPU, each beside its plain twin"""
