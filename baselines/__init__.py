"""What the method is compared with and stands on: backbones, detectors, weights, the OpenMMLab compatibility module."""
