"""Pretrains CSPDarknet as an autoencoder on generated metal surfaces, in plain torch: an idea of your own.

Usage: python docs/examples/autoencoder.py weights.safetensors [IMAGES] [EPOCHS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from baselines import weights
from baselines.backbones import get
from baselines.pretraining import build_backbone
from datasets_builders.corpus import load_corpus

SIDE, BATCH = 64, 16


def main(out: Path, images: int = 256, epochs: int = 3) -> None:
    """Trains and saves the encoder; the decoder is thrown away."""
    torch.manual_seed(0)
    corpus = load_corpus(f"corpus_synthetic/n{images}_k9_s0")
    pictures = [row["image"].convert("RGB").resize((SIDE, SIDE)) for row in corpus]
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255

    backbone = get("csp_darknet", "n")
    encoder = build_backbone(backbone)  # images in [0, 1] -> features at strides 8, 16 and 32
    decoder = nn.Sequential(
        nn.Conv2d(backbone.out_channels[-1], 3 * 32 * 32, 1), nn.PixelShuffle(32), nn.Sigmoid()
    )
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(pixels)).split(BATCH):
            loss = nn.functional.mse_loss(decoder(encoder(pixels[batch])[-1]), pixels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: reconstruction error {np.mean(losses):.4f}")

    state = {f"backbone.{name}": tensor for name, tensor in encoder.state_dict().items()}
    weights.save(out, state, {"scope": "backbone", "backbone": backbone.id})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
