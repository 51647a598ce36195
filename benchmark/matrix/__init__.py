"""Many cells as one graph of shared work: planned without data, run by an engine, resumed from what is finished."""
