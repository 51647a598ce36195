"""KeAD: anomaly maps from CLIP, from what inspectors know and a few sound images (paper section 3.2)."""
