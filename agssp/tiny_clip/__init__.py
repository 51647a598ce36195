"""The tiny CLIP: a few million parameters, trained on generated surfaces and captions, so that KeAD runs offline."""
