"""Files that appear whole or not at all, the cache, and the bytes of safetensors."""
