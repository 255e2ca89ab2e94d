"""8-bit and 4-bit quantization for graftwork, by bitsandbytes."""
