"""The sources of anomaly maps, one file each; `agssp.map_sources` opens them."""
