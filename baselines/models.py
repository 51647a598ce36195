"""The registry of this project's own models: `agssp.NAME` in configurations."""

from mmengine.registry import MODELS, Registry

AGSSP_MODELS = Registry("model", parent=MODELS, scope="agssp")
