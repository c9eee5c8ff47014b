"""How a loaded model is run: made ready once, packed, fused, in steps with a KV cache, generating."""
