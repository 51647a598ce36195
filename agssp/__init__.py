"""The AGSSP method: anomaly maps, pseudo boxes, and pretraining guided by both."""
