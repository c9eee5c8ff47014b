"""Arithmetic on tensors: every fast operation beside its plain twin. Imports torch alone."""
